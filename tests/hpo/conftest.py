"""What tests of studies share: a small study, and a training that takes no time."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.study import StudyConfig


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., StudyConfig]:
    """Return a maker of studies in the test's folder; keywords replace settings."""

    def make(**changes: Any) -> StudyConfig:
        settings: dict[str, Any] = {
            "name": "small",
            "output": tmp_path / "study",
            "base": {"dataset": "dataset", "output": "anywhere"},
            "space": {
                "optimizer.learning_rate": {"float": [1e-4, 1e-1], "log": True},
                "model.hidden": {"int": [8, 32]},
            },
            "epochs": 4,
            "trials": 6,
        }
        return StudyConfig.model_validate({**settings, **changes})

    return make


@pytest.fixture
def quick_train() -> Callable[..., Any]:
    """Return a stand-in for `train.loop.train`, whose loss falls with epochs, best at rate 0.01."""
    from train.loop import TrainResult

    def train(config: Any, *, on_epoch: Any = None, extend: bool = False) -> TrainResult:
        config.output.mkdir(parents=True, exist_ok=True)
        file = config.output / "metrics.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        status = "finished"
        for epoch in range(len(records) + 1, config.epochs + 1):
            loss = 1.0 / epoch + abs(math.log10(config.optimizer.learning_rate) + 2)
            record = {
                "epoch": epoch,
                "validation": {
                    "loss": loss,
                    "energy_mae_mev_per_atom": 10 * loss,
                    "forces_mae_ev_per_angstrom": loss,
                },
                "joules": 2.0,
                "joules_method": "estimate: test",
            }
            with file.open("a") as out:
                out.write(json.dumps(record) + "\n")
            records.append(record)
            if on_epoch is not None and not on_epoch(record) and epoch < config.epochs:
                status = "stopped"
                break
        best = min(records, key=lambda one: one["validation"]["loss"])
        joules = sum(one["joules"] for one in records)
        return TrainResult(
            status, len(records), best, records[-1], config.output / "model", joules, "estimate: test"
        )

    return train


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 clusters of hydrogen and carbon in a Morse potential, 48 of them to train on."""
    from ase import Atoms
    from ase.calculators.morse import MorsePotential

    from gfm.data.neighbors import count_edges
    from gfm.data.ragged import RaggedBatch
    from gfm.data.structure import Structure
    from store.manifest import DatasetEntry, Reference, Splits
    from store.writer import commit_dataset, write_shard

    rng = np.random.default_rng(3)
    structures = []
    for key in range(60):
        corners = np.array([[x, y, 0.0] for x in range(3) for y in range(2)])[: rng.integers(3, 7)]
        atoms = Atoms(
            rng.choice(["H", "C"], len(corners)), 1.3 * corners + rng.normal(scale=0.1, size=corners.shape)
        )
        atoms.calc = MorsePotential(epsilon=1.5, r0=1.3, rho0=3.0, rcut1=3.0, rcut2=4.0)
        atoms.get_forces()
        structure = Structure.from_atoms(atoms)
        structure.stress, structure.dataset, structure.key, structure.group = None, 0, key, key
        structures.append(structure)
    batch = RaggedBatch.from_structures(structures)
    edges = count_edges(
        batch.columns["positions"], batch.columns["cell"], batch.columns["pbc"], batch.offsets, 4.0
    )
    split = np.array([{8: 1, 9: 2}.get(row % 10, 0) for row in range(len(batch))], dtype=np.uint8)
    path = tmp_path_factory.mktemp("dataset") / "clusters"
    receipt = write_shard(
        path, "a", batch, num_edges=edges, split=split, dataset_names=["clusters"], format="zarr"
    )
    commit_dataset(
        path,
        [receipt],
        format="zarr",
        datasets=[DatasetEntry(name="clusters", reference=Reference(values={"H": 0.0, "C": 0.0}))],
        edges_cutoff=4.0,
        splits=Splits(fractions={"train": 0.8, "validation": 0.1, "test": 0.1}),
        statistics={},
        provenance={},
    )
    return path
