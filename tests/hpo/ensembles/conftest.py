"""What tests of ensembles share: a dataset on disk, and members whose errors have a known distribution."""

import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from gfm.model.build import ModelConfig, build_potential, save_model
from store.dataset import Dataset
from store.manifest import DatasetEntry, Reference, Splits
from store.writer import commit_dataset, write_shard

NAMES = ("organics", "oxides")
REFERENCES = {"organics": {"H": -16.0, "C": -1030.0, "O": -2040.0}, "oxides": {"H": -3.4, "O": -7.1, "C": -8.2}}
# What one factor has to make of the spread, by dataset; the spread itself differs from structure to structure.
FACTORS = (2.0, 3.0)
MEMBERS = 4


def labelled(count: int, seed: int) -> list[Structure]:
    """Return distorted molecules of two datasets with made-up labels; the last one lacks forces."""
    rng = np.random.default_rng(seed)
    structures = []
    for index in range(count):
        atoms = molecule(("H2O", "CH4", "CH3OH", "CO2", "C6H6")[index % 5])
        name = NAMES[index % 2]
        reference = sum(REFERENCES[name][symbol] for symbol in atoms.symbols)
        structures.append(
            Structure(
                numbers=atoms.numbers.astype(np.uint8),
                positions=(atoms.positions + rng.normal(0, 0.05, (len(atoms), 3))).astype(np.float32),
                cell=np.zeros((3, 3)),
                pbc=np.zeros(3, dtype=bool),
                energy=reference + float(rng.normal(0, 0.3)) * len(atoms),
                forces=None if index == count - 1 else rng.normal(0, 1.5, (len(atoms), 3)).astype(np.float32),
                dataset=index % 2,
                group=index,
                key=seed * 1000 + index,
            )
        )
    return structures


def write_labelled(path: Path, shards: int, per_shard: int) -> Dataset:
    """Write a dataset of which the halves alternate between validation and test, with some training rows."""
    receipts = []
    for shard in range(shards):
        batch = RaggedBatch.from_structures(labelled(per_shard, seed=shard))
        split = np.where(np.arange(per_shard) % 10 == 9, 0, 1 + np.arange(per_shard) // 2 % 2)
        receipts.append(
            write_shard(
                path,
                f"{shard:06d}",
                batch,
                num_edges=batch.num_atoms * (batch.num_atoms - 1),
                split=split.astype(np.uint8),
                dataset_names=NAMES,
                format="adios",
            )
        )
    commit_dataset(
        path,
        receipts,
        format="adios",
        datasets=[
            DatasetEntry(
                name=name, theory=theory, rejected=rejected, reference=Reference(values=REFERENCES[name])
            )
            for name, theory, rejected in zip(
                NAMES, ("made up A", "made up B"), ({"nan-energy": 2}, {}), strict=True
            )
        ],
        edges_cutoff=5.0,
        splits=Splits(fractions={"train": 0.1, "validation": 0.45, "test": 0.45}, seed=0),
        statistics={},
        provenance={},
    )
    return Dataset(path)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of 4 shards of 60 structures."""
    return write_labelled(tmp_path_factory.mktemp("labelled") / "dataset", shards=4, per_shard=60)


def member_prediction(batch: RaggedBatch, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return energies and forces that miss the labels by a shared and an own Gaussian error.

    With members' own errors of sigma s, M members and a shared error of variance (k s)^2 - s^2 / M, the mean
    misses by k s: a factor of k calibrates the spread.
    """
    energies, forces = [], []
    for structure in batch:
        shared = np.random.default_rng(structure.key)
        own = np.random.default_rng([seed, structure.key])
        factor = FACTORS[structure.dataset]
        size = float(np.exp(shared.normal(0, 0.5)))
        common = np.sqrt(factor**2 - 1 / MEMBERS)
        for target, shape, scale, label in (
            (energies, (), 0.01 * len(structure), structure.energy),
            (forces, (len(structure), 3), 0.05, structure.forces),
        ):
            truth = np.zeros(shape) if label is None else label
            error = scale * size * (common * shared.normal(size=shape) + own.normal(size=shape))
            target.append(truth + error)
    return np.array(energies, dtype=np.float64), np.concatenate(forces).astype(np.float32)


@pytest.fixture
def prediction() -> Callable[..., Any]:
    """What the members of known errors predict."""
    return member_prediction


@pytest.fixture
def known_errors(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Let members predict labels with errors of a known distribution; return the calls (model, structures)."""
    calls: list[tuple[str, int]] = []

    def cached_model(path: str) -> Any:
        return types.SimpleNamespace(
            path=path, seed=json.loads((Path(path) / "model.json").read_text())["seed"]
        )

    def predict(potential: Any, data: Dataset, ids: np.ndarray, *, batch_size: int) -> Any:
        calls.append((potential.path, len(ids)))
        batch = data.batch(ids)
        energy, forces = member_prediction(batch, potential.seed)
        return types.SimpleNamespace(ids=ids, energy=energy, forces=forces, offsets=batch.offsets)

    monkeypatch.setattr("train.predict.cached_model", cached_model)
    monkeypatch.setattr("train.predict.predict", predict)
    return calls


@pytest.fixture
def make_ensemble(tmp_path: Path, dataset: Dataset) -> Callable[..., Path]:
    """Return a maker of ensemble folders whose members are known by their seeds."""

    def make(name: str = "ensemble", members: int = MEMBERS, same: bool = False) -> Path:
        folder = tmp_path / name
        card = {"format_version": 1, "datasets": [{"name": dataset} for dataset in NAMES]}
        entries = []
        for number in range(members):
            model = folder / "members" / f"{number:02d}"
            model.mkdir(parents=True)
            seed = 0 if same else number
            (model / "model.json").write_text(json.dumps(card | {"seed": seed}))
            entry = {"trial": 10 + number, "value": 1.0 + 0.1 * number, "joules": 100.0 - number, "score": 1.0}
            entries.append({"model": f"members/{number:02d}", "params": {}} | entry)
        candidates = [{key: entry[key] for key in ("trial", "value", "joules")} for entry in entries]
        content = {
            "format_version": 1,
            "members": entries,
            "dataset": str(dataset.path),
            "selection": {
                "study": str(tmp_path / "study"),
                "asked": members,
                "energy_weight": 0.1,
                "tolerance": 0.5,
                "candidates": candidates,
                "pareto_front": [10, 11],
            },
            "calibration": None,
        }
        (folder / "ensemble.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def real_ensemble(make_ensemble: Callable[..., Path], dataset: Dataset) -> Path:
    """An ensemble of three small untrained models of the dataset."""
    folder = make_ensemble(members=3)
    for number in range(3):
        config = ModelConfig(hidden=8, num_layers=1, cutoff=3.0)
        potential = build_potential(config, dataset.dataset_names, dataset.references, seed=number)
        save_model(potential, folder / "members" / f"{number:02d}")
    return folder


@pytest.fixture
def client() -> Iterator[Any]:
    """A Dask client whose two workers are threads of this process, so that they see what a test replaces."""
    from gfm.runtime.cluster import ClusterConfig, open_client

    with open_client(ClusterConfig(workers=2, processes=False, dashboard=None)) as opened:
        yield opened
