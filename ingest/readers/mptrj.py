"""MPtrj: one JSON object of 12 GB, ``{material id: {frame id: {structure, energies, force, stress, ...}}}``.

The text can be cut anywhere, since ``"mp-123": {`` begins materials only (a frame id has further numbers). So a
part is a range of bytes and holds the materials whose id begins in it, and one material at a time is parsed.
Where orjson refuses a material (NaN, damage), its frames are parsed one by one, so that only bad ones are lost.

Source: Deng et al., doi:10.1038/s42256-023-00716-3; file doi:10.6084/m9.figshare.23713842.
"""

import gc
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import orjson

from gfm.data.structure import Structure
from gfm.data.units import KBAR
from gfm.errors import CorruptDataError, DataError
from ingest.readers.base import Block, Part, Published, Reader, find_files, hash_id
from ingest.readers.records import ATOMIC_NUMBERS, PERIODIC, BlockBuilder, Refused
from ingest.readers.text import STREAM_ERRORS, is_packed, open_text

__all__ = ["MPtrj"]

_MATERIAL = re.compile(rb'"((?:mp|mvc)-\d+)"\s*:\s*\{')
_FRAME = re.compile(r'\s*,?\s*"([^"\\]{1,100})"\s*:\s*(?=\{)')
_NEXT_FRAME = re.compile(r'"((?:mp|mvc)-\d+(?:-\d+)+)"\s*:\s*\{\s*"')
_SPECIES = itemgetter("species")
_CHUNK = 1 << 20  # what is read at least; it stays in a processor's cache
_ID_BYTES = 128  # a material id and its colon are shorter
_MAX_MATERIAL = 1 << 30


@dataclass
class _Material:
    """The text of one material's frames, braces included.

    Attributes:
        id: The material.
        offset: Where it begins, in bytes of the unpacked file.
        text: What stands up to the next material, or to the end.
        last: Whether the file ends behind it.
        broken: How unpacking the file ended, if not well: reason and message.
    """

    id: str
    offset: int
    text: bytes
    last: bool = False
    broken: tuple[str, str] | None = None


class MPtrj(Reader):
    """Reads ``MPtrj_2022.9_full.json``, plain or packed (.gz, .xz, .zip: one part then).

    Attributes:
        label: Which energy is read. The corrected one makes PBE and PBE+U calculations comparable.
        require_forces: Whether a frame without forces is refused.
    """

    NAME: ClassVar[str] = "mptrj"
    UNITS: ClassVar[dict[str, str]] = {
        "corrected_total_energy": "eV, total, with the corrections of the Materials Project",
        "uncorrected_total_energy": "eV, total, as computed by VASP",
        "force": "eV/angstrom, minus the gradient of the uncorrected energy (corrections are constant)",
        "stress": "kilobar, compression positive (VASP): -0.1 GPa each, tension positive",
        "structure.lattice.matrix": "angstrom, rows are lattice vectors",
        "structure.sites[].xyz": "angstrom, Cartesian",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "stress")

    label: Literal["corrected_total_energy", "uncorrected_total_energy"] = "corrected_total_energy"
    require_forces: bool = True

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published(
            "PBE and PBE+U (VASP, Materials Project)",
            "CC-BY-4.0",
            "10.6084/m9.figshare.23713842",
            f"total, {self.label.removesuffix('_total_energy')}",
        )

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each plain file into ranges of bytes; a packed one is one part.

        Raises:
            MissingDataError: There is no file.
            DataError: A file does not begin as MPtrj does.
        """
        parts: list[Part] = []
        for file in find_files(path, (".json", ".json.gz", ".json.xz", ".json.zip"), "MPtrj files"):
            size = file.stat().st_size
            packed = is_packed(file)
            try:
                with open_text(file) as stream:
                    head = stream.read(_ID_BYTES + 64).lstrip()
            except STREAM_ERRORS as error:
                parts.append(self.unreadable(file, f"{type(error).__name__}: {error}"))
                continue
            first = _MATERIAL.match(head[1:].lstrip())
            if not head.startswith(b"{") or (first is None and head[1:].strip() != b"}"):
                raise DataError(
                    f'{file}: begins with {head[:16]!r}; expected {{"mp-...": {{ (MPtrj: material, then frames)'
                )
            step = size if packed else max(part_bytes, _ID_BYTES)
            for start in range(0, size, step):
                stop = min(start + step, size)
                label = f"{file.name} bytes {start}..{stop}"
                parts.append(Part(self.NAME, str(file), start, stop, stop - start, label, {"packed": packed}))
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part."""
        builder = BlockBuilder()
        with open_text(Path(part.path)) as stream:
            if not part.extra["packed"]:
                stream.seek(part.start)
            stop = None if part.extra["packed"] else part.stop
            for material in _materials(stream, part.start, stop):
                frames = _frames(material)
                while self._fill(builder, part.path, material.id, frames):
                    yield builder.take()
        if builder:
            yield builder.take()

    def _fill(self, builder: BlockBuilder, path: str, material: str, frames: Iterator[tuple[str, Any]]) -> bool:
        """Gather frames of a material until there are no more, or (True) until a block is full."""
        # The parser makes thousands of lists, none of them garbage: looking for cycles in them is lost time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for frame_id, frame in frames:
                source = f"{path}:/{material}/{frame_id}"
                try:
                    if isinstance(frame, Refused):
                        raise frame
                    structure = self._structure(material, frame_id, frame)
                    builder.offer(structure, source, forces=self.require_forces)
                except Refused as refused:
                    builder.refuse(source, refused)
                if builder.full:
                    return True
        finally:
            if collecting:
                gc.enable()
        return False

    def _structure(self, material: str, frame_id: str, frame: Any) -> Structure:
        """Return the structure of one frame; its numbers are still to be checked.

        Raises:
            Refused: It cannot be a labelled structure.
        """
        if not isinstance(frame, dict):
            raise Refused("bad-frame", f"a {type(frame).__name__}, expected an object")
        try:
            structure = frame["structure"]
            matrix = structure["lattice"]["matrix"]
            sites = structure["sites"]
            numbers = _atomic_numbers(sites)
            positions = [site["xyz"] for site in sites]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise Refused("bad-structure", f"{type(error).__name__}: {error}") from None
        forces, stress = frame.get("force"), frame.get("stress")
        return Structure(
            numbers=np.array(numbers, dtype=np.uint8),
            positions=_numbers("positions", positions),
            cell=_numbers("cell", matrix),
            pbc=PERIODIC,
            energy=frame.get(self.label),
            forces=None if forces is None else _numbers("forces", forces),
            stress=None if stress is None else _numbers("stress", stress) * -KBAR,
            group=hash_id(f"mp:{material}"),
            key=hash_id(f"mptrj:{material}/{frame_id}"),
        )


def _numbers(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return nested lists as an array.

    Raises:
        Refused: They are ragged, or hold something that is no number.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"bad-{name}", error) from None


def _atomic_numbers(sites: Any) -> list[int]:
    """Return the atomic numbers of the sites.

    Raises:
        Refused: A site is shared by several elements, occupied in part, or held by no element.
    """
    try:
        numbers = [ATOMIC_NUMBERS[kind["element"]] for (kind,) in map(_SPECIES, sites) if kind["occu"] == 1]
        usual = len(numbers) == len(sites)
    except (KeyError, TypeError, ValueError):
        usual = False
    return numbers if usual else [_atomic_number(site["species"]) for site in sites]


def _atomic_number(species: Any) -> int:
    """Return the atomic number of a site.

    Raises:
        Refused: The site is shared by several elements, occupied in part, or held by no element.
    """
    if len(species) != 1 or species[0].get("occu", 1) != 1:
        found = ", ".join(f"{kind.get('element')} {kind.get('occu')}" for kind in species[:4])
        raise Refused("partial-occupancy", found)
    number = ATOMIC_NUMBERS.get(species[0]["element"])
    if number is None:
        raise Refused("bad-atomic-number", f"element {species[0]['element']!r}"[:100])
    return number


def _materials(stream: BufferedIOBase, start: int, stop: int | None) -> Iterator[_Material]:
    """Yield the materials whose id begins in a range of bytes; the stream stands at its start.

    Raises:
        CorruptDataError: A material has no end within a size that none has.
    """
    buffer, base = b"", start  # base: byte of the file at which the buffer begins
    name, offset, value = "", 0, -1  # the material being gathered: its id, where it is, where its text begins
    at = 0  # everything before is searched
    broken = None
    while True:
        match = _MATERIAL.search(buffer, at)
        if match is None:
            at = max(at, len(buffer) - _ID_BYTES)
            done = at if value < 0 else value
            buffer, base, at, value = buffer[done:], base + done, at - done, min(value, 0)
            if len(buffer) > _MAX_MATERIAL:
                raise CorruptDataError(
                    f"byte {base}: material {name!r} has no end within {_MAX_MATERIAL} bytes"
                )
            try:
                # As much as there is already, or a large material would be copied once per chunk.
                # read would lose what it gathered before an error.
                chunk = stream.read1(max(_CHUNK, len(buffer)))
            except STREAM_ERRORS as error:
                reason = "truncated-file" if isinstance(error, EOFError) else "corrupt-file"
                chunk, broken = b"", (reason, f"{type(error).__name__}: {error}")
            if not chunk:
                break
            buffer += chunk
            continue
        if value >= 0:
            yield _Material(name, offset, buffer[value : match.start()].rstrip().removesuffix(b","))
        value, offset, at = match.end() - 1, base + match.start(), match.end()
        if stop is not None and offset >= stop:
            return
        name = match[1].decode()
    if value >= 0:
        yield _Material(name, offset, buffer[value:].rstrip(), True, broken)
    elif broken is not None:
        yield _Material("?", base, b"{}}", True, broken)


def _frames(material: _Material) -> Iterator[tuple[str, Any]]:
    """Yield each frame's id and value; a `Refused` instead of the value where it cannot be read."""
    told = False
    try:
        # Behind the last material the object that holds all materials ends.
        frames = orjson.loads(material.text.removesuffix(b"}") if material.last else material.text)
    except orjson.JSONDecodeError:
        for name, frame in _frames_one_by_one(material):
            told |= isinstance(frame, Refused) and frame.reason != "bad-json"
            yield name, frame
    else:
        yield from frames.items()
    if material.broken is not None and not told:
        yield "?", Refused(*material.broken)


def _frames_one_by_one(material: _Material) -> Iterator[tuple[str, Any]]:
    """Yield the frames of a material that is not strict JSON as a whole; go on behind what is damaged."""
    text = material.text.decode(errors="replace")
    decoder = json.JSONDecoder(parse_constant=float)
    at = 1
    while True:
        match = _FRAME.match(text, at)
        if match is not None:
            try:
                frame, at = decoder.raw_decode(text, match.end())
                yield match[1], frame
                continue
            except (ValueError, RecursionError) as error:
                name, found, at = match[1], str(error), match.end()
        else:
            rest = "".join(text[at : at + 200].split())
            if rest == ("}}" if material.last else "}"):
                return
            if rest.startswith("}") and len(rest) > 2:
                # The next material's id is damaged: its frames are there, but not what they belong to.
                for lost in _NEXT_FRAME.finditer(text, at):
                    yield lost[1], Refused("bad-json", f"material unknown, near byte {material.offset}")
                return
            name, found = "?", f"expected a frame, found {rest[:60]!r}"
        following = _NEXT_FRAME.search(text, at + 1)
        reason, ending = "bad-json", ""
        if material.last and following is None:
            reason, ending = material.broken or ("truncated-file", "the file ends")
        yield name, Refused(reason, f"material at byte {material.offset}: {found} {ending}".rstrip())
        if following is None:
            return
        at = following.start()
