"""What every long-running part needs: configuration, MPI, Dask cluster, run folders, energy meter, pages."""
