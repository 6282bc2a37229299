"""Predictions over a dataset, and measuring a model: whatever the order and the size of batches."""

from pathlib import Path

import numpy as np
import pytest

from gfm.errors import ConfigError
from gfm.model.build import build_potential, save_model
from gfm.model.config import ModelConfig
from gfm.model.potential import Potential
from store import open_dataset
from store.dataset import Dataset
from store.samples import open_samples
from train.evaluate import evaluate
from train.predict import cached_model, predict


def _model(dataset: Dataset, names: list[str] | None = None, forces: str = "direct") -> Potential:
    config = ModelConfig(hidden=8, num_layers=1, cutoff=4.0, num_radial=4, forces=forces)
    used = names or dataset.dataset_names
    references = dataset.references[[dataset.dataset_names.index(name) for name in used]]
    return build_potential(config, used, references, seed=3)


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_rows_come_back_in_the_order_asked_for(dataset_path: Path, forces: str) -> None:
    dataset = open_dataset(dataset_path)
    potential = _model(dataset, forces=forces)
    rows = np.array([7, 3, 60, 3, 41])
    some, every = predict(potential, dataset, rows, batch_size=2), predict(potential, dataset)
    assert some.ids.tolist() == rows.tolist()
    assert every.ids.tolist() == list(range(len(dataset)))
    np.testing.assert_allclose(some.energy, every.energy[rows], rtol=1e-7)
    for place, row in enumerate(rows):
        own = some.forces[some.offsets[place] : some.offsets[place + 1]]
        assert len(own) == len(dataset[row])
        np.testing.assert_allclose(own, every.forces[every.offsets[row] : every.offsets[row + 1]], atol=1e-5)
    assert (some.energy.dtype, some.forces.dtype) == (np.float64, np.float32)


def test_a_batch_in_memory_is_as_good_and_nothing_gives_nothing(dataset_path: Path) -> None:
    dataset = open_dataset(dataset_path)
    potential = _model(dataset)
    batch = dataset.batch(np.arange(10))
    assert (predict(potential, batch).energy == predict(potential, dataset, np.arange(10)).energy).all()
    empty = predict(potential, dataset, np.arange(0))
    assert (empty.energy.shape, empty.forces.shape, empty.offsets.tolist()) == ((0,), (0, 3), [0])


def test_sources_are_found_by_name_and_unknown_ones_are_refused(dataset_path: Path) -> None:
    dataset = open_dataset(dataset_path)
    both, alloys = _model(dataset), _model(dataset, ["alloys"])
    rows = np.flatnonzero(dataset.dataset_index == 1)[:4]
    alloys.load_state_dict(
        {**alloys.state_dict(), **{k: v for k, v in both.state_dict().items() if k.startswith("trunk")}}
    )
    assert np.isfinite(predict(alloys, dataset, rows).energy).all()
    with pytest.raises(ConfigError, match="no head for the source 'clusters'"):
        predict(alloys, dataset)


def test_means_are_exact_whatever_the_batch_size(dataset_path: Path) -> None:
    dataset = open_dataset(dataset_path)
    potential = _model(dataset)
    ids = dataset.split_ids("test")
    with open_samples(dataset, "local", ids=ids) as samples:  # type: ignore[attr-defined]
        results = [
            evaluate(potential, samples, ids, stored=dataset.dataset_names, batch_size=size)
            for size in (1, 3, 100)
        ]
    prediction = predict(potential, dataset, ids)
    errors = [
        abs(prediction.energy[place] - structure.energy) / len(structure)
        for place, structure in enumerate(dataset[row] for row in ids)
        if structure.energy is not None
    ]
    for result in results:
        assert result["energy_mae_mev_per_atom"] == pytest.approx(1e3 * np.mean(errors), rel=1e-5)
        assert result["forces_mae_ev_per_angstrom"] == pytest.approx(
            results[0]["forces_mae_ev_per_angstrom"], rel=1e-5
        )
        assert result["structures"] == len(ids)


def test_a_model_is_loaded_once_per_process(dataset_path: Path, tmp_path: Path) -> None:
    save_model(_model(open_dataset(dataset_path)), tmp_path / "model")
    assert cached_model(tmp_path / "model") is cached_model(tmp_path / "model")
