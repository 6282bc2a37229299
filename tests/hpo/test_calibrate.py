"""Calibration recovers what synthetic data was made with, and says so when it cannot."""

import numpy as np
import pytest

from gfm.model.ensemble_card import calibrated_sigma, find_calibration
from hpo.calibrate import RATIOS, CalibrationWarning, SpreadSums, calibrate, conformal_quantile
from hpo.scores import score

# So many members do not agree by chance.
MANY = 1_000_001


def sums_of(errors: np.ndarray, spreads: np.ndarray, floor: float = 1e-6) -> SpreadSums:
    return SpreadSums.of(errors, spreads, spreads, floor)


def understated(n: int, factor: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sigmas = np.exp(rng.normal(-3, 0.8, n))
    return rng.normal(0, sigmas), sigmas / factor


def quantile(errors: np.ndarray, sigmas: np.ndarray) -> float | None:
    return conformal_quantile(RATIOS.count(np.abs(errors) / sigmas))


def test_scale_two_is_recovered_and_mends_the_scores() -> None:
    errors, spreads = understated(20_000, 2.0)
    entry = sums_of(errors, spreads).fit(1e-6, MANY, "test")
    assert entry["scale"] == pytest.approx(2.0, rel=0.02)
    assert entry["offset"] < 0.05 * np.median(spreads)
    test_errors, test_spreads = understated(20_000, 2.0, seed=1)
    sigmas = calibrated_sigma(entry, test_spreads)
    assert score(test_errors, sigmas)["miscalibration_area"] < 0.01
    # the conformal half width of Gaussian data is that of the Gaussian, and covers what it promises
    width = quantile(errors, calibrated_sigma(entry, spreads))
    assert width == pytest.approx(1.645, rel=0.02)
    assert np.mean(np.abs(test_errors) <= width * sigmas) == pytest.approx(0.9, abs=0.01)


def test_what_members_share_becomes_the_offset() -> None:
    rng = np.random.default_rng(7)
    spreads = np.exp(rng.normal(-4, 1.0, 50_000))
    errors = rng.normal(0, np.hypot(1.5 * spreads, 0.05))
    entry = sums_of(errors, spreads).fit(1e-6, MANY, "test")
    assert entry["scale"] == pytest.approx(1.5, rel=0.05)
    assert entry["offset"] == pytest.approx(0.05, rel=0.03)


def test_members_that_agree_by_chance_do_not_blow_sigma_up() -> None:
    errors, spreads = understated(2000, 1.0)
    spreads[:20] = 1e-5
    entry = sums_of(errors, spreads).fit(1e-6, MANY, "test")
    assert (
        score(errors, calibrated_sigma(entry, spreads))["crps"] < 1.3 * score(*understated(2000, 1.0))["crps"]
    )


def test_scale_and_offset_minimise_the_likelihood() -> None:
    errors, spreads = understated(500, 3.0, seed=2)
    spreads = np.hypot(spreads, 0.01)
    best = sums_of(errors, spreads).fit(1e-6, MANY, "test")

    def nll(scale: float, offset: float) -> float:
        changed = best | {"scale": best["scale"] * scale, "offset": best["offset"] * offset}
        return float(score(errors, calibrated_sigma(changed, spreads))["nll"])

    assert nll(1.0, 1.0) < min(nll(1.05, 1.0), nll(0.95, 1.0))
    assert nll(1.0, 1.0) <= nll(0.5, 1.5)


def test_spread_without_meaning_is_given_up_for_a_constant() -> None:
    rng = np.random.default_rng(3)
    entry = sums_of(rng.normal(0, 0.2, 5000), np.exp(rng.normal(-3, 1, 5000))).fit(1e-6, MANY, "test")
    assert entry["offset"] == pytest.approx(0.2, rel=0.05)


def test_conformal_intervals_hold_for_heavy_tails_and_few_values() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        errors = rng.standard_t(2, 41)
        covered.append(abs(errors[-1]) <= (quantile(errors[:-1], np.ones(40)) or 0.0))
    assert 0.87 < np.mean(covered) < 0.96


def test_too_few_values_for_a_conformal_interval_give_none() -> None:
    assert quantile(np.ones(8), np.ones(8)) is None
    assert quantile(np.ones(9), np.ones(9)) == pytest.approx(1.0, rel=0.003)


def test_merging_parts_changes_nothing() -> None:
    errors, spreads = understated(1000, 2.0)
    cuts = [10, 600]
    parts = [sums_of(e, s) for e, s in zip(np.split(errors, cuts), np.split(spreads, cuts), strict=True)]
    merged = parts[0].merge(parts[1]).merge(parts[2]).fit(1e-6, MANY, "test")
    whole = sums_of(errors, spreads).fit(1e-6, MANY, "test")
    for key in ("count", "rmse", "scale", "threshold"):
        assert merged[key] == pytest.approx(whole[key], rel=1e-4), key


def test_identical_members_fall_back_to_the_rmse_with_a_warning() -> None:
    errors = np.array([0.1, -0.3] * 10)
    with pytest.warns(CalibrationWarning, match="do not differ"):
        entry = sums_of(errors, np.zeros(20)).fit(1e-6, MANY, "forces")
    np.testing.assert_allclose(calibrated_sigma(entry, np.zeros(3)), np.sqrt(np.mean(errors**2)))


def test_few_members_that_agree_by_chance_are_not_believed() -> None:
    rng = np.random.default_rng(0)
    sigma = 0.1
    values = rng.normal(0, sigma, (3, 40))
    spreads, errors = values.std(axis=0, ddof=1), rng.normal(0, sigma, 40)
    few = sums_of(errors, spreads).fit(1e-6, 3, "test")
    # Members that agree to a millionth of their usual spread: still no certainty.
    assert calibrated_sigma(few, np.array([1e-6 * sigma]))[0] > 0.3 * sigma
    typical = np.sqrt(np.mean(spreads**2))
    assert few["offset"] >= few["scale"] * typical / np.sqrt(2) * 0.99


def test_threshold_is_exceeded_by_one_structure_in_a_hundred() -> None:
    errors, spreads = understated(10_000, 2.0)
    entry = sums_of(errors, spreads).fit(1e-6, MANY, "test")
    assert np.mean(calibrated_sigma(entry, spreads) > entry["threshold"]) == pytest.approx(0.01, abs=0.002)


def test_each_dataset_has_its_own_and_unseen_ones_the_pooled() -> None:
    a, b, few = understated(400, 2.0, 1), understated(400, 5.0, 2), understated(3, 1.0, 3)
    with pytest.warns(CalibrationWarning, match=r"stands in for .*: few \(3\)"):
        result = calibrate(
            {"energy": [sums_of(*part) for part in (a, b, few)], "forces": []}, ["a", "b", "few"], MANY
        )
    assert set(result) == {"energy"}
    assert find_calibration(result, "energy", "a")["scale"] == pytest.approx(2.0, rel=0.15)
    assert find_calibration(result, "energy", "b")["scale"] == pytest.approx(5.0, rel=0.15)
    pooled = result["energy"]["pooled"]
    assert pooled["count"] == 803
    assert find_calibration(result, "energy", "few") == pooled
    assert find_calibration(result, "energy", None) == pooled
