"""What OC20 and OC22 share: text shards with a sidecar, and LMDB files of pickled records.

Source: Chanussot et al., doi:10.1021/acscatal.0c04525; Tran et al., doi:10.1021/acscatal.2c05426.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError
from ingest.readers import oc_lmdb
from ingest.readers.base import Block, Part, Reader
from ingest.readers.lmdb_pages import is_lmdb
from ingest.readers.oc_text import SIDECARS, TEXT, TextShard
from ingest.readers.text import find_text

__all__ = ["UNITS", "OpenCatalyst"]

UNITS: dict[str, str] = {
    "energy": "eV, total, extrapolated to zero smearing",
    "free_energy": "eV, consistent with the forces; not read",
    "pos, Lattice": "angstrom; rows of Lattice are lattice vectors",
    "forces": "eV/angstrom, minus the gradient; of fixed atoms as computed",
    "move_mask": "T = free, F = held fixed",
    **oc_lmdb.UNITS,
}


class OpenCatalyst(Reader):
    """Reads ``<n>.extxyz.xz`` with ``<n>.txt.xz``, and ``data.0000.lmdb``, ....

    Attributes:
        require_forces: Whether a frame without forces is refused.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "fixed")

    require_forces: bool = True

    @property
    def adsorption(self) -> bool:
        """Whether the reference energy of a text shard's sidecar is subtracted."""
        return False

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Make a part of each text file, and several of each LMDB.

        Raises:
            MissingDataError: There is no file.
            DataError: An LMDB holds no record, or a file is a tar archive.
        """
        parts: list[Part] = []
        for file in find_text(path, (*TEXT, ".lmdb"), f"{self.NAME.upper()} files"):
            if file.name.endswith(SIDECARS):  # a glob may find them too
                continue
            if file.suffix != ".lmdb" and not is_lmdb(file):
                parts.append(Part(self.NAME, str(file), 0, 0, file.stat().st_size, file.name))
                continue
            try:
                parts += oc_lmdb.plan_lmdb(self.NAME, file, part_bytes)
            except CorruptDataError as error:
                parts.append(self.unreadable(file, str(error).removeprefix(f"{file}: ")))
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: An LMDB cannot be opened, or a text file is a tar archive.
        """
        if part.stop:
            yield from oc_lmdb.read_lmdb(part, self._from_lmdb)
        else:
            shard = TextShard(Path(part.path), self.NAME, self.adsorption, self.require_forces)
            yield from shard.blocks()

    def _from_lmdb(self, values: dict[str, Any]) -> Structure:
        return oc_lmdb.structure_of(values, self.NAME, require_forces=self.require_forces)
