"""Small molecules with tight-binding labels, for the sample files in the layouts of ANI-1x and QM7-X.

Geometries start from the G2 set that comes with ASE (doi:10.1063/1.473182) and are shaken; the labels are
GFN2-xTB (doi:10.1021/acs.jctc.8b01176) and GFN1-xTB (doi:10.1021/acs.jctc.7b00118) by the tblite library.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["XtbLabels", "molecule_pool", "relaxed", "shaken", "share_out", "xtb_calculator", "xtb_labels"]

# A draw with a larger force (eV/angstrom) is an atom pushed into another: drawn again with half the noise.
_MAX_FORCE = 25.0


@dataclass(frozen=True)
class XtbLabels:
    """One geometry of N atoms and its labels.

    Attributes:
        positions: Positions (N, 3) float64, angstrom, exactly as they will be written.
        energy: Total energy of the valence electrons, as tight binding counts it, eV.
        forces: Forces (N, 3) float64, eV/angstrom.
        dipole: Dipole moment (3,), e angstrom.
    """

    positions: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]
    dipole: NDArray[np.float64]


def molecule_pool(elements: str, rng: np.random.Generator) -> "list[Atoms]":
    """Return the closed-shell G2 molecules of these elements (symbols between spaces), one for each formula.

    The order is drawn.
    """
    from ase.build import molecule
    from ase.collections import g2

    allowed = set(elements.split())
    by_formula: dict[str, Atoms] = {}
    for name in sorted(g2.names):
        atoms = molecule(name)
        open_shell = bool(atoms.get_initial_magnetic_moments().any())
        if len(atoms) > 1 and not open_shell and allowed.issuperset(atoms.get_chemical_symbols()):
            by_formula.setdefault(atoms.get_chemical_formula(), atoms)
    formulas = sorted(by_formula)
    return [by_formula[formulas[i]] for i in rng.permutation(len(formulas))]


def share_out(structures: int, pool: int, each: int) -> list[int]:
    """Split a number of structures over at most ``pool`` parents, about ``each`` structures a parent."""
    parents = max(1, min(pool, structures // each))
    return [structures // parents + (i < structures % parents) for i in range(parents)]


def xtb_calculator(method: str = "GFN2-xTB") -> Any:
    """Return an ASE calculator; it is reused for all geometries of a molecule.

    tblite's sums run in one thread, since otherwise their order, and the last bits, vary from run to run.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    from tblite.ase import TBLite

    return TBLite(method=method, accuracy=0.1, verbosity=0)


def xtb_labels(atoms: "Atoms", positions: NDArray[np.float64], calculator: Any) -> XtbLabels:
    """Label one geometry of a molecule.

    Raises:
        ase.calculators.calculator.CalculationFailed: The charges did not converge.
    """
    posed = atoms.copy()
    posed.positions = positions
    posed.calc = calculator
    return XtbLabels(
        positions=posed.positions.copy(),
        energy=float(posed.get_potential_energy()),
        forces=np.array(posed.get_forces()),
        dipole=np.array(posed.get_dipole_moment()),
    )


def relaxed(atoms: "Atoms", calculator: Any) -> "Atoms":
    """Return the molecule at a minimum of the energy (largest force below 0.01 eV/angstrom, or 100 steps)."""
    from ase.optimize import BFGS

    minimum = atoms.copy()
    minimum.calc = calculator
    BFGS(minimum, logfile=None).run(fmax=0.01, steps=100)
    minimum.calc = None
    return minimum  # type: ignore[no-any-return]


def shaken(
    atoms: "Atoms",
    calculator: Any,
    rng: np.random.Generator,
    rounded: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> XtbLabels:
    """Displace every atom by Gaussian noise of 0.02 to 0.12 angstrom, and label the result.

    Args:
        atoms: The molecule to start from.
        calculator: What `xtb_calculator` returned for it.
        rng: Where the noise comes from.
        rounded: Rounds positions to what the file can hold, so that the labels belong to what is written.
    """
    from ase.calculators.calculator import CalculationFailed

    noise = rng.uniform(0.02, 0.12) * rng.normal(size=(len(atoms), 3))
    for _ in range(8):
        try:
            labels = xtb_labels(atoms, rounded(atoms.positions + noise), calculator)
        except CalculationFailed:
            calculator.reset()
        else:
            if np.abs(labels.forces).max() <= _MAX_FORCE:
                return labels
        noise *= 0.5
    raise RuntimeError(f"no labelled geometry near {atoms.get_chemical_formula()}: the calculator fails there")
