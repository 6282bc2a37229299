"""Scores against exact formulas, and on synthetic Gaussians whose scores are known."""

import numpy as np
import pytest
import scoringrules
from scipy.stats import norm, spearmanr

from hpo.scores import LEVELS, ScoreSums, gaussian_crps, gaussian_nll, score


def gaussian(n: int = 40_000, factor: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors drawn from sigmas that are then understated by a factor."""
    rng = np.random.default_rng(seed)
    sigmas = np.exp(rng.normal(-3, 0.8, n))
    return rng.normal(0, sigmas), sigmas / factor


def test_nll_and_crps_equal_the_libraries() -> None:
    errors, sigmas = gaussian(500)
    np.testing.assert_allclose(gaussian_nll(errors, sigmas), -norm.logpdf(errors, scale=sigmas), rtol=1e-12)
    np.testing.assert_allclose(
        gaussian_crps(errors, sigmas), scoringrules.crps_normal(errors, 0.0, sigmas), rtol=1e-9
    )


def test_calibrated_gaussian_scores_as_such() -> None:
    result = score(*gaussian())
    assert result["miscalibration_area"] < 0.01
    assert result["ence"] < 0.05
    for level, share in result["coverage"].items():
        assert share == pytest.approx(float(level.rstrip("%")) / 100, abs=0.01)


def test_sigma_too_small_by_two_is_seen() -> None:
    result = score(*gaussian(factor=2.0))
    assert result["ence"] == pytest.approx(1.0, abs=0.05)
    assert result["coverage"]["95%"] == pytest.approx(2 * norm.cdf(1.96 / 2) - 1, abs=0.01)
    # the area between the diagonal and 2 Phi(q/2) - 1, by numerical quadrature
    p = np.linspace(0, 1, 10_001)[:-1]
    expected = np.mean(p - (2 * norm.cdf(norm.ppf(0.5 + p / 2) / 2) - 1))
    assert result["miscalibration_area"] == pytest.approx(expected, abs=0.01)


def test_hand_computed_case() -> None:
    result = score(np.array([1.0, -1.0, 0.0, 2.0]), np.ones(4))
    assert result["mae"] == 1.0
    assert result["rmse"] == pytest.approx(np.sqrt(1.5))
    assert result["nll"] == pytest.approx(0.5 * np.log(2 * np.pi) + 0.75)
    assert result["coverage"] == {"68%": 0.25, "90%": 0.75, "95%": 0.75}
    assert result["spearman"] is None  # one sigma everywhere ranks nothing


def test_rank_correlation_from_the_grid_is_that_of_the_values() -> None:
    errors, sigmas = gaussian(20_000, seed=3)
    exact = spearmanr(np.abs(errors), sigmas).statistic
    assert score(errors, sigmas)["spearman"] == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("cuts", [(0, 0), (1, 700), (333, 334)])
def test_merged_sums_equal_the_sums_of_all(cuts: tuple[int, int]) -> None:
    errors, sigmas = gaussian(1000, seed=4)
    whole = ScoreSums.of(errors, sigmas).scores()
    parts = [ScoreSums.of(e, s) for e, s in zip(np.split(errors, cuts), np.split(sigmas, cuts), strict=True)]
    merged = parts[0].merge(parts[1]).merge(parts[2]).scores()
    assert merged.pop("coverage") == whole.pop("coverage")
    assert merged == pytest.approx(whole, rel=1e-12)


def test_reliability_bins_hold_all_values_once() -> None:
    errors, sigmas = gaussian(5000, seed=5)
    bins = ScoreSums.of(errors, sigmas).reliability()
    assert sum(count for *_, count in bins) == 5000
    assert len(bins) == 20
    assert [rmv for rmv, *_ in bins] == sorted(rmv for rmv, *_ in bins)
    assert max(count for *_, count in bins) < 1.6 * 250


def test_constant_sigma_baseline_is_worse_than_knowing_sigma() -> None:
    errors, sigmas = gaussian()
    sums = ScoreSums.of(errors, sigmas)
    rmse = float(np.sqrt(np.mean(errors**2)))
    baseline = sums.constant_nll(rmse)
    assert baseline == pytest.approx(np.mean(gaussian_nll(errors, np.full_like(errors, rmse))))
    assert baseline is not None
    assert sums.scores()["nll"] < baseline - 0.5


def test_observed_shares_never_fall_and_nothing_is_scored_as_such() -> None:
    sums = ScoreSums.of(*gaussian(300))
    assert len(sums.observed()) == len(LEVELS)
    assert (np.diff(sums.observed()) >= 0).all()
    assert ScoreSums.empty().scores() == {"count": 0}
