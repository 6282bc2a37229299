"""Calibration recovers what synthetic data was made with, and says so when it cannot."""

import numpy as np
import pytest

from gfm.model.ensemble_card import calibrated_sigma, find_calibration
from hpo.calibrate import CalibrationWarning, SpreadSums, calibrate
from hpo.scores import score


def sums_of(errors: np.ndarray, spreads: np.ndarray, floor: float = 1e-6) -> SpreadSums:
    return SpreadSums.of(errors, spreads, spreads, floor)


def understated(n: int, factor: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sigmas = np.exp(rng.normal(-3, 0.8, n))
    return rng.normal(0, sigmas), sigmas / factor


def test_scale_two_is_recovered_and_mends_the_scores() -> None:
    errors, spreads = understated(20_000, 2.0)
    entry = sums_of(errors, spreads).fit(1e-6, "test")
    assert entry["scale"] == pytest.approx(2.0, rel=0.02)
    test_errors, test_spreads = understated(20_000, 2.0, seed=1)
    sigmas = calibrated_sigma(entry, test_spreads)
    assert score(test_errors, sigmas)["miscalibration_area"] < 0.01
    # the conformal half width of Gaussian data is that of the Gaussian, and covers what it promises
    assert entry["quantile"] == pytest.approx(1.645, rel=0.02)
    assert np.mean(np.abs(test_errors) <= entry["quantile"] * sigmas) == pytest.approx(0.9, abs=0.01)


def test_scale_minimises_the_likelihood() -> None:
    errors, spreads = understated(500, 3.0, seed=2)
    best = sums_of(errors, spreads).fit(1e-6, "test")["scale"]
    nll = [score(errors, spreads * best * f)["nll"] for f in (0.99, 1.0, 1.01)]
    assert nll[1] < min(nll[0], nll[2])


def test_conformal_intervals_hold_for_heavy_tails_and_few_values() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        errors = rng.standard_t(2, 41)
        entry = sums_of(errors[:-1], np.ones(40)).fit(1e-6, "test")
        covered.append(abs(errors[-1]) <= entry["quantile"] * entry["scale"])
    assert 0.87 < np.mean(covered) < 0.96


def test_too_few_values_for_a_conformal_interval_give_none() -> None:
    assert sums_of(np.ones(8), np.ones(8)).fit(1e-6, "test")["quantile"] is None
    assert sums_of(np.ones(9), np.ones(9)).fit(1e-6, "test")["quantile"] is not None


def test_merging_parts_changes_nothing() -> None:
    errors, spreads = understated(1000, 2.0)
    parts = [
        sums_of(e, s) for e, s in zip(np.split(errors, [10, 600]), np.split(spreads, [10, 600]), strict=True)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2]).fit(1e-6, "test")
    whole = sums_of(errors, spreads).fit(1e-6, "test")
    assert merged.pop("kind") == whole.pop("kind") == "scale"
    assert merged == pytest.approx(whole, rel=1e-12)


def test_zeros_by_symmetry_do_not_spoil_the_scale() -> None:
    errors, spreads = understated(2000, 2.0)
    with_zeros = sums_of(np.append(errors, np.zeros(500)), np.append(spreads, np.zeros(500)))
    entry = with_zeros.fit(1e-6, "test")
    assert entry["at_floor"] == 500
    assert entry["scale"] == pytest.approx(sums_of(errors, spreads).fit(1e-6, "test")["scale"])


def test_identical_members_fall_back_to_the_rmse_with_a_warning() -> None:
    errors = np.array([0.1, -0.3] * 10)
    with pytest.warns(CalibrationWarning, match="do not differ"):
        entry = sums_of(errors, np.zeros(20)).fit(1e-6, "forces")
    assert entry["kind"] == "constant"
    np.testing.assert_allclose(calibrated_sigma(entry, np.zeros(3)), np.sqrt(np.mean(errors**2)))


def test_threshold_is_exceeded_by_one_structure_in_a_hundred() -> None:
    errors, spreads = understated(10_000, 2.0)
    entry = sums_of(errors, spreads).fit(1e-6, "test")
    assert np.mean(calibrated_sigma(entry, spreads) > entry["threshold"]) == pytest.approx(0.01, abs=0.002)


def test_each_dataset_has_its_own_and_unseen_ones_the_pooled() -> None:
    a, b, few = understated(400, 2.0, 1), understated(400, 5.0, 2), understated(3, 1.0, 3)
    with pytest.warns(CalibrationWarning, match="only 3"):
        result = calibrate(
            {"energy": [sums_of(*part) for part in (a, b, few)], "forces": []}, ["a", "b", "few"]
        )
    assert set(result) == {"energy"}
    assert find_calibration(result, "energy", "a")["scale"] == pytest.approx(2.0, rel=0.15)
    assert find_calibration(result, "energy", "b")["scale"] == pytest.approx(5.0, rel=0.15)
    pooled = result["energy"]["pooled"]
    assert pooled["count"] == 803
    assert find_calibration(result, "energy", "few") == pooled
    assert find_calibration(result, "energy", None) == pooled
