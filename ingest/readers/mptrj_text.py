"""The text of MPtrj: which materials begin in a stretch of it, and their frames as Python parses them.

The text can be cut anywhere, since ``"mp-123": {`` begins materials only (a frame id has further numbers).
Where orjson refuses a material (NaN, damage), its frames are parsed one by one, so that only bad ones are lost.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import orjson

from gfm.errors import CorruptDataError
from ingest.readers.records import Refused
from ingest.readers.text import STREAM_ERRORS, damaged

__all__ = ["ID_BYTES", "MATERIAL", "Material", "frames_of", "materials"]

MATERIAL = re.compile(rb'"((?:mp|mvc)-\d+)"\s*:\s*\{')
_FRAME = re.compile(r'\s*,?\s*"([^"\\]{1,100})"\s*:\s*(?=\{)')
_NEXT_FRAME = re.compile(r'"((?:mp|mvc)-\d+(?:-\d+)+)"\s*:\s*\{\s*"')
_CHUNK = 1 << 20  # what is read at least; it stays in a processor's cache
ID_BYTES = 128  # a material id and its colon are shorter
_MAX_MATERIAL = 1 << 28


@dataclass
class Material:
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

    @property
    def frames(self) -> bytes:
        """The object that holds the frames."""
        # Behind the last material the object that holds all materials ends.
        return self.text.removesuffix(b"}") if self.last else self.text


def materials(stream: BufferedIOBase, start: int, stop: int | None) -> Iterator[Material]:
    """Yield the materials whose id begins in a range of bytes; the stream stands at its start.

    Raises:
        CorruptDataError: A material has no end within a size that none has. Or it is packed
            and damaged, so that what was read before may be wrong.
    """
    buffer, base = b"", start  # base: byte of the file at which the buffer begins
    name, offset, value = "", 0, -1  # the material being gathered: its id, where it is, where its text begins
    at = 0  # everything before is searched
    broken = None
    while True:
        match = MATERIAL.search(buffer, at)
        if match is None:
            at = max(at, len(buffer) - ID_BYTES)
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
            except EOFError as error:
                chunk, broken = b"", ("truncated-file", f"{type(error).__name__}: {error}")
            except STREAM_ERRORS as error:
                raise damaged(error) from error
            if not chunk:
                break
            buffer += chunk
            continue
        if value >= 0:
            yield Material(name, offset, _without_comma(buffer, value, match.start()))
        value, offset, at = match.end() - 1, base + match.start(), match.end()
        if stop is not None and offset >= stop:
            return
        name = match[1].decode()
    if value >= 0:
        yield Material(name, offset, buffer[value:].rstrip(), True, broken)
    elif broken is not None:
        yield Material("?", base, b"{}}", True, broken)


def _without_comma(buffer: bytes, begin: int, stop: int) -> bytes:
    """Return a stretch of text without blanks and a comma at its end; copied once, since it is long."""
    tail = buffer[max(begin, stop - 8) : stop]
    kept = tail.rstrip().removesuffix(b",")
    if not kept:
        return buffer[begin:stop].rstrip().removesuffix(b",")
    return buffer[begin : stop - len(tail) + len(kept)]


def frames_of(material: Material) -> Iterator[tuple[str, Any]]:
    """Yield each frame's id and value; a `Refused` instead of the value where it cannot be read."""
    told = False
    try:
        frames = orjson.loads(material.frames)
    except orjson.JSONDecodeError:
        for name, frame in _frames_one_by_one(material):
            told |= isinstance(frame, Refused) and frame.reason != "bad-json"
            yield name, frame
    else:
        yield from frames.items()
    if material.broken is not None and not told:
        yield "?", Refused(*material.broken)


def _frames_one_by_one(material: Material) -> Iterator[tuple[str, Any]]:
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
