"""Extended XYZ text as frames, fast and without trust: a count line, a header line, one row per atom.

Plain frames come many at a time, as columns, from compiled code; whatever is unusual is read line by line, with
the same meaning. Both keep in step when a frame is damaged: a line that holds one whole number and nothing else
begins a frame, so a frame with too few or too many rows is one refused record, and the next is read again.

Source: the extended XYZ specification, github.com/libAtoms/extxyz.
"""

import io
from collections.abc import Iterator

from gfm.errors import CorruptDataError
from ingest.readers.frame import Frame, FrameError
from ingest.readers.runs import Run, Scanner
from ingest.readers.scan import MAX_ATOMS, MAX_LINE
from ingest.readers.window import STREAM_ERRORS, Window, damaged, find_text, is_packed, open_text

__all__ = ["STREAM_ERRORS", "damaged", "find_text", "is_packed", "open_text", "read_frames", "seek_frame"]


def read_frames(
    stream: io.BufferedIOBase, keys: dict[str, int], start: int = 0, stop: int | None = None
) -> Iterator[Run | Frame | FrameError]:
    """Yield the frames whose count line begins in a range of bytes, and what lies between as errors.

    Args:
        stream: Open at ``start``, which is 0 or what `seek_frame` returned.
        keys: Header keys whose values a run shall hold, with their kinds (`ingest.readers.scan`).
        start: Byte of the first frame.
        stop: Byte at which no further frame begins; None for the end of the text.

    Raises:
        CorruptDataError: It is a tar archive, or a packed stream that is damaged and not only cut short.
    """
    window, scanner, index = Window(stream, start), Scanner(keys), 0
    while True:
        found: Run | Frame | FrameError | None
        begin = window.offset
        try:
            found = scanner.next(window, index, stop)
        except CorruptDataError:
            raise
        except STREAM_ERRORS:
            found = None  # line by line it comes out which frame is concerned
        if begin == 0 and window.is_archive:
            raise CorruptDataError("a tar archive, not text: unpack it (tar -xf) and give the folder")
        if found is None:
            found = _step(window, index, stop)
        if found is None:
            return
        index += len(found) if isinstance(found, Run) else 1
        yield found
        if isinstance(found, FrameError) and found.is_last:
            return


def _step(window: Window, index: int, stop: int | None) -> Frame | FrameError | None:
    """Read one frame, or one stretch that is none, line by line; None at the end of the range."""
    begin = window.offset
    try:
        line = b"\n"
        while line and not line.strip():
            begin = window.offset
            line = _line(window)
        # A line that begins no frame belongs to the range before it; no range starts with one.
        if not line or (stop is not None and begin >= stop and _is_count(line)):
            return None
        if not _is_count(line):
            _skip(window)
            return FrameError(index, begin, "bad-frame", f"expected a number of atoms, found {line[:60]!r}")
        num_atoms, header = int(line), _line(window)
        rows: list[bytes] = []
        line = _peek(window)
        while line and len(rows) < num_atoms and not _is_count(line):
            rows.append(_line(window))
            line = _peek(window)
        if len(rows) < num_atoms:
            reason = "bad-frame" if line else "truncated-file"
            return FrameError(index, begin, reason, f"{len(rows)} rows of the {num_atoms} announced")
        if not line and not (rows or [header])[-1].endswith(b"\n"):
            # Nothing tells a last number that was cut in half from a whole one.
            return FrameError(index, begin, "truncated-file", "the last line has no end")
        if rows and line.strip() and not _is_count(line) and len(line.split()) == len(rows[-1].split()):
            _skip(window)
            return FrameError(index, begin, "bad-frame", f"more rows than the {num_atoms} announced")
        return Frame(index, begin, num_atoms, header, rows)
    except CorruptDataError:
        raise
    except STREAM_ERRORS as error:
        # What was unpacked before is good; where the stream breaks off, all that follows is lost at once.
        reason = "truncated-file" if isinstance(error, EOFError) else "corrupt-file"
        return FrameError(index, begin, reason, f"{type(error).__name__}: {error}", is_last=True)


def seek_frame(stream: io.BufferedIOBase, start: int) -> int:
    """Move a plain file to the first frame that begins at a byte or after it; return where that is."""
    if start == 0:
        return stream.seek(0)
    stream.seek(start - 1)
    window = Window(stream, start - 1)
    window.line()  # the rest of the line before, or its end
    _skip(window)
    return stream.seek(window.offset)


def _peek(window: Window) -> bytes:
    """Return the next line.

    Raises:
        OSError: It is longer than any line of such a file; memory is not spent on finding its end.
    """
    line = window.peek()
    if len(line) == MAX_LINE and not line.endswith(b"\n"):
        raise OSError(f"a line of more than {MAX_LINE} bytes")
    return line


def _line(window: Window) -> bytes:
    """Return the next line and go behind it; raises as `_peek` does."""
    line = _peek(window)
    window.at += len(line)
    return line


def _skip(window: Window) -> None:
    """Go on to the next line that may begin a frame."""
    line = window.peek()
    while line and not _is_count(line):
        window.at += len(line)
        line = window.peek()


def _is_count(line: bytes) -> bool:
    """Say whether a line holds one whole number and nothing else."""
    if len(line) > 24:
        return False
    word = line.strip()
    return word.isdigit() and int(word) <= MAX_ATOMS
