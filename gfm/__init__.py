"""The ground floor of GFM: what ingestion, storage, training and search share.

Importing ``gfm`` is cheap: no torch, Dask, Optuna or MPI is loaded until a part that needs it is used.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
