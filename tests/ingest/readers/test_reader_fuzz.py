"""Damage to any byte of any layout: errors of this project or sound structures come out, and no silent change.

Small files of every layout are cut, flipped, overwritten, shortened, repeated and shuffled, and read in a
process of its own, since a library that trusts a file may crash or hang. Records whose bytes were not touched
have the numbers they had, or are missing with a reason. By default the damage is the same every time and takes
seconds. To look further, say how many damaged files of each layout shall be tried, at random:

    GFM_FUZZ_EXAMPLES=5000 pytest tests/ingest/readers/test_reader_fuzz.py

A failure is made small, and printed as the operations that lead to it (`fuzz_damage.Operation`).
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _load(name: str) -> Any:
    """Return a module beside this file: tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


damage = _load("fuzz_damage")
files = _load("fuzz_files")
EXAMPLES = int(os.environ.get("GFM_FUZZ_EXAMPLES", "0"))
NAMES = [
    "extxyz", "extxyz-gz", "extxyz-xz", "extxyz-zip", "oc20-text", "oc20-sidecar", "oc20-xz",
    "oc20-sidecar-xz", "oc20", "oc22", "mptrj", "mptrj-gz", "mptrj-xz", "aselmdb", "ase-sqlite", "ase-json",
    "ani1x", "transition1x", "spice", "hdf5-chunked", "qm7x", "qm7x-xz", "qm7x-tar", "qm7x-tar.xz",
]  # fmt: skip
PIECES = [
    *(b"\xff" * size for size in (1, 2, 4, 8)), *(b"\0" * size for size in (1, 8, 64)),
    b"\x7f".rjust(8, b"\xff"), (10**12).to_bytes(8, "little"), (1 << 31).to_bytes(4, "little"), b"\x80", b"-1",
    b"nan", b"1e999", b'"', b"{", b"[", b"\n", b" ", b"9" * 400, b"[" * 4000,
]  # fmt: skip

# Headers stand at the begin, directories at the end: both are more often damaged than their bytes are many.
places = st.one_of(
    st.floats(0.0, 0.9999), st.floats(0.0, 0.9999).map(lambda place: place**4),
    st.floats(0.0, 0.9999).map(lambda place: 0.9999 - place**4),
)  # fmt: skip
pieces = st.sampled_from(PIECES) | st.binary(min_size=1, max_size=40)
in_place = st.builds(damage.Operation, st.just("flip"), places, st.integers(0, 7)) | st.builds(
    damage.Operation, st.just("overwrite"), places, content=pieces
)
moving = st.builds(
    damage.Operation, st.sampled_from(["cut", "delete", "repeat", "swap", "insert"]), places,
    st.sampled_from([1, 2, 8, 40, 300, 4096]), places, pieces,
)  # fmt: skip
damages = st.lists(in_place, min_size=1, max_size=3) | st.tuples(moving) | st.tuples(in_place, moving)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = damage.Worker(tmp_path_factory.mktemp("worker"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = files.families(tmp_path_factory.mktemp("made"))
    assert sorted(found) == sorted(NAMES)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_told_or_does_no_harm(
    name: str, families: dict[str, Any], worker: Any, tmp_path: Path
) -> None:
    bench = damage.Bench(families[name], tmp_path, worker)
    family = families[name]

    @settings(
        max_examples=EXAMPLES or 30, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(operations=damages)
    def check(operations: list[Any]) -> None:
        # What pairs two files by their order is told of a line too few, not of which.
        chosen = list(operations)[-1:] if family.kind == "sequence" else list(operations)
        data, touched = damage.damage(family.data, chosen)
        moves = sum(operation.name not in ("flip", "overwrite") for operation in chosen)
        wrong = bench.verdict(bench.read(data), touched, moves)
        assert not wrong, wrong

    check()
