"""Raw published files to normalised structures to shards, on Dask."""
