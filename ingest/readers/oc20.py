"""OC20 S2EF: extended XYZ with a sidecar that names each frame's system, or LMDB of pickled records.

``<n>.extxyz.xz`` holds the frames; of frame i, line i of ``<n>.txt.xz`` says
``random<sid>,frame<fid>,<reference energy>``. Without that line nobody knows which system a frame belongs to,
and a split would tear systems apart: such a frame is refused as ``missing-sidecar``, and so is every frame of a
shard that has no sidecar.

Source: Chanussot et al., doi:10.1021/acscatal.0c04525.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError
from ingest.readers import oc_lmdb
from ingest.readers.base import Block, Part, Published, Reader
from ingest.readers.oc_text import SIDECARS, TEXT, TextShard
from ingest.readers.text import find_text

__all__ = ["Oc20"]


class Oc20(Reader):
    """Reads ``<n>.extxyz.xz`` with ``<n>.txt.xz``, and ``data.0000.lmdb``, ....

    Attributes:
        energy: ``total`` as published, or ``adsorption``: total minus the sidecar's reference energy. What an
            LMDB holds was decided by its writer and is not said in it: state here what it is.
        require_forces: Whether a frame without forces is refused.
    """

    NAME: ClassVar[str] = "oc20"
    UNITS: ClassVar[dict[str, str]] = {
        "energy": "eV, total, extrapolated to zero smearing",
        "free_energy": "eV, consistent with the forces; not read",
        "pos, Lattice": "angstrom; rows of Lattice are lattice vectors",
        "forces": "eV/angstrom, minus the gradient; of fixed atoms as computed",
        "move_mask": "T = free, F = held fixed",
        "reference energy (sidecar)": "eV; adsorption energy = energy - reference energy",
        **oc_lmdb.UNITS,
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "fixed")

    energy: Literal["total", "adsorption"] = "total"
    require_forces: bool = True

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published("RPBE (VASP)", "CC-BY-4.0", "10.1021/acscatal.0c04525", self.energy)

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Make a part of each text file, and several of each LMDB.

        Raises:
            MissingDataError: There is no file.
            DataError: An LMDB holds no record, or a file is a tar archive.
        """
        parts: list[Part] = []
        for file in find_text(path, (*TEXT, ".lmdb"), "OC20 files"):
            if file.name.endswith(SIDECARS):  # a glob may find them too
                continue
            if file.suffix != ".lmdb" and not oc_lmdb.is_lmdb(file):
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
            shard = TextShard(Path(part.path), "oc20", self.energy == "adsorption", self.require_forces)
            yield from shard.blocks()

    def _from_lmdb(self, values: dict[str, Any]) -> Structure:
        return oc_lmdb.structure_of(values, "oc20", require_forces=self.require_forces)
