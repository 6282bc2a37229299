"""Imported first: lets ``ingest`` be the package, not the benchmark of that name in this folder."""

import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
_PATH = list(sys.path)
sys.path[:] = [entry for entry in _PATH if entry != _HERE]
import ingest  # noqa: E402, F401

sys.path[:] = _PATH
