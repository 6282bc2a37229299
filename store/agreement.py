"""Ranks that do something together: the same thing, and all or none of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from gfm.errors import DataError, GfmError
from store.dataset import Dataset

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

__all__ = ["require_same", "together"]

T = TypeVar("T")


def require_same(dataset: Dataset, ids: NDArray[np.integer] | None, comm: "Comm") -> None:
    """Check that all ranks mean the same rows of the same content; collective.

    Raises:
        DataError: They do not; raised on all ranks.
    """
    rows = "all" if ids is None else xxhash.xxh3_64_hexdigest(np.unique(ids).astype(np.int64).data)
    wanted = (dataset.manifest.content_hash, len(dataset), rows)
    if len(set(comm.allgather(wanted))) > 1:
        raise DataError("ranks were given different datasets or different ids; they must be the same")


def together(comm: "Comm", action: Callable[[], T]) -> T:
    """Run an action on every rank; if it fails on one, raise on all, so that none waits for ever; collective.

    Raises:
        GfmError: What a rank raised (an OSError or MemoryError likewise): its own error where a rank has one,
            else that of the first rank that failed, named.
    """
    failure: Exception | None = None
    try:
        result = action()
    except (GfmError, OSError, MemoryError) as error:
        failure = error
    failures = [(rank, met) for rank, met in enumerate(comm.allgather(failure)) if met is not None]
    if failures:
        rank, first = failures[0]
        raise failure or type(first)(f"rank {rank}: {first}")
    return result
