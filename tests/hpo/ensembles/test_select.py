"""Members are chosen by accuracy, then energy; their folder needs nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gfm.errors import ConfigError, DataError, MissingDataError
from gfm.model.ensemble_card import read_ensemble
from hpo.select import SelectionWarning, choose_members, pareto_front, select


def trials(*pairs: tuple[float, float | None]) -> list[dict[str, Any]]:
    return [{"trial": i, "value": value, "joules": joules} for i, (value, joules) in enumerate(pairs)]


def chosen(listed: list[dict[str, Any]], members: int, weight: float, tolerance: float = 0.5) -> list[int]:
    return [trial["trial"] for trial in choose_members(listed, members, weight, tolerance)]


def test_without_weight_the_most_accurate_are_taken() -> None:
    assert chosen(trials((1.2, 1), (1.0, 9), (1.1, 5), (3.0, 0.1)), 2, 0.0) == [1, 2]


def test_weight_prefers_the_cheap_among_the_accurate_only() -> None:
    listed = trials((1.0, 100), (1.05, 10), (1.10, 10), (4.0, 0.001))
    assert chosen(listed, 2, 0.2) == [1, 2]
    # however large the weight, a trial outside of the first tier is no member
    assert 3 not in chosen(listed, 3, 100.0)


def test_first_tier_is_filled_up_where_too_few_are_accurate() -> None:
    assert sorted(chosen(trials((1.0, 1), (2.0, 1), (3.0, 1)), 2, 0.1, tolerance=0.1)) == [0, 1]


def test_score_is_what_the_documentation_says() -> None:
    first, second = choose_members(trials((1.0, 50), (1.02, 25)), 2, 0.1, 0.5)
    assert (first["trial"], second["trial"]) == (1, 0)
    assert first["score"] == pytest.approx(1.02 + 0.1 * 0.5)
    assert second["score"] == pytest.approx(1.0 + 0.1)


def test_pareto_front_holds_what_nothing_beats_in_both() -> None:
    assert pareto_front(trials((1.0, 9), (1.1, 9), (1.2, 3), (1.3, 4), (2.0, 1))) == [0, 2, 4]


def test_fewer_trials_than_members_warn_and_fewer_than_two_fail() -> None:
    with pytest.warns(SelectionWarning, match="only 2 trials"):
        assert len(choose_members(trials((1.0, 1), (1.1, 1)), 5, 0.1, 0.5)) == 2
    with pytest.raises(DataError, match="1 finished trials"):
        choose_members(trials((1.0, 1)), 3, 0.1, 0.5)


def test_impossible_wishes_are_refused() -> None:
    two = trials((1.0, 1), (1.1, None))
    with pytest.raises(ConfigError, match="at least 2 members"):
        choose_members(two, 1, 0.1, 0.5)
    with pytest.raises(ConfigError, match=r"trials \[1\] have no joules"):
        choose_members(two, 2, 0.1, 0.5)
    with pytest.raises(ConfigError, match="at least 0"):
        choose_members(two, 2, -0.1, 0.5)
    assert len(choose_members(two, 2, 0.0, 0.5)) == 2


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder with three finished trials."""
    output = tmp_path / "study"
    listed = trials((1.0, 30), (1.1, 20), (1.2, 10))
    for trial in listed:
        run = output / "trials" / f"{trial['trial']:04d}"
        (run / "model").mkdir(parents=True)
        (run / "model" / "model.json").write_text(f'{{"trial": {trial["trial"]}}}')
        (run / "config.yaml").write_text(f"dataset: {tmp_path / 'dataset'}\n")
        trial.update(path=str(run), params={"model.hidden": 8})
    monkeypatch.setattr("hpo.study.finished_trials", lambda folder: listed)
    return output


def test_folder_holds_copies_and_relative_paths(study: Path, tmp_path: Path) -> None:
    select(study, tmp_path / "ensemble", members=2, energy_weight=0.0)
    shutil.rmtree(study)
    moved = (tmp_path / "ensemble").rename(tmp_path / "moved")
    ensemble = read_ensemble(moved)
    assert [member["trial"] for member in ensemble["members"]] == [0, 1]
    for member in ensemble["members"]:
        assert (moved / member["model"] / "model.json").read_text() == f'{{"trial": {member["trial"]}}}'
    assert ensemble["dataset"] == str(tmp_path / "dataset")
    assert ensemble["selection"]["pareto_front"] == [0, 1, 2]
    assert ensemble["calibration"] is None


def test_an_ensemble_is_not_overwritten_and_a_missing_model_is_named(study: Path, tmp_path: Path) -> None:
    select(study, tmp_path / "ensemble", members=2)
    with pytest.raises(ConfigError, match="already holds an ensemble"):
        select(study, tmp_path / "ensemble", members=2)
    shutil.rmtree(study / "trials" / "0000" / "model")
    with pytest.raises(MissingDataError, match="trial 0"):
        select(study, tmp_path / "other", members=3)
