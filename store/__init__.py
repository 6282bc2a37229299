"""Datasets on disk (ADIOS2 BP5, Zarr v3) and samples in memory (MPI RMA). Hands out numpy, never torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that ``import store`` costs nothing."""
    if name in __all__:
        from store import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
