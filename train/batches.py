"""Global batches by plain shuffling, dealt to the ranks by cost.

The order of an epoch is a keyed permutation evaluated where it is needed: a Feistel network over the smallest
even power of two, walked until it falls inside (Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9). It is a
pure function of (seed, epoch), needs no memory however many structures there are, and starts anywhere.

A global batch is dealt longest processing time first (Graham 1969, doi:10.1137/0117039) under equal counts:
which structures make up the batch, and so its gradient, does not depend on the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["GlobalBatches", "Share", "deal", "shuffled"]

_ROUNDS = 8


def shuffled(positions: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return where the permutation of ``range(size)`` of (seed, epoch) puts these positions (any shape)."""
    bits = max(2, -(-max(size - 1, 1).bit_length() // 2))
    half, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    base = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.array([epoch], dtype=np.uint64))
    keys = _mix(base + np.arange(_ROUNDS).astype(np.uint64))
    values = positions.astype(np.uint64).reshape(-1)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= size]
    return values.astype(np.int64).reshape(positions.shape)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits (splitmix64; Steele et al. 2014, doi:10.1145/2714064.2660195)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def deal(costs: NDArray[np.float64], ranks: int) -> NDArray[np.int64]:
    """Return the rank that each structure of a global batch goes to (B,).

    Costs are dealt in falling order, each to the least loaded rank that may take one more; counts differ by at
    most one. Ties go to the earlier structure and the lower rank, so every rank finds the same result.
    """
    order = np.argsort(-costs, kind="stable")
    owners: NDArray[np.int64] = _deal(order, np.asarray(costs, dtype=np.float64), ranks)
    return owners


@numba.njit(nogil=True, cache=True)
def _deal(order: NDArray[np.int64], costs: NDArray[np.float64], ranks: int) -> NDArray[np.int64]:
    owners = np.empty(len(costs), dtype=np.int64)
    loads, counts = np.zeros(ranks), np.zeros(ranks, dtype=np.int64)
    smallest, extra = len(costs) // ranks, len(costs) % ranks
    for i in order:
        best = -1
        for rank in range(ranks):
            free = counts[rank] < smallest or (counts[rank] == smallest and extra > 0)
            if free and (best < 0 or loads[rank] < loads[best]):
                best = rank
        extra -= 1 if counts[best] == smallest else 0
        counts[best] += 1
        loads[best] += costs[i]
        owners[i] = best
    return owners


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch.

    Attributes:
        ids: Dataset row ids for this rank, in the batch's order. Never empty, see ``idle``.
        idle: The batch had fewer structures than ranks and none for this one: ``ids`` is a stand-in that must
            not count, so that the rank can take part in the step's collectives.
        size: Structures in the whole global batch.
        stop: Position in the epoch after this batch.
    """

    ids: NDArray[np.int64]
    idle: bool
    size: int
    stop: int


@dataclass(frozen=True)
class GlobalBatches:
    """The steps of every epoch over these structures.

    Attributes:
        ids: Dataset row ids to train on (n,).
        costs: What each of them costs a rank (n,).
        size: Structures per global batch; the last one of an epoch may be smaller, none is left out.
        ranks: Number of ranks.
        seed: Seed of the order.
        balance: Deal by cost; else by count alone.
    """

    ids: NDArray[np.int64]
    costs: NDArray[np.float64]
    size: int
    ranks: int
    seed: int
    balance: bool = True

    def __len__(self) -> int:
        """Return the number of steps of a whole epoch."""
        return -(-len(self.ids) // self.size)

    def shares(self, epoch: int, rank: int, start: int = 0) -> Iterator[Share]:
        """Yield one rank's part of every step of an epoch, from a position in the epoch on."""
        for first in range(start, len(self.ids), self.size):
            stop = min(first + self.size, len(self.ids))
            rows = shuffled(np.arange(first, stop), len(self.ids), self.seed, epoch)
            owners = deal(self.costs[rows] if self.balance else np.zeros(len(rows)), self.ranks)
            mine = self.ids[rows[owners == rank]]
            idle = len(mine) == 0
            yield Share(self.ids[rows[:1]] if idle else mine, idle, len(rows), stop)
