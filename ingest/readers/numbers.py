"""Decimal text to float64 inside numba kernels: the number of Python's ``float()`` to the bit, or none at all.

A word that this cannot answer with certainty (nan, inf, underscores, subnormal results) is left to the caller,
who asks ``float()``.

Numba keeps compiled kernels beside the file of the outermost one and looks at that file only: whoever changes
this one changes `ingest.readers.scan` too, or removes its cache.

Source: Clinger, doi:10.1145/93542.93557 (short decimals: one multiplication or division is exact);
Lemire, doi:10.1002/spe.2984 (any 19 digits: one or two products of 64 bits with a table of powers of five).
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["parse_decimal"]

_LOWEST, _HIGHEST = -342, 308  # powers of ten in the table; outside of it ``float()`` is asked
_DIGITS = 19  # so many digits always fit 64 bits
_EXACT = np.array([10.0**power for power in range(23)])  # exact in float64


def _powers_of_five() -> NDArray[np.uint64]:
    """Return the leading 128 bits of 5^q as (high, low), truncated for q >= 0 and rounded up below."""
    rows = []
    for q in range(_LOWEST, _HIGHEST + 1):
        power = 5 ** abs(q)
        bits = power.bit_length()
        if q >= 0:
            value = power << (128 - bits) if bits <= 128 else power >> (bits - 128)
        else:
            exact = q >= -27  # there the reciprocal's last bit counts: exact ties are possible
            value = (1 << (bits + 127 if exact else 2 * bits + 128)) // power + 1
            value >>= max(value.bit_length() - 128, 0)
        rows.append((value >> 64, value & 0xFFFFFFFFFFFFFFFF))
    return np.array(rows, dtype=np.uint64)


_FIVES = _powers_of_five()


@numba.njit(nogil=True, cache=True, error_model="numpy")
def parse_decimal(text: NDArray[np.uint8], start: int, stop: int) -> tuple[float, int, bool]:
    """Read a decimal number from text, up to the first byte that cannot belong to it.

    Args:
        text: Bytes (T,).
        start: First byte of the number.
        stop: End of what may be read.

    Returns:
        The number, the byte behind it, and whether it is certain; where it is not, ``float()`` must be asked.
    """
    at = start
    negative = False
    if at < stop and (text[at] == 45 or text[at] == 43):  # - +
        negative = text[at] == 45
        at += 1
    mantissa = np.uint64(0)
    digits, scale = 0, 0  # significant digits, power of ten of the last digit that was taken
    first = at
    while at < stop:
        digit = text[at] - np.uint8(48)
        if digit > 9:
            break
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        at += 1
    length = at - first
    if at < stop and text[at] == 46:  # .
        at += 1
        fraction = at
        while at < stop:
            digit = text[at] - np.uint8(48)
            if digit > 9:
                break
            mantissa = mantissa * np.uint64(10) + np.uint64(digit)
            at += 1
        scale = fraction - at
        length += at - fraction
    if length == 0:
        return 0.0, at, False
    digits = length
    more = False
    if digits > _DIGITS:
        mantissa, dropped, more = _leading_digits(text, first)
        scale += dropped
    if at < stop and (text[at] | np.uint8(32)) == 101:  # e E
        exponent, at, known = _exponent(text, at + 1, stop)
        if not known:
            return 0.0, at, False
        scale += exponent
    if not more and mantissa <= np.uint64(1 << 53) and -22 <= scale <= 22:
        value = float(mantissa)
        value = value * _EXACT[scale] if scale >= 0 else value / _EXACT[-scale]
    else:
        value, known = _nearest(mantissa, scale)
        if known and more:  # the digits left out lie between this mantissa and the next
            other, known = _nearest(mantissa + np.uint64(1), scale)
            known = known and other == value
        if not known:
            return 0.0, at, False
    return -value if negative else value, at, True


@numba.njit(nogil=True, cache=True)
def _exponent(text: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, bool]:
    """Read an exponent of at most four digits: its value, the byte behind it, and whether it is one."""
    negative = False
    if at < stop and (text[at] == 45 or text[at] == 43):
        negative = text[at] == 45
        at += 1
    first, value = at, 0
    while at < stop and at < first + 5:
        digit = text[at] - np.uint8(48)
        if digit > 9:
            break
        value = value * 10 + int(digit)
        at += 1
    return -value if negative else value, at, first < at < first + 5


@numba.njit(nogil=True, cache=True)
def _leading_digits(text: NDArray[np.uint8], at: int) -> tuple[np.uint64, int, bool]:
    """Return the first 19 significant digits of a long number, how many follow, and whether any is not 0."""
    mantissa = np.uint64(0)
    taken, dropped = 0, 0
    more = False
    while at < len(text):
        digit = text[at] - np.uint8(48)
        if digit <= 9:
            if taken < _DIGITS:
                mantissa = mantissa * np.uint64(10) + np.uint64(digit)
                taken += 1 if mantissa > 0 else 0
            else:
                dropped += 1
                more |= digit > 0
        elif text[at] != 46:
            break
        at += 1
    return mantissa, dropped, more


@numba.njit(nogil=True, cache=True)
def _nearest(mantissa: np.uint64, scale: int) -> tuple[float, bool]:
    """Return the float64 nearest to mantissa * 10^scale, ties to even, and whether it is certain."""
    if mantissa == 0:
        return 0.0, True
    if scale < _LOWEST or scale > _HIGHEST:
        return 0.0, False
    shift = 0
    while mantissa < np.uint64(1 << 63):
        mantissa <<= np.uint64(1)
        shift += 1
    high, low = _product(mantissa, _FIVES[scale - _LOWEST, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):  # the bits that decide need the table's second half
        further, _ = _product(mantissa, _FIVES[scale - _LOWEST, 1])
        low += further
        if low < further:
            high += np.uint64(1)
        if low == np.uint64(0xFFFFFFFFFFFFFFFF) and not -27 <= scale <= 55:
            return 0.0, False
    upper = high >> np.uint64(63)
    drop = upper + np.uint64(9)
    bits = high >> drop  # 54 bits: the result's 53 and one to round by
    power = ((217706 * scale) >> 16) + 63 + int(upper) - shift  # binary exponent of the leading bit
    if power < -1022:
        return 0.0, False
    if (
        low <= np.uint64(1)
        and -4 <= scale <= 23
        and bits & np.uint64(3) == np.uint64(1)
        and bits << drop == high
    ):
        bits &= ~np.uint64(1)  # exactly half way: to even, which is down
    bits = (bits + (bits & np.uint64(1))) >> np.uint64(1)
    value = math.ldexp(float(bits), power - 52)
    return value, value < math.inf


@numba.njit(nogil=True, cache=True)
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return the 128 bits of a product of two 64-bit numbers as (high, low)."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    low = a0 * b0
    middle = a1 * b0 + (low >> half)
    other = a0 * b1 + (middle & mask)
    return a1 * b1 + (middle >> half) + (other >> half), (other << half) | (low & mask)
