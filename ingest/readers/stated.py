"""What readers of general layouts share: the units of a file are stated by options, never guessed."""

from typing import Literal

import pydantic

from gfm.data.units import FORCES_UNITS
from ingest.readers.base import Published, Reader

__all__ = ["StatedUnits"]


class StatedUnits(Reader):
    """Base of readers whose files may be in any unit.

    Attributes:
        energy_unit: Unit of the energy.
        forces_unit: Unit of the forces, as in ``kcal/mol/angstrom``; by default energy_unit per length_unit.
        stress_unit: Unit of the stress.
        stress_sign: Whether tension or compression is positive in the file.
        length_unit: Unit of positions and lattice vectors.
        energy_kind: What the energy is, for the manifest.
    """

    energy_unit: Literal["eV", "meV", "hartree", "kcal/mol", "kJ/mol"] = "eV"
    forces_unit: str | None = None
    stress_unit: Literal["eV/angstrom^3", "GPa", "kbar", "hartree/bohr^3"] = "eV/angstrom^3"
    stress_sign: Literal["tension", "compression"] = "tension"
    length_unit: Literal["angstrom", "bohr"] = "angstrom"
    energy_kind: str = "total"

    @pydantic.field_validator("forces_unit")
    @classmethod
    def _known_unit(cls, unit: str | None) -> str | None:
        if unit is None or unit in FORCES_UNITS:
            return unit
        raise ValueError(f"not a unit of forces; known are {', '.join(FORCES_UNITS)}")

    def about(self) -> Published:
        """Return what the manifest says: the file does not tell where it comes from."""
        return Published("unknown", "unknown", energy_kind=self.energy_kind)
