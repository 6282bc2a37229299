"""JSON in compiled code: steps over text from place to place, exact, and giving up at what is unusual.

Every function takes a place and returns the one behind what it read, or -1 where that is not strict JSON of
printable ASCII without backslashes. The text must end with a byte 0, which is nothing in JSON: no loop runs
past it, and -1 is its place, so that a caller may hand -1 on without looking.

Numba looks for changes in the file of the outermost kernel only: whoever changes this one changes
`ingest.readers.mptrj_scan` too, or removes its cache.

Source: RFC 8259.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from ingest.readers.numbers import parse_decimal

__all__ = ["ARRAY", "NULL", "OBJECT", "Text", "go_on", "is_word", "read_key", "read_number", "read_string",
           "read_vector", "read_vectors", "skip_blanks", "skip_value", "start", "word"]  # fmt: skip

Text = NDArray[np.uint8]
ARRAY, OBJECT = b"[{"  # what closes one is two more
NULL = ord("n")  # how the word begins
_DEPTH = 60  # of what is skipped; parsers go on to about 1000
_LONGEST = 64  # bytes of a number that is skipped
_COMMA, _COLON, _QUOTE, _BACKSLASH, _PLUS, _MINUS, _POINT, _ZERO, _TRUE, _FALSE = b',:"\\+-.0tf'


def word(text: str) -> Text:
    """Return the bytes of a text."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


_IN_STRINGS = np.array([32 <= byte <= 126 and byte not in (_QUOTE, _BACKSLASH) for byte in range(256)])
_LITERALS = word("null"), word("true"), word("false")


@numba.njit(nogil=True, cache=True)
def start(text: Text, at: int, kind: int) -> tuple[int, bool]:
    """Begin a list or object: the place of its first entry, or behind it, and whether it has any."""
    if text[at] != kind:
        return -1, False
    at = skip_blanks(text, at + 1)
    return (at + 1, False) if text[at] == kind + 2 else (at, True)


@numba.njit(nogil=True, cache=True)
def go_on(text: Text, at: int, kind: int) -> tuple[int, bool]:
    """Go on behind an entry: the place of the next, or behind the list or object, and whether there is one."""
    at = skip_blanks(text, at)
    if text[at] == _COMMA:
        return skip_blanks(text, at + 1), True
    return (at + 1 if text[at] == kind + 2 else -1), False


@numba.njit(nogil=True, cache=True)
def read_key(text: Text, at: int) -> tuple[int, int]:
    """Return the place behind a key, and that of its value."""
    stop = read_string(text, at)
    at = skip_blanks(text, stop)
    return (stop, skip_blanks(text, at + 1)) if text[at] == _COLON else (-1, -1)


@numba.njit(nogil=True, cache=True)
def read_string(text: Text, at: int) -> int:
    """Return the place behind a string."""
    if text[at] != _QUOTE:
        return -1
    at += 1
    while _IN_STRINGS[text[at]]:
        at += 1
    return at + 1 if text[at] == _QUOTE else -1


@numba.njit(nogil=True, cache=True)
def is_word(text: Text, at: int, what: Text) -> bool:
    """Say whether certain bytes stand at a place."""
    k = 0
    while k < len(what) and text[at + k] == what[k]:
        k += 1
    return k == len(what)


@numba.njit(nogil=True, cache=True)
def skip_blanks(text: Text, at: int) -> int:
    """Return the place of what is no blank."""
    while text[at] == 32 or text[at] == 10 or text[at] == 13 or text[at] == 9:
        at += 1
    return at


@numba.njit(nogil=True, cache=True)
def skip_value(text: Text, at: int) -> int:
    """Return the place behind any value."""
    depth, kinds = 0, 0  # kinds: a bit for each open list (0) or object (1), the innermost lowest
    while True:
        byte, more = text[at], False
        if byte == OBJECT or byte == ARRAY:  # noqa: SIM109
            if depth == _DEPTH:
                return -1
            at, more = start(text, at, OBJECT if byte == OBJECT else ARRAY)
            if more:
                depth += 1
                kinds = kinds << 1 | (1 if byte == OBJECT else 0)
        else:
            at = _skip_scalar(text, at)
        while depth > 0 and not more:
            at, more = go_on(text, at, OBJECT if kinds & 1 else ARRAY)
            if not more:
                depth -= 1
                kinds >>= 1
        if depth == 0:
            return at
        if kinds & 1:
            _, at = read_key(text, at)


@numba.njit(nogil=True, cache=True)
def _skip_scalar(text: Text, at: int) -> int:
    """Return the place behind a string, number, or null, true, false."""
    if text[at] == _QUOTE:
        return read_string(text, at)
    if text[at] == NULL or text[at] == _TRUE or text[at] == _FALSE:
        for literal in _LITERALS:
            if is_word(text, at, literal):
                return at + len(literal)
    return _skip_number(text, at)


@numba.njit(nogil=True, cache=True)
def read_vectors(text: Text, at: int, out: NDArray[np.float64]) -> tuple[int, int]:
    """Read a list of vectors into rows (R, 3): the place behind it, and how many there are."""
    count = 0
    at, more = start(text, at, ARRAY)
    while more:
        if count == len(out):
            return -1, 0
        at = read_vector(text, at, out[count])
        count += 1
        at, more = go_on(text, at, ARRAY)
    return at, count


@numba.njit(nogil=True, cache=True)
def read_vector(text: Text, at: int, out: NDArray[np.float64]) -> int:
    """Read a list of three numbers; return the place behind it."""
    at, more = start(text, at, ARRAY)
    for k in range(3):
        if not more:
            return -1
        at, out[k] = read_number(text, at)
        at, more = go_on(text, at, ARRAY)
    return -1 if more else at


@numba.njit(nogil=True, cache=True)
def read_number(text: Text, at: int) -> tuple[int, float]:
    """Read a number to the bit: the place behind it, and what it is. The integer -0 counts as unusual."""
    whole = _skip_whole(text, at)
    if whole < 0:
        return -1, 0.0
    value, stop, known = parse_decimal(text, at, len(text))
    if not known or (stop == whole and value == 0.0 and text[at] == _MINUS):
        return -1, 0.0
    return stop, value


@numba.njit(nogil=True, cache=True)
def _skip_number(text: Text, at: int) -> int:
    """Return the place behind a number that no parser finds too long or too large."""
    begin, at = at, _skip_whole(text, at)
    if text[at] == _POINT:
        at = _skip_digits(text, at + 1)
    if text[at] | 32 == 101:  # e E
        at += 1
        if text[at] == _MINUS or text[at] == _PLUS:
            at += 1
        first = at
        at = _skip_digits(text, at)
        if not first < at <= first + 2:
            return -1
    return at if at - begin <= _LONGEST else -1


@numba.njit(nogil=True, cache=True)
def _skip_whole(text: Text, at: int) -> int:
    """Return the place behind a number's sign and whole digits, if what follows can be JSON."""
    first = at + 1 if text[at] == _MINUS else at
    at = _skip_digits(text, first)
    if at == first or (text[first] == _ZERO and at > first + 1):
        return -1
    return -1 if text[at] == _POINT and not 48 <= text[at + 1] <= 57 else at


@numba.njit(nogil=True, cache=True)
def _skip_digits(text: Text, at: int) -> int:
    """Return the place behind digits."""
    while 48 <= text[at] <= 57:
        at += 1
    return at
