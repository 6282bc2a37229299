"""Structure: one labelled configuration of atoms, in eV and angstrom."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from gfm.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Structure"]


@dataclass(slots=True, eq=False)
class Structure:
    """One configuration of N atoms with its labels; what is unknown is None, never zero.

    Attributes:
        numbers: Atomic numbers (N,).
        positions: Cartesian positions (N, 3), angstrom; float32 from a store, float64 accepted.
        cell: Lattice vectors as rows (3, 3), angstrom; zeros where there is no cell.
        pbc: Periodic along each lattice vector (3,).
        energy: Total energy, eV.
        forces: Forces (N, 3), eV/angstrom.
        stress: Stress (3, 3), eV/angstrom^3, tension positive.
        charge: Total charge, e.
        spin: Multiplicity 2S+1.
        fixed: Atoms held fixed in the calculation this comes from (N,).
        dataset: Index into the dataset names of where it is stored.
        group: Hash of what a split must not tear apart.
        key: Hash of the source id.
    """

    numbers: NDArray[np.uint8]
    positions: NDArray[np.floating]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    energy: float | None = None
    forces: NDArray[np.floating] | None = None
    stress: NDArray[np.floating] | None = None
    charge: int | None = None
    spin: int | None = None
    fixed: NDArray[np.bool_] | None = None
    dataset: int = 0
    group: int = 0
    key: int = 0

    def __len__(self) -> int:
        """Return the number of atoms."""
        return len(self.numbers)

    @classmethod
    def from_atoms(cls, atoms: "Atoms") -> Self:
        """Take over an ASE Atoms: geometry, and energy, forces and stress where its calculator holds them."""
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        stress = results.get("stress")
        if stress is not None and np.shape(stress) == (6,):
            from ase.stress import voigt_6_to_full_3x3_stress

            stress = voigt_6_to_full_3x3_stress(stress)
        return cls(
            numbers=atoms.numbers.astype(np.uint8),
            positions=atoms.positions.copy(),
            cell=np.array(atoms.cell, dtype=np.float64),
            pbc=atoms.pbc.copy(),
            energy=None if results.get("energy") is None else float(results["energy"]),
            forces=results.get("forces"),
            stress=stress,
        )

    def to_atoms(self) -> "Atoms":
        """Return an ASE Atoms whose calculator holds the labels that are present."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.constraints import FixAtoms

        atoms = Atoms(self.numbers, self.positions.astype(np.float64), cell=self.cell, pbc=self.pbc)
        if self.fixed is not None and self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        labels = {"energy": self.energy, "forces": self.forces, "stress": self.stress}
        results = {name: value for name, value in labels.items() if value is not None}
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    def check_shapes(self) -> None:
        """Check that every array has the shape N atoms ask for.

        Raises:
            DataError: One has not; the text names the field and both shapes.
        """
        num_atoms = len(self.numbers)
        expected: dict[str, tuple[int, ...]] = {
            "numbers": (num_atoms,),
            "positions": (num_atoms, 3),
            "forces": (num_atoms, 3),
            "fixed": (num_atoms,),
            "cell": (3, 3),
            "stress": (3, 3),
            "pbc": (3,),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            shape = expected.get(field.name)
            if shape is not None and value is not None and np.shape(value) != shape:
                raise DataError(
                    f"{field.name} has shape {np.shape(value)}, expected {shape} for {num_atoms} atoms"
                )
