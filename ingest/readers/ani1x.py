"""ANI-1x (and ANI-1ccx): one HDF5 file, one group per formula, big arrays over conformers.

A level of theory that was not computed for a conformer is NaN there, so a conformer counts only where all that
is asked for is finite.

Source: Smith et al., doi:10.1038/s41597-020-0473-z; file ``ani1x-release.h5``.
"""

from pathlib import Path
from typing import ClassVar

from gfm.data.units import HARTREE
from gfm.errors import DataError
from ingest.readers.base import Part, Published, find_files, open_hdf5
from ingest.readers.conformers import Scale
from ingest.readers.hdf5_arrays import Hdf5Arrays
from ingest.readers.hdf5_groups import GroupReader
from ingest.readers.hdf5_rows import GroupKeys

__all__ = ["Ani1x"]

_THEORY = {
    "wb97x_dz": "wB97X/6-31G(d)",
    "wb97x_tz": "wB97X/def2-TZVPP",
    "ccsd(t)_cbs": "CCSD(T)*/CBS",
}


class Ani1x(GroupReader):
    """Reads ``ani1x-release.h5``.

    Attributes:
        level_of_theory: Prefix of the keys that are read: ``wb97x_dz``, ``wb97x_tz``, ``ccsd(t)_cbs``, ...
        require_forces: Whether a conformer without forces is refused; ``ccsd(t)_cbs`` has none.
    """

    NAME: ClassVar[str] = "ani1x"
    UNITS: ClassVar[dict[str, str]] = {
        "coordinates": "angstrom",
        "<level>.energy": "hartree, total",
        "<level>.forces": "hartree/angstrom, minus the gradient",
        "charge": "all molecules are neutral (not in the file)",
        "spin": "all molecules are singlets (not in the file)",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "charge", "spin")

    level_of_theory: str = "wb97x_dz"

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published(
            _THEORY.get(self.level_of_theory, self.level_of_theory), "CC0-1.0", "10.1038/s41597-020-0473-z"
        )

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each file into stretches of conformers; formulas in the file's order.

        Raises:
            MissingDataError: There is no file.
            DataError: A file holds no formula group, or none with the level of theory that is asked for.
        """
        parts = []
        for file in find_files(path, (".h5", ".hdf5"), "ANI-1x files"):
            planned = self.plan_file(file, part_bytes, "one group per formula (ANI-1x)")
            if "unreadable" not in planned[0].extra:
                self._check_level(file, [path for part in planned for path, *_ in part.extra["groups"]])
            parts += planned
        return parts

    def _check_level(self, file: Path, groups: list[str]) -> None:
        """Refuse a file in which no group has the energies that are asked for.

        Raises:
            DataError: The text names the levels of theory that are there.
        """
        levels: set[str] = set()
        with open_hdf5(str(file)) as h5:
            arrays = Hdf5Arrays(h5)
            for path in groups:
                names = {child.name for child in arrays.children(arrays.group(path))}
                if f"{self.level_of_theory}.energy" in names:
                    return
                levels |= {name.removesuffix(".energy") for name in names if name.endswith(".energy")}
        raise DataError(
            f"{file}: no group holds '{self.level_of_theory}.energy'; levels of theory with energies in "
            f"this file: {', '.join(sorted(levels)) or 'none'} (option level_of_theory)"
        )

    def keys(self) -> GroupKeys:
        """Return which arrays of a formula are what."""
        level = self.level_of_theory
        return GroupKeys("atomic_numbers", "coordinates", f"{level}.energy", f"{level}.forces")

    def scale(self) -> Scale:
        """Return the units: hartree, hartree/angstrom, angstrom."""
        return Scale(energy=HARTREE, forces=HARTREE)

    def name_space(self, file: Path) -> str:
        """Return what the id of a conformer begins with."""
        return "ani1x:"

    def constants(self) -> dict[str, int]:
        """Return charge and spin: all molecules are neutral singlets."""
        return {"charge": 0, "spin": 1}
