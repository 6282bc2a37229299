"""From ids to graphs, one thread ahead of the loop.

The thread fetches samples (its gets are the only MPI calls while it lives) and builds neighbour lists, which
run without the interpreter's lock; the loop meanwhile computes.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.errors import ConfigError
from gfm.model.config import ModelConfig
from gfm.model.graph import Graph, graph_from_batch
from gfm.runtime.registry import suggest

__all__ = ["Ahead", "GraphMaker", "head_lookup"]

T = TypeVar("T")
U = TypeVar("U")


def head_lookup(stored: Sequence[str], trained: Sequence[str]) -> NDArray[np.uint8]:
    """Return, for each of a dataset's source names, its index among the model's (255 where it has none)."""
    return np.array([trained.index(name) if name in trained else 255 for name in stored], dtype=np.uint8)


@dataclass(frozen=True)
class GraphMaker:
    """Makes graphs that a model takes from batches of a dataset.

    Attributes:
        model: The model's configuration: cutoff and neighbour cap.
        stored: Source names of the dataset, in its order.
        trained: Source names of the model, in its order.
        dtype: Of positions and forces.
        device: Where the graphs go.
    """

    model: ModelConfig
    stored: Sequence[str]
    trained: Sequence[str]
    dtype: torch.dtype
    device: torch.device

    def __call__(self, batch: RaggedBatch) -> Graph:
        """Return the batch as a graph, its sources numbered as the model's heads.

        Raises:
            ConfigError: A structure is from a source the model was not trained on.
        """
        heads = head_lookup(self.stored, self.trained)[batch.columns["dataset"]]
        if (heads == 255).any():
            name = self.stored[int(batch.columns["dataset"][heads == 255][0])]
            raise ConfigError(
                f"the model has no head for the source {name!r}.{suggest(name, self.trained)} "
                f"It was trained on: {', '.join(self.trained)}"
            )
        renamed = RaggedBatch({**batch.columns, "dataset": heads}, batch.offsets, batch.present)
        graph = graph_from_batch(renamed, self.model.cutoff, self.model.max_neighbors, dtype=self.dtype)
        return graph if self.device.type == "cpu" else graph.to(self.device, self.dtype)


class Ahead(Generic[T, U]):
    """Iterate over ``prepare(item)`` with one thread working up to ``depth`` items ahead.

    Use it as a context manager: leaving it, early or not, ends and joins the thread, so that what follows may
    use MPI again.
    """

    def __init__(self, items: Iterable[T], prepare: Callable[[T], U], depth: int = 3) -> None:
        self._items, self._prepare = items, prepare
        self._ready: queue.Queue[tuple[str, U | BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gfm-feed", daemon=True)

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", self._prepare(item)):
                    return
            self._put("end", None)
        except BaseException as error:  # raised again in the loop, by __iter__
            self._put("error", error)

    def _put(self, kind: str, value: U | BaseException | None) -> bool:
        """Hand something over; False when nobody wants it any more."""
        while not self._stop.is_set():
            try:
                self._ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[U]:
        """Yield what was prepared, in order; an error of the thread is raised here."""
        while True:
            kind, value = self._ready.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]
