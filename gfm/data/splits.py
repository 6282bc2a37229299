"""Train, validation and test by hash of group: a pure function, so that no list of members is ever kept.

What must not be torn apart (all conformers of a molecule, all frames of a relaxation) shares one group and so
falls into one split, in every dataset, on every machine, whatever was ingested before or after it.

Source: SplitMix64's mixing function, doi:10.1145/2660193.2660195.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gfm.errors import ConfigError

__all__ = ["SPLITS", "split_of"]

SPLITS: tuple[str, str, str] = ("train", "validation", "test")


def split_of(
    groups: NDArray[np.uint64], fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> NDArray[np.uint8]:
    """Return the split of each structure (G,), an index into `SPLITS`.

    Args:
        groups: Hash of each structure's group (G,).
        fractions: Expected share of groups in each split, in the order of `SPLITS`; they add up to 1.
        seed: Another seed gives an independent partition.

    Raises:
        ConfigError: The fractions are not three numbers from 0 to 1 that add up to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1.0) > 1e-9:
        raise ConfigError(
            f"split fractions {tuple(fractions)}: expected three numbers from 0 to 1 that add up to 1"
        )
    salt = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64))
    # 53 bits are what a float64 holds exactly: uniform in [0, 1).
    uniform = (_mix(np.asarray(groups, dtype=np.uint64) ^ salt) >> np.uint64(11)) * 2.0**-53
    splits = np.zeros(len(uniform), dtype=np.uint8)
    # A split of no share gets no member even where rounding of the sums would leave it one.
    if fractions[1] > 0 or fractions[2] > 0:
        splits[uniform >= fractions[0]] = 1 if fractions[1] > 0 else 2
    if fractions[2] > 0:
        splits[uniform >= fractions[0] + fractions[1]] = 2
    return splits


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits so that each input bit changes half of the output bits (arithmetic modulo 2**64)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
