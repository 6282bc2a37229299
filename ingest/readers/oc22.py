"""OC22 S2EF-Total: LMDB files of oxide slabs with adsorbates, total energies, pickles of torch_geometric 1.x.

Source: Tran et al., doi:10.1021/acscatal.2c05426; ``s2ef_total_train_val_test_lmdbs.tar.gz``.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError
from ingest.readers import oc_lmdb
from ingest.readers.base import Block, Part, Published, Reader, find_files

__all__ = ["Oc22"]


class Oc22(Reader):
    """Reads ``data.0000.lmdb``, ....

    Attributes:
        require_forces: Whether a record without forces is refused.
    """

    NAME: ClassVar[str] = "oc22"
    UNITS: ClassVar[dict[str, str]] = {**oc_lmdb.UNITS, "y": "eV, total"}
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "fixed")

    require_forces: bool = True

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published("PBE+U (VASP)", "CC-BY-4.0", "10.1021/acscatal.2c05426")

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut the records of each file into parts.

        Raises:
            MissingDataError: There is no file.
            DataError: A file is another layout, or holds no record.
        """
        parts = []
        for file in find_files(path, (".lmdb",), "OC22 LMDB files"):
            try:
                parts += oc_lmdb.plan_lmdb(self.NAME, file, part_bytes)
            except CorruptDataError as error:
                parts.append(self.unreadable(file, str(error).removeprefix(f"{file}: ")))
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: The file cannot be opened.
        """
        yield from oc_lmdb.read_lmdb(part, self._structure)

    def _structure(self, values: dict[str, Any]) -> Structure:
        return oc_lmdb.structure_of(values, "oc22", require_forces=self.require_forces)
