"""Datasets on disk (ADIOS2 BP5, Zarr v3) and samples in memory (MPI RMA). Hands out numpy, never torch."""
