"""A process that reads damaged files for the fuzzing tests: what kills it, or hangs, kills only it.

One line of JSON on its input names a reader, its options and a path; one line on its output says what came out.
Its address space is bounded, warnings are errors, and every structure is held against what a structure must be.
"""

import json
import resource
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gfm.data.structure import Structure
from gfm.errors import GfmError
from ingest.readers import READERS
from ingest.readers.base import Part, Reader
from ingest.readers.records import Refused

_FIELDS = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "charge", "spin", "fixed")
_FLOATS = {"positions": np.float32, "cell": np.float64, "forces": np.float32, "stress": np.float32}


def _digest(structure: Structure) -> str:
    """Return a hash of all that a structure is, but for its key and group."""
    found = xxhash.xxh3_64()
    for name in _FIELDS:
        value = getattr(structure, name)
        found.update(f"{name} {value is None};".encode())
        if value is not None:
            array = np.asarray(value, dtype=np.float64 if name == "energy" else None)
            found.update(str(array.shape).encode() + array.tobytes())
    return found.hexdigest()


def _check(structure: Structure, reader: Reader) -> None:
    """Hold one structure against what every structure must be."""
    structure.check_shapes()
    assert len(structure) > 0, "no atoms"
    assert structure.numbers.dtype == np.uint8, structure.numbers.dtype
    assert structure.numbers.min() >= 1, "atomic number 0"
    assert structure.numbers.max() <= 118, "atomic number above 118"
    assert structure.energy is not None, "no energy"
    assert np.isfinite(structure.energy), "energy"
    assert structure.forces is not None or not reader.require_forces, "no forces"  # type: ignore[attr-defined]
    for name, dtype in _FLOATS.items():
        value = getattr(structure, name)
        assert value is None or (value.dtype == dtype and np.isfinite(value).all()), name


def _read(job: dict[str, Any]) -> dict[str, Any]:
    """Read a path with all its parts, as a build does."""
    reader = READERS.get(job["reader"]).model_validate(job["options"])
    if job.get("scratch"):
        reader = reader.unpacking_to(Path(job["scratch"]))
        for file in reader.packed(job["path"]):
            reader.unpack(file)
    parts = reader.plan(job["path"], job["part_bytes"])
    assert len(parts) < 10_000, f"{len(parts)} parts"
    answer: dict[str, Any] = {"structures": [], "rejects": [], "errors": []}
    for part in parts:
        try:
            _read_part(reader, Part(**json.loads(json.dumps(part.__dict__))), answer)
        except GfmError as error:
            if isinstance(error, Refused):
                raise
            answer["errors"].append(f"{type(error).__name__}: {error}"[:300])
    return answer


def _read_part(reader: Reader, part: Part, answer: dict[str, Any]) -> None:
    for block in reader.read(part):
        assert len(block.batch) == len(block.sources), "sources"
        for source, structure in zip(block.sources, block.batch, strict=True):
            _check(structure, reader)
            entry = (str(structure.key), str(structure.group), _digest(structure), source)
            answer["structures"].append(entry)
        for reject in block.rejects:
            assert reject.reason, "a reject without reason"
            assert reject.source, "a reject without source"
            assert len(reject.value) <= 300, "a reject of any length"
            answer["rejects"].append((reject.source, reject.reason, reject.value))
        assert len(answer["structures"]) + len(answer["rejects"]) < 1_000_000, "a million records"


def main(memory: int) -> None:
    """Answer jobs until the input ends; ``memory`` bytes may be added to what the imports took."""
    import h5py  # noqa: F401
    import lmdb  # noqa: F401

    warnings.simplefilter("error")
    output = sys.stdout
    sys.stdout = sys.stderr
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        try:
            answer = _read(json.loads(line))
        except GfmError as error:
            answer = {"structures": [], "rejects": [], "errors": [f"{type(error).__name__}: {error}"[:300]]}
            if isinstance(error, Refused):
                answer["escaped"] = traceback.format_exc(limit=-8)
        except BaseException:
            answer = {"structures": [], "rejects": [], "errors": [], "escaped": traceback.format_exc(limit=-8)}
        answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
