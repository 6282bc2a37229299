"""Metal slabs, adsorbates and alloys with effective-medium labels, for the layouts of OC20, OC22 and MPtrj.

The labels are those of ASE's EMT (Jacobsen, Stoltze and Norskov, doi:10.1016/0039-6028(96)00816-3). Its
parameters for H, C, N and O are made for tests, not for chemistry: smooth energies with exact forces, which is
what a sample needs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gfm.data.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["ADSORBATES", "METALS", "System", "alloy", "emt_structure", "jolted", "slab_with_adsorbates"]

METALS = ("Ag", "Al", "Au", "Cu", "Ni", "Pd", "Pt")
ADSORBATES = ("H", "O", "C", "N", "CO", "OH", "H2O", "NH3", "CH4")

# Equilibrium lattice constants of the fcc metals, angstrom, as ASE's EMT has them (close to experiment).
_LATTICE = {"Ag": 4.09, "Al": 4.05, "Au": 4.08, "Cu": 3.61, "Ni": 3.52, "Pd": 3.89, "Pt": 3.92}
# A draw with a larger force (eV/angstrom) is drawn again with half the noise.
_MAX_FORCE = 25.0


@dataclass(frozen=True)
class System:
    """A slab with adsorbates near a minimum, from which frames are drawn.

    Attributes:
        atoms: The slab; tags are 0 below the surface, 1 at the surface, 2 for adsorbates, and what has tag 0
            is held fixed.
        adsorbates: Names of the adsorbates.
        reference_energy: Energy of the clean relaxed slab and of the adsorbates in the gas phase, eV.
    """

    atoms: "Atoms"
    adsorbates: tuple[str, ...]
    reference_energy: float


def _relax(atoms: "Atoms", steps: int) -> float:
    """Relax in place with EMT and return the energy, eV; atoms of tag 0 stay where they are."""
    from ase.calculators.emt import EMT
    from ase.constraints import FixAtoms
    from ase.optimize import BFGS

    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))
    atoms.calc = EMT()
    BFGS(atoms, logfile=None, maxstep=0.1).run(fmax=0.2, steps=steps)
    energy = float(atoms.get_potential_energy())
    atoms.set_constraint()
    return energy


def _gas_energy(name: str) -> float:
    """Return the energy of an adsorbate alone, relaxed with EMT, eV."""
    gas = _adsorbate(name)
    gas.set_tags(2)
    gas.center(vacuum=6.0)
    return _relax(gas, steps=60)


def _adsorbate(name: str) -> "Atoms":
    """Return an adsorbate whose first atom is the one that binds."""
    from ase import Atoms
    from ase.build import molecule

    if name in METALS or len(name) == 1:
        return Atoms(name)
    atoms = molecule(name)
    if name == "CO":  # carbon down
        atoms = atoms[[atoms.get_chemical_symbols().index("C"), atoms.get_chemical_symbols().index("O")]]
    if atoms.positions[0, 2] > atoms.positions[1:, 2].mean():
        atoms.rotate(180, "x", center=atoms.positions[0])
    return atoms  # type: ignore[no-any-return]


def slab_with_adsorbates(rng: np.random.Generator, choice: tuple[str, ...], coverage: int) -> System:
    """Draw a metal or alloy slab of 12 to 18 atoms and put adsorbates on it.

    Args:
        rng: Where all choices come from.
        choice: Names of the adsorbates to draw from.
        coverage: How many adsorbates there are at most.
    """
    from ase.build import add_adsorbate, fcc100, fcc111
    from ase.data import atomic_numbers

    host, other = rng.choice(METALS, size=2, replace=False)
    mixed = bool(rng.random() < 0.4)
    constant = (_LATTICE[host] + 0.4 * mixed * (_LATTICE[other] - _LATTICE[host])) * rng.uniform(0.98, 1.03)
    size = ((2, 2, 3), (2, 2, 4), (3, 2, 3))[rng.integers(3)]
    facet: Any = fcc111 if rng.random() < 0.5 else fcc100
    slab = facet(str(host), size=size, a=float(constant), vacuum=8.0)
    slab.pbc = True
    if mixed:
        swapped = rng.random(len(slab)) < 0.4
        slab.numbers[swapped] = atomic_numbers[str(other)]
    # ASE numbers the layers from the top; here two of three or four layers are below the surface.
    slab.set_tags(np.where(slab.get_tags() > len(set(slab.get_tags())) - 2, 0, 1))

    clean = slab.copy()
    reference = _relax(clean, steps=25)
    names = tuple(str(name) for name in rng.choice(choice, size=int(rng.integers(1, coverage + 1))))
    sites = rng.permutation(size[0] * size[1])[: len(names)]
    site = str(rng.choice(["ontop", "bridge"]))
    loaded = clean.copy()
    for name, cell in zip(names, sites, strict=True):
        adsorbate = _adsorbate(name)
        adsorbate.set_tags(2)
        add_adsorbate(loaded, adsorbate, 1.6, site, offset=(int(cell) // size[1], int(cell) % size[1]))
        reference += _gas_energy(name)
    _relax(loaded, steps=25)
    return System(loaded, names, reference)


def alloy(rng: np.random.Generator, *, with_oxygen: bool) -> "Atoms":
    """Draw a bulk metal or binary alloy of 4 to 9 atoms; with oxygen in a hollow if asked for."""
    from ase import Atoms
    from ase.build import bulk

    host, other = (str(symbol) for symbol in rng.choice(METALS, size=2, replace=False))
    repeats = ((1, 1, 1), (2, 1, 1))[rng.integers(2)]
    atoms = bulk(host, "fcc", a=_LATTICE[host], cubic=True).repeat(repeats)
    count = int(rng.integers(0, len(atoms) // 2 + 1))
    atoms.symbols[np.sort(rng.choice(len(atoms), size=count, replace=False))] = other
    fraction = count / len(atoms)
    scale = 1 + fraction * (_LATTICE[other] / _LATTICE[host] - 1)
    if with_oxygen:
        centre = 0.5 * _LATTICE[host] * np.ones(3)
        atoms += Atoms("O", positions=[centre])
        scale *= 1.06
    atoms.set_cell(scale * np.array(atoms.cell), scale_atoms=True)
    atoms.set_tags(1)  # every atom may move
    return atoms  # type: ignore[no-any-return]


def emt_structure(atoms: "Atoms", *, stress: bool = False) -> Structure:
    """Label a geometry with EMT; atoms of tag 0 are marked fixed, and their forces are the true ones."""
    from ase.calculators.emt import EMT

    posed = atoms.copy()
    posed.set_constraint()
    posed.calc = EMT()
    posed.get_forces()
    if stress:
        posed.get_stress()
    labelled = Structure.from_atoms(posed)
    labelled.fixed = posed.get_tags() == 0
    return labelled


def jolted(atoms: "Atoms", rng: np.random.Generator, decimals: int | None, strain: float = 0.0) -> Structure:
    """Displace the free atoms by Gaussian noise of 0.02 to 0.12 angstrom, strain the cell, and label.

    Args:
        atoms: Where to start; atoms of tag 0 do not move, unless by the strain.
        rng: Where noise and strain come from.
        decimals: Round positions and cell to this many decimals, or None to float32: what the file can hold.
        strain: Width of the Gaussian of every component of a symmetric strain; above 0 there is a stress too.
    """
    noise = rng.uniform(0.02, 0.12) * rng.normal(size=(len(atoms), 3)) * (atoms.get_tags() > 0)[:, None]
    tensor = strain * rng.normal(size=(3, 3))
    tensor = (tensor + tensor.T) / 2
    for _ in range(8):
        posed = atoms.copy()
        posed.set_constraint()
        posed.set_cell(np.array(posed.cell) @ (np.eye(3) + tensor), scale_atoms=True)
        posed.positions += noise
        if decimals is None:
            posed.positions = posed.positions.astype(np.float32)
            posed.set_cell(np.array(posed.cell, dtype=np.float32))
        else:
            posed.positions = posed.positions.round(decimals)
            posed.set_cell(np.array(posed.cell).round(decimals))
        labelled = emt_structure(posed, stress=strain > 0)
        if labelled.forces is not None and np.abs(labelled.forces).max() <= _MAX_FORCE:
            return labelled
        noise *= 0.5
        tensor *= 0.5
    raise RuntimeError(f"no geometry of moderate forces near {atoms.get_chemical_formula()}")
