"""OC20 S2EF: extended XYZ with a sidecar that names each frame's system, or LMDB of pickled records.

``<n>.extxyz.xz`` holds the frames; of frame i, line i of ``<n>.txt.xz`` says
``random<sid>,frame<fid>,<reference energy>``. Without that line nobody knows which system a frame belongs to,
and a split would tear systems apart: such a frame is refused as ``missing-sidecar``, and so is every frame of a
shard that has no sidecar.

Source: Chanussot et al., doi:10.1021/acscatal.0c04525.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError
from ingest.readers import oc_lmdb
from ingest.readers.base import Block, Part, Published, Reader, find_files, hash_id
from ingest.readers.records import BlockBuilder, Refused, check_structure
from ingest.readers.text import (
    STREAM_ERRORS,
    Frame,
    FrameError,
    frames,
    open_text,
    parse_cell,
    parse_floats,
    parse_frame,
)

__all__ = ["Oc20"]

_TEXT = (".extxyz.xz", ".extxyz", ".extxyz.gz")
_SIDECARS = (".txt.xz", ".txt", ".txt.gz")
_SIDECAR = re.compile(rb"\s*random(\d+),frame(\d+),(\S+)\s*")


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
            DataError: An LMDB holds no record.
        """
        parts: list[Part] = []
        for file in find_files(path, (*_TEXT, ".lmdb"), "OC20 files"):
            if file.name.endswith(_SIDECARS):  # a glob may find them too
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
            CorruptDataError: An LMDB cannot be opened.
        """
        if part.stop:
            yield from oc_lmdb.read_lmdb(part, self._from_lmdb)
        else:
            yield from self._text_blocks(part)

    def _from_lmdb(self, values: dict[str, Any]) -> Structure:
        return oc_lmdb.structure_of(values, "oc20", require_forces=self.require_forces)

    def _text_blocks(self, part: Part) -> Iterator[Block]:
        path = Path(part.path)
        builder = BlockBuilder()
        sidecar, found = _read_sidecar(path)
        count, cut = 0, False
        with open_text(path) as stream:
            for frame in frames(stream):
                source = f"{path}[{frame.index}]"
                count = frame.index + 1
                try:
                    if isinstance(frame, FrameError):
                        cut |= frame.reason != "bad-frame"
                        raise Refused(frame.reason, f"byte {frame.offset}: {frame.value}; {found}")
                    if frame.index >= len(sidecar):
                        raise Refused("missing-sidecar", found)
                    builder.add(self._structure(frame, sidecar[frame.index]), source)
                except Refused as refused:
                    builder.refuse(source, refused)
                if builder.full:
                    yield builder.take()
        if len(sidecar) > count and not cut:
            builder.reject(str(path), "missing-frames", f"{count} frames, and {found}")
        if builder:
            yield builder.take()

    def _structure(self, frame: Frame, line: bytes) -> Structure:
        """Return the structure of a frame and its sidecar line.

        Raises:
            Refused: It cannot be a labelled structure.
        """
        match = _SIDECAR.fullmatch(line)
        if match is None:
            raise Refused("bad-sidecar", f"{line[:80]!r}, expected random<sid>,frame<fid>,<reference energy>")
        sid, fid, reference = (word.decode() for word in match.groups())
        info, columns = parse_frame(frame)
        if "energy" not in info:
            raise Refused("missing-energy")
        energy = parse_floats(info["energy"], "energy")
        if energy.size != 1:
            raise Refused("bad-energy", info["energy"])
        total = float(energy[0])
        if self.energy == "adsorption":
            total -= float(parse_floats(reference, "reference-energy")[0])
        for name, kind, shape in (("species", "i", 1), ("pos", "f", 2), ("move_mask", "b", 1)):
            column = columns.get(name)
            if column is not None and (column.dtype.kind != kind or column.ndim != shape):
                raise Refused("bad-shape", f"column {name} is {column.dtype} {column.shape}")
        if "species" not in columns or "pos" not in columns:
            raise Refused("missing-positions", info.get("Properties", ""))
        cell, pbc = parse_cell(info)
        structure = Structure(
            numbers=columns["species"],
            positions=columns["pos"],
            cell=cell,
            pbc=pbc,
            energy=total,
            forces=columns.get("forces"),
            fixed=~columns["move_mask"] if "move_mask" in columns else None,
            group=hash_id(f"oc20:{sid}"),
            key=hash_id(f"oc20:{sid}/{fid}"),
        )
        return check_structure(structure, forces=self.require_forces)


def _sidecar_of(path: Path) -> Path:
    """Return the path of the sidecar that belongs to a shard."""
    return path.with_name(path.name.replace(".extxyz", ".txt"))


def _read_sidecar(path: Path) -> tuple[list[bytes], str]:
    """Return the lines of the sidecar that can be read, and what there is to say about it."""
    sidecar = _sidecar_of(path)
    lines: list[bytes] = []
    if not sidecar.is_file():
        return lines, f"there is no {sidecar.name} beside it"
    try:
        with open_text(sidecar) as stream:
            for line in stream:
                lines.append(line)  # noqa: PERF402 - what comes before a damaged place is kept
    except STREAM_ERRORS as error:
        return lines, f"{sidecar.name} breaks off after {len(lines)} lines ({type(error).__name__}: {error})"
    return lines, f"{sidecar.name} has {len(lines)} lines"
