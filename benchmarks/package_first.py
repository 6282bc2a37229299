"""Imported first: lets ``ingest`` be the package, not the benchmark of that name in this folder."""

import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
if _HERE in sys.path:
    sys.path.remove(_HERE)
    import ingest  # noqa: F401

    sys.path.insert(0, _HERE)
