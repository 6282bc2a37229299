"""Decimal text in compiled code: the bits of ``float()``, or the honest answer that it must be asked."""

import struct
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.readers.numbers import parse_decimal

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SIZES = st.sampled_from([f"%.{digits}{kind}" for digits in (0, 3, 8, 16, 17, 20, 25) for kind in "feg"])
DIGITS = st.text("0123456789", max_size=24)
POWER = st.just("") | st.integers(-400, 400).map("e{}".format) | st.integers(0, 99).map("E+{:04d}".format)
SIGN, POINT = st.sampled_from(["", "-", "+"]), st.sampled_from(["", "."])
SPELLED = st.tuples(SIGN, DIGITS, POINT, DIGITS, POWER).map("".join)


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def _parse(text: str) -> tuple[float, int, bool]:
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    value, end, known = parse_decimal(data, 0, len(data))
    return value, end, known


def _agrees(text: str) -> bool:
    """Say whether a whole text was taken as a number; it must then be the one of ``float()``."""
    value, end, known = _parse(text)
    if not known or end < len(text):
        return False
    assert _bits(value) == _bits(float(text)), text
    return True


@settings(max_examples=500, deadline=None)
@given(FINITE)
def test_what_python_writes_is_read_to_the_bit(value: float) -> None:
    assert _agrees(repr(value)) or abs(value) < 3e-308


@settings(max_examples=500, deadline=None)
@given(FINITE, SIZES)
def test_any_number_of_digits(value: float, size: str) -> None:
    _agrees(size % value)


@settings(max_examples=500, deadline=None)
@given(SPELLED)
@example("1234567890123456789012345e-20")
@example("0.00000000000000000000000012345678901234567")
@example("9007199254740993")  # half way between two float64: to even
@example("9007199254740993.0000000000000000001")
@example("2916404267196254.75")
@example("1e23")
@example("8.5e22")
@example("-0.0")
def test_spellings(text: str) -> None:
    _agrees(text)


@settings(max_examples=300, deadline=None)
@given(st.floats(min_value=1e-30, max_value=1e30), st.sampled_from([18, 19, 20, 25, 60, 800]))
def test_the_middle_between_two_numbers(value: float, digits: int) -> None:
    with localcontext(prec=800):
        middle = (Decimal(value) + Decimal(float(np.nextafter(value, np.inf)))) / 2
    _agrees(f"{middle:f}"[:digits])


@pytest.mark.parametrize(
    "text", ["14.41485833", "27.066767294881018", "-1.185886733917819e-10", "+5.", ".5", "1E+2"]
)
def test_usual_spellings_need_no_help(text: str) -> None:
    assert _agrees(text)


@pytest.mark.parametrize(
    "text", ["", ".", "-", "nan", "inf", "-inf", "1e", "e5", "1e99999", "1e400", "5e-324", "x"]
)
def test_what_is_not_certain_is_left_to_python(text: str) -> None:
    assert not _parse(text)[2]


@pytest.mark.parametrize(("text", "end"), [("1.5 2", 3), ("1_0", 1), ("1.5.5", 3), ("0x10", 1), ("1d5", 1)])
def test_it_stops_where_the_number_does(text: str, end: int) -> None:
    assert _parse(text)[1] == end
