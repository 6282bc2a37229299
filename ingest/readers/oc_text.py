"""Text of the Open Catalyst data: extended XYZ with a sidecar that names the system of each frame.

``<n>.extxyz.xz`` holds the frames; of frame i, line i of ``<n>.txt.xz`` says
``random<sid>,frame<fid>,<reference energy>``. Without that line nobody knows which system a frame belongs to,
and a split would tear systems apart: such a frame is refused as ``missing-sidecar``, and so is every frame of a
shard that has no sidecar.

Source: Chanussot et al., doi:10.1021/acscatal.0c04525.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError
from ingest.readers import scan
from ingest.readers.base import Block, hash_id
from ingest.readers.columns import add_run, cells, number
from ingest.readers.frame import Frame, FrameError, parse_cell, parse_floats, parse_frame
from ingest.readers.records import BlockBuilder, Refused
from ingest.readers.runs import Run
from ingest.readers.text import STREAM_ERRORS, damaged, open_text, read_frames

__all__ = ["SIDECARS", "TEXT", "TextShard"]

TEXT = (".extxyz.xz", ".extxyz", ".extxyz.gz")
SIDECARS = (".txt.xz", ".txt", ".txt.gz")
_KEYS = {"Lattice": scan.NUMBERS, "pbc": scan.TRUTHS, "energy": scan.NUMBERS}
_LINE = re.compile(rb"\s*random(\d+),frame(\d+)(?:,(\S+))?\s*")
_EXPECTED = "random<sid>,frame<fid>,<reference energy>"


@dataclass
class TextShard:
    """One text file with its sidecar.

    Attributes:
        path: The file.
        name: Name space of systems and frames: ``oc20``.
        adsorption: Whether the sidecar's reference energy is subtracted.
        require_forces: Whether a frame without forces is refused.
    """

    path: Path
    name: str
    adsorption: bool
    require_forces: bool

    def blocks(self) -> Iterator[Block]:
        """Read all frames.

        Raises:
            CorruptDataError: It is a tar archive, or packed, and it or its sidecar is damaged.
        """
        builder, count, cut = BlockBuilder(), 0, False
        with open_text(self.path) as stream, _Sidecar(_sidecar_of(self.path)) as sidecar:
            try:
                for found in read_frames(stream, _KEYS):
                    if isinstance(found, Run):
                        count = found.index + len(found)
                        self._add_run(builder, found, sidecar)
                    else:
                        count = found.index + 1
                        cut |= isinstance(found, FrameError) and found.reason != "bad-frame"
                        self._add(builder, found, sidecar.take(1), sidecar)
                    if builder.full:
                        yield builder.take()
            except CorruptDataError as error:
                text = str(error)
                named = str(self.path.parent) in text  # it may be the sidecar's
                raise CorruptDataError(text if named else f"{self.path}: {text}") from None
            if not cut and sidecar.take(1):
                builder.reject(str(self.path), "missing-frames", f"{count} frames, and {sidecar.account}")
        if builder:
            yield builder.take()

    def _add(
        self, builder: BlockBuilder, frame: Frame | FrameError, lines: list[bytes], sidecar: "_Sidecar"
    ) -> None:
        """Give one frame and its sidecar line, if there is one, to the builder."""
        source = f"{self.path}[{frame.index}]"
        try:
            if isinstance(frame, FrameError):
                raise Refused(frame.reason, f"byte {frame.offset}: {frame.value}; {sidecar.account}")
            if not lines:
                raise Refused("missing-sidecar", sidecar.account)
            builder.offer(self._structure(frame, lines[0]), source, forces=self.require_forces)
        except Refused as refused:
            builder.refuse(source, refused)

    def _add_run(self, builder: BlockBuilder, run: Run, sidecar: "_Sidecar") -> None:
        """Give plain frames to the builder."""
        lines = sidecar.take(len(run))
        kinds = {name: (kind, values.ndim) for name, (kind, values) in run.columns.items()}
        usual = (
            "species" in kinds
            and kinds.get("pos") == ("R", 2)
            and kinds.get("forces", None if self.require_forces else ("R", 2)) == ("R", 2)
            and kinds.get("move_mask", ("L", 1)) == ("L", 1)
            and all(run.columns[name][1].shape[1:] == (3,) for name in ("pos", "forces") if name in kinds)
            and run.columns["species"][1].ndim == 1
        )
        if not usual:
            for row in range(len(run)):
                self._add(builder, run.frame(row), lines[row : row + 1], sidecar)
            return
        cell, pbc, odd = cells(run)
        energy, has_energy, many = number(run, "energy")
        references, groups, keys, unnamed = self._names(lines, len(run))
        columns: dict[str, NDArray[Any]] = {
            "numbers": run.columns["species"][1],
            "positions": run.columns["pos"][1],
            "cell": cell,
            "pbc": pbc,
            "energy": energy - references if self.adsorption else energy,
            "group": groups,
            "key": keys,
        }
        if "forces" in kinds:
            columns["forces"] = run.columns["forces"][1]
        if "move_mask" in kinds:
            columns["fixed"] = run.columns["move_mask"][1] == 0.0
        sources = [f"{self.path}[{index}]" for index in range(run.index, run.index + len(run))]
        add_run(
            builder, run, columns, {}, odd | many | ~has_energy | unnamed, sources,
            lambda row: self._add(builder, run.frame(row), lines[row : row + 1], sidecar),
        )  # fmt: skip

    def _names(
        self, lines: list[bytes], num_frames: int
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
        """Return reference energies, groups and keys that lines say, and which frames have no usual line."""
        references, groups, keys = np.zeros(num_frames), [0] * num_frames, [0] * num_frames
        unnamed = np.ones(num_frames, dtype=bool)
        for row, line in enumerate(lines):
            match = _LINE.fullmatch(line)
            if match is None:
                continue
            sid, fid, reference = match.groups()
            try:
                if self.adsorption:
                    references[row] = float(reference)
            except (TypeError, ValueError):
                continue
            system = f"{self.name}:{sid.decode()}"
            groups[row], keys[row] = hash_id(system), hash_id(f"{system}/{fid.decode()}")
            unnamed[row] = False
        return references, np.array(groups, dtype=np.uint64), np.array(keys, dtype=np.uint64), unnamed

    def _structure(self, frame: Frame, line: bytes) -> Structure:
        """Return the candidate of a frame and its sidecar line.

        Raises:
            Refused: It cannot be a labelled structure.
        """
        match = _LINE.fullmatch(line)
        if match is None:
            raise Refused("bad-sidecar", f"{line[:80]!r}, expected {_EXPECTED}")
        words = (None if word is None else word.decode(errors="replace") for word in match.groups())
        sid, fid, reference = words
        info, columns = parse_frame(frame)
        if "energy" not in info:
            raise Refused("missing-energy")
        energy = parse_floats(info["energy"], "energy")
        if energy.size != 1:
            raise Refused("bad-energy", info["energy"])
        total = float(energy[0])
        if self.adsorption:
            total -= _reference(reference)
        for name, kind, shape in (("species", "i", 1), ("pos", "f", 2), ("move_mask", "b", 1)):
            column = columns.get(name)
            if column is not None and (column.dtype.kind != kind or column.ndim != shape):
                raise Refused("bad-shape", f"column {name} is {column.dtype} {column.shape}")
        if "species" not in columns or "pos" not in columns:
            raise Refused("missing-positions", info.get("Properties", ""))
        cell, pbc = parse_cell(info)
        return Structure(
            numbers=columns["species"],
            positions=columns["pos"],
            cell=cell,
            pbc=pbc,
            energy=total,
            forces=columns.get("forces"),
            fixed=~columns["move_mask"] if "move_mask" in columns else None,
            group=hash_id(f"{self.name}:{sid}"),
            key=hash_id(f"{self.name}:{sid}/{fid}"),
        )


def _reference(text: str | None) -> float:
    """Return the reference energy of a sidecar line.

    Raises:
        Refused: It has none, or another word: the adsorption energy is not known then.
    """
    values = parse_floats(text or "", "reference-energy")
    if values.size != 1:
        raise Refused("bad-reference-energy", f"{text}, expected a number in eV for energy: adsorption")
    return float(values[0])


class _Sidecar:
    """The lines of a sidecar one after the other, without holding them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._lines: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        self._lines = self._read(self._stack)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _read(self, stack: ExitStack) -> Iterator[bytes]:
        """Yield its lines, up to where it is cut off.

        Raises:
            CorruptDataError: It is damaged, so that lines before may be wrong.
        """
        if self._path.is_file():
            try:
                yield from stack.enter_context(open_text(self._path))
            except EOFError:
                return
            except CorruptDataError:
                raise
            except STREAM_ERRORS as error:
                raise CorruptDataError(f"{self._path}: {damaged(error)}") from error

    def take(self, count: int) -> list[bytes]:
        """Return its next lines, fewer at its end."""
        return list(islice(self._lines, count))

    @cached_property
    def account(self) -> str:
        """What there is to say about it where something is wrong; it is read through for that."""
        if not self._path.is_file():
            return f"there is no {self._path.name} beside it"
        count = 0
        try:
            with open_text(self._path) as stream:
                for _ in stream:
                    count += 1
        except STREAM_ERRORS as error:
            return f"{self._path.name} breaks off after {count} lines ({type(error).__name__}: {error})"
        return f"{self._path.name} has {count} lines"


def _sidecar_of(path: Path) -> Path:
    """Return the path of the sidecar that belongs to a shard."""
    return path.with_name(path.name.replace(".extxyz", ".txt"))
