"""What the store's tests share: structures with every combination of fields, and datasets made of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from store.dataset import Dataset
from store.manifest import DatasetEntry, Reference, Splits
from store.writer import commit_dataset, write_shard

NAMES = ("molecules", "crystals")


def some_structures(count: int, seed: int = 0, most_atoms: int = 30) -> list[Structure]:
    """Return structures of 1 to ``most_atoms`` atoms; optional fields come and go."""
    rng = np.random.default_rng(seed)
    structures = []
    for index in range(count):
        num_atoms = 1 if index == 0 else int(rng.integers(1, most_atoms + 1))
        structures.append(
            Structure(
                numbers=rng.integers(1, 90, num_atoms).astype(np.uint8),
                positions=rng.normal(size=(num_atoms, 3)).astype(np.float32),
                cell=rng.normal(size=(3, 3)),
                pbc=rng.random(3) < 0.5,
                energy=float(rng.normal()) * 1e4 if index % 3 else None,
                forces=rng.normal(size=(num_atoms, 3)).astype(np.float32) if index % 4 else None,
                stress=rng.normal(size=(3, 3)).astype(np.float32) if index % 5 == 0 else None,
                charge=-1 if index % 2 else None,
                fixed=rng.random(num_atoms) < 0.5 if index % 2 else None,
                dataset=index % 2,
                group=int(rng.integers(0, 2**63)),
                key=int(rng.integers(0, 2**63)),
            )
        )
    return structures


def write_dataset(path: Path, format: str, shards: Sequence[Sequence[Structure]]) -> Dataset:
    """Write these structures, shard by shard, and open the dataset."""
    receipts = []
    for index, structures in enumerate(shards):
        batch = RaggedBatch.from_structures(structures)
        receipts.append(
            write_shard(
                path,
                f"{index:06d}",
                batch,
                num_edges=batch.num_atoms * 7,
                split=np.arange(len(batch)) % 3,
                dataset_names=NAMES,
                format=format,
            )
        )
    commit_dataset(
        path,
        receipts,
        format=format,
        datasets=[
            DatasetEntry(name="molecules", rejected={"nan-energy": 2}),
            DatasetEntry(name="crystals", reference=Reference(values={"H": -13.6, "O": -2040.5}, rank=2)),
        ],
        edges_cutoff=5.0,
        splits=Splits(fractions={"train": 0.8, "validation": 0.1, "test": 0.1}, seed=3),
        statistics={"energy": {"mean": float("nan")}},
        provenance={"recipe": "made by a test"},
    )
    return Dataset(path)


@pytest.fixture(params=["adios", "zarr"])
def format(request: pytest.FixtureRequest) -> str:
    """Every format in turn: what holds for one must hold for all."""
    return str(request.param)


@pytest.fixture
def structures() -> Callable[..., list[Structure]]:
    """See `some_structures`."""
    return some_structures


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """See `write_dataset`."""
    return write_dataset


@pytest.fixture
def three_shards() -> list[list[Structure]]:
    """Shards of 20, 0 and 13 structures."""
    return [some_structures(20, seed=1), [], some_structures(13, seed=2)]


@pytest.fixture
def same() -> Callable[[RaggedBatch, RaggedBatch], bool]:
    """Whether two batches hold the same, bit for bit."""

    def compare(one: RaggedBatch, other: RaggedBatch) -> bool:
        return (
            one.schema == other.schema
            and np.array_equal(one.offsets, other.offsets)
            and np.array_equal(one.present, other.present)
            and all(one.columns[name].tobytes() == other.columns[name].tobytes() for name in one.schema)
        )

    return compare
