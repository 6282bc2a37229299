"""Ingestion, measured: runs `ingestion.py`, which cannot have this name itself: it imports the package."""

import package_first  # noqa: F401
from ingestion import main

if __name__ == "__main__":
    main()
