"""What the tests of all readers share: read a whole path, whatever parts it is cut into."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfm.data.structure import Structure
from ingest.readers import READERS
from ingest.readers.base import Part, Reject


@dataclass
class Reading:
    """All that a reader made of a path."""

    parts: list[Part] = field(default_factory=list)
    structures: dict[str, Structure] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(reject.reason for reject in self.rejects))

    @property
    def total(self) -> int:
        return len(self.structures) + len(self.rejects)


def _read_all(name: str, path: Path | str, part_bytes: int = 1 << 26, **options: Any) -> Reading:
    reader = READERS.get(name).model_validate(options)
    reading = Reading(parts=reader.plan(str(path), part_bytes))
    for part in reading.parts:
        for block in reader.read(part):
            assert len(block.batch) == len(block.sources)
            assert set(block.batch.columns) <= {
                *reader.FIELDS, "numbers", "positions", "cell", "pbc", "dataset", "group", "key",
            }  # fmt: skip
            for source, structure in zip(block.sources, block.batch, strict=True):
                assert source not in reading.structures
                reading.structures[source] = structure
            reading.rejects += block.rejects
    return reading


@pytest.fixture(scope="session")
def read_all() -> Callable[..., Reading]:
    """Return a function: reader's name, path, part_bytes, options -> all it reads."""
    return _read_all


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """Return a function that compares a structure with expected values, bit by bit in the storage dtypes."""

    def check(structure: Structure, **expected: Any) -> None:
        for name, value in expected.items():
            found = getattr(structure, name)
            if value is None:
                assert found is None, name
                continue
            dtype = {"energy": np.float64, "cell": np.float64, "numbers": np.uint8}.get(name)
            if dtype is None:
                dtype = np.float32 if np.asarray(value).dtype.kind == "f" else np.asarray(value).dtype
            np.testing.assert_array_equal(
                found, np.asarray(value, dtype=np.float64).astype(dtype), err_msg=name
            )

    return check
