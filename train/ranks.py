"""The ranks that train together: torch's process group on top of an MPI communicator, or one process alone.

Gradients and sums go through torch.distributed (gloo on CPUs, NCCL on GPUs) from the main thread; MPI is left
to the thread that fetches samples. So neither ever waits for the other's messages.
"""

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfm.errors import GfmError, ResourceError
from gfm.runtime.mpi import rendezvous

__all__ = ["Ranks", "joined"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This rank's view of all of them.

    Attributes:
        rank: This one's number.
        size: How many there are.
        on_node: How many share this node.
        device: Where this rank computes.
    """

    rank: int
    size: int
    on_node: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks (same shape, float64 kept)."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 alone and return its result everywhere.

        Raises:
            GfmError: What rank 0 raised, on every rank.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except GfmError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its gradients are averaged over the ranks."""
        if self.size == 1:
            return module
        # The head of a single dataset, (1, n), has strides that differ where they mean nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # All parameters take part in every step (see Objective), so nothing has to be searched for; buffers
        # are constants, the same on all ranks.
        return nn.parallel.DistributedDataParallel(
            module, forward_sync_buffers=False, gradient_as_bucket_view=True
        )


@contextmanager
def joined(comm: Any | None, device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[Ranks]:
    """Join the ranks of a communicator; None for one process alone.

    Ranks that are joined already stay so: who trains several models one after the other joins once around them
    all. (A model that outlives its process group, as one does in the traceback of an error, would end the group
    with the interpreter's lock held, which gloo's threads may be waiting for.)

    Raises:
        ResourceError: A GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: cuda is asked for, but torch sees no GPU here; use auto or cpu")
    cuda = device != "cpu" and torch.cuda.is_available()
    if comm is None or comm.size == 1:
        yield Ranks(0, 1, 1, torch.device("cuda", 0) if cuda else torch.device("cpu"))
        return
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank, on_node = node.rank, node.size
    node.Free()
    chosen = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if dist.is_initialized():
        yield Ranks(comm.rank, comm.size, on_node, chosen)
        return
    meeting = rendezvous(comm)
    if meeting.one_node:
        # Gloo would listen on the address of the host name, which a laptop may not be able to reach.
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    listener = None if meeting.listener is None else meeting.listener.detach()
    # The store takes the listening socket over, so it listens on the rendezvous address only.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        meeting.host,
        meeting.port,
        comm.size,
        is_master=comm.rank == 0,
        timeout=timedelta(minutes=5),
        master_listen_fd=listener,
        use_libuv=True,
    )
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=comm.rank, world_size=comm.size)
    try:
        yield Ranks(comm.rank, comm.size, on_node, chosen)
    finally:
        dist.destroy_process_group()
