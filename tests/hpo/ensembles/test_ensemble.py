"""Streaming evaluation equals the one in memory, for any workers, order and interruption."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfm.errors import CorruptDataError, DataError, MissingDataError
from gfm.model.ensemble_card import calibrated_sigma
from gfm.runtime.cluster import ClusterConfig, open_client
from hpo import ensemble
from hpo.calibrate import CalibrationWarning, SpreadSums, calibrate
from hpo.ensemble import evaluate
from hpo.scores import score
from hpo.spread import RunningSpread, read_arrays
from store.dataset import Dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*swapped out.*")


def in_memory(dataset: Dataset, predict: Callable[..., Any], members: int) -> dict[str, Any]:
    """Predict, calibrate and score with all predictions in memory at once."""
    rows = np.flatnonzero(np.asarray(dataset.split) > 0)
    batch = dataset.batch(rows)
    split, index = np.asarray(dataset.split)[rows], batch.columns["dataset"]
    owner = np.repeat(np.arange(len(batch)), 3 * batch.num_atoms)
    predictions = [predict(batch, seed) for seed in range(members)]
    stacks = {
        "energy": np.stack([energy / batch.num_atoms for energy, _ in predictions]),
        "forces": np.stack([forces.reshape(-1).astype(np.float64) for _, forces in predictions]),
    }
    labels = {
        "energy": batch.columns["energy"] / batch.num_atoms,
        "forces": batch.columns["forces"].reshape(-1),
    }
    owners = {"energy": np.arange(len(batch)), "forces": owner}
    result: dict[str, Any] = {}
    for output, stack in stacks.items():
        errors, spreads = stack.mean(axis=0) - labels[output], stack.std(axis=0, ddof=1)
        known = batch.has(output)[owners[output]]
        masks = {
            (code, d): known & (split == code)[owners[output]] & (index == d)[owners[output]]
            for code in (1, 2)
            for d in (0, 1)
        }
        sums = [SpreadSums.of(errors[m], spreads[m], spreads[m], 1e-9) for m in (masks[1, 0], masks[1, 1])]
        fitted = calibrate({output: sums}, dataset.dataset_names, len(stack))[output]["datasets"]
        parts = []
        for d, name in enumerate(dataset.dataset_names):
            mask = masks[2, d]
            parts.append((errors[mask], calibrated_sigma(fitted[name], spreads[mask])))
        result[output] = {
            "scales": [fitted[name]["scale"] for name in dataset.dataset_names],
            "datasets": [score(*part) for part in parts],
            "pooled": score(np.concatenate([e for e, _ in parts]), np.concatenate([s for _, s in parts])),
        }
    return result


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare scores to float tolerance; shares to one value."""
    for key, value in expected.items():
        if isinstance(value, dict):
            close(found[key], value)
        else:
            assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


def test_running_spread_is_that_of_numpy() -> None:
    values = 1e6 + np.random.default_rng(0).normal(size=(5, 100))
    running = RunningSpread((100,))
    for row in values:
        running.add(row)
    np.testing.assert_allclose(running.mean, values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(running.std(), values.std(axis=0, ddof=1), rtol=1e-8)


@pytest.mark.parametrize("workers", [1, 3])
def test_streaming_equals_in_memory(
    workers: int, dataset: Dataset, make_ensemble: Any, known_errors: Any, prediction: Any
) -> None:
    folder = make_ensemble()
    with open_client(ClusterConfig(workers=workers, processes=False, dashboard=None)) as client:
        scores = evaluate(folder, client=client)
    expected = in_memory(dataset, prediction, members=4)
    calibration = json.loads((folder / "ensemble.json").read_text())["calibration"]
    for output in ("energy", "forces"):
        for place, name in enumerate(dataset.dataset_names):
            scale = calibration[output]["datasets"][name]["scale"]
            assert scale == pytest.approx(expected[output]["scales"][place], rel=1e-4)
            close(scores[output]["datasets"][name]["after"], expected[output]["datasets"][place])
        close(scores[output]["pooled"]["after"], expected[output]["pooled"])


def test_known_factors_are_found_and_calibrate(make_ensemble: Any, known_errors: Any, client: Any) -> None:
    folder = make_ensemble()
    scores = evaluate(folder, client=client)
    ensemble = json.loads((folder / "ensemble.json").read_text())
    entries = ensemble["calibration"]["forces"]["datasets"]
    for name, factor in (("organics", 2.0), ("oxides", 3.0)):
        # a spread of 0.05 in the middle; the spread over 4 members is noisy, so part of it goes to the offset
        assert calibrated_sigma(entries[name], np.array(0.05)) == pytest.approx(factor * 0.05, rel=0.25)
    forces = scores["forces"]["pooled"]
    assert forces["after"]["nll"] < forces["before"]["nll"]
    assert forces["after"]["miscalibration_area"] < forces["before"]["miscalibration_area"]
    assert forces["conformal_coverage_90"] == pytest.approx(0.9, abs=0.04)
    single, mean = scores["comparison"]["single_best"], scores["comparison"]["ensemble"]
    assert single["trial"] == 10
    assert mean["forces_mae_ev_per_angstrom"] < single["forces_mae_ev_per_angstrom"]
    assert set(mean["datasets"]) == {"organics", "oxides"}


def test_order_and_number_of_workers_change_no_bit(make_ensemble: Any, known_errors: Any) -> None:
    results = []
    for number, workers in enumerate((1, 3)):
        with open_client(ClusterConfig(workers=workers, processes=False, dashboard=None)) as client:
            results.append(evaluate(make_ensemble(f"e{number}"), client=client))
    assert results[0] == results[1]


def test_rerun_predicts_only_what_is_missing_damaged_or_of_another_model(
    make_ensemble: Any, known_errors: list[tuple[str, int]], client: Any
) -> None:
    folder = make_ensemble()
    first = evaluate(folder, client=client)
    assert len(known_errors) == 16
    known_errors.clear()
    assert evaluate(folder, client=client) == first
    assert known_errors == []

    (folder / "predictions" / "member-00" / "000001.json").unlink()  # killed before the receipt
    damaged = folder / "predictions" / "member-02" / "000003.npz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert evaluate(folder, client=client) == first
    assert sorted(Path(model).name for model, _ in known_errors) == ["00", "02"]

    known_errors.clear()
    card = folder / "members" / "03" / "model.json"
    card.write_text(card.read_text().replace('"seed": 3', '"seed": 7'))
    assert evaluate(folder, client=client) != first
    assert [Path(model).name for model, _ in known_errors] == ["03"] * 4


def test_files_of_means_hold_every_evaluated_row_once(
    dataset: Dataset, make_ensemble: Any, known_errors: Any, client: Any
) -> None:
    folder = make_ensemble()
    evaluate(folder, client=client)
    files = [read_arrays(path) for path in sorted((folder / "predictions" / "ensemble").glob("*.npz"))]
    ids = np.concatenate([arrays["ids"] for arrays in files])
    np.testing.assert_array_equal(ids, np.flatnonzero(np.asarray(dataset.split) > 0))
    for arrays in files:
        assert arrays["forces_std"].shape == (arrays["offsets"][-1], 3)
        assert (arrays["energy_std"] > 0).all()


def test_identical_members_warn_and_still_give_a_sigma(
    make_ensemble: Any, known_errors: Any, client: Any
) -> None:
    with pytest.warns(CalibrationWarning, match="do not differ"):
        scores = evaluate(make_ensemble(same=True), client=client)
    assert np.isfinite(scores["forces"]["pooled"]["after"]["nll"])


def test_what_cannot_be_evaluated_says_why(make_ensemble: Any, client: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2"):
        evaluate(make_ensemble("one", members=1), client=client)
    with pytest.raises(MissingDataError, match="gfm ensemble select"):
        evaluate(tmp_path / "nowhere", client=client)
    broken = make_ensemble("broken")
    (broken / "members" / "01" / "model.json").unlink()
    with pytest.raises(MissingDataError, match=r"model\.json"):
        evaluate(broken, client=client)


def test_damaged_data_are_told_and_leave_the_calibration_alone(
    make_ensemble: Any, known_errors: Any, client: Any, dataset: Dataset, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(dataset.path, copied)
    folder = make_ensemble()
    evaluate(folder, copied, client=client)
    card = (folder / "ensemble.json").read_text()
    # One byte, the size as it was; predictions are there already and are not made again.
    data = next((copied / "shards").glob("000002.*/data.0"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    ensemble._dataset.cache_clear()  # as in new workers: these are threads, which have checked the files before
    with pytest.raises(CorruptDataError, match="000002"):
        evaluate(folder, copied, client=client)
    assert (folder / "ensemble.json").read_text() == card


def test_an_error_of_a_task_is_not_tried_again(
    make_ensemble: Any, known_errors: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def refuse(potential: Any, data: Dataset, ids: np.ndarray, *, batch_size: int) -> Any:
        calls.append((potential.path, int(ids[0])))
        raise DataError("no head for this")

    monkeypatch.setattr("train.predict.predict", refuse)
    with pytest.raises(DataError, match="no head for this"):
        evaluate(make_ensemble(members=2), client=client)
    assert calls
    assert len(calls) == len(set(calls))


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(real_ensemble: Path) -> None:
    with open_client(ClusterConfig(workers=2, dashboard=None)) as client:
        expected = evaluate(real_ensemble, client=client)
        shutil.rmtree(real_ensemble / "predictions")
        victim = min(client.run(os.getpid).values())

        def kill(wave: str, done: int, total: int) -> None:
            if (wave, done) == ("predict", 2):
                os.kill(victim, signal.SIGKILL)

        assert evaluate(real_ensemble, client=client, on_progress=kill) == expected
        assert victim not in client.run(os.getpid).values()
