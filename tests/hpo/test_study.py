"""The study file: what is refused and how, what a trial's configuration becomes, what may change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gfm.errors import ConfigError, MissingDataError
from hpo.space import distributions
from hpo.study import (
    Finish,
    StudyConfig,
    check_space,
    load_study,
    read_study,
    trial_config,
    write_study,
)

MakeStudy = Callable[..., StudyConfig]

STUDY = """\
name: demo
output: out/study
base: train.yaml
space:
  model.hidden: {int: [16, 64], log: true}
  optimizer.learning_rate: {float: [3e-4, 1e-2], log: true}
  model.layer: {categorical: [egnn, painn]}
sampler: tpe
discard: {kind: median, startup_trials: 4, warmup_epochs: 2}
epochs: 10
trials: 8
workers: 2
seed: 0
finish: {best: 3, epochs: 20}
"""


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text("dataset: data\noutput: run\nbatch: {size: 4}\n")
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return file


def test_a_study_file_loads_with_its_base_beside_it(study_file: Path) -> None:
    config = load_study(study_file, ("trials=12",))
    assert config.trials == 12
    assert config.output == study_file.parent / "out/study"
    assert config.base["batch"] == {"size": 4}
    assert config.base["dataset"] == str(study_file.parent / "data")
    assert config.sampler.kind == "tpe"
    assert config.finish == Finish(best=3, epochs=20)


def test_a_trial_gets_its_settings_folder_and_epochs(study_file: Path) -> None:
    config = load_study(study_file)
    trial = trial_config(config, {"model.hidden": 24, "optimizer.learning_rate": 2e-3}, Path("/folder"))
    assert (trial.model.hidden, trial.optimizer.learning_rate) == (24, 2e-3)
    assert (trial.epochs, trial.output, trial.batch.size) == (10, Path("/folder"), 4)
    assert "model" not in config.base  # a trial does not write into the study


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.hiden": {"int": [1, 2]}}, "Did you mean 'model.hidden'"),
        ({"epochs": {"int": [1, 2]}}, "same number of epochs"),
        ({"dataset": {"categorical": ["a", "b"]}}, "one dataset"),
        ({"optimizer.schedule": {"categorical": ["cosine", "sine"]}}, "optimizer.schedule = 'sine'"),
        ({"optimizer.learning_rate": {"float": [-1.0, 1.0]}}, r"optimizer.learning_rate = -1.0"),
    ],
)
def test_what_the_training_would_refuse_is_refused_before_it_starts(
    make_study: MakeStudy, space: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space(make_study(space=space), "study.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("space={model.hidden: {int: [64, 16]}}", "low end 64 is above the high end 16"),
        ("space={model.hidden: {float: [0, 1], log: true}}", "begins above 0"),
        ("space={model.hidden: {integer: [1, 2]}}", r"expected \{int: \[low, high\]\}"),
        ("finish={best: 2, epochs: 10}", "not above the trials' 10"),
        ("discard=medium", "discard"),
        ("discard={kind: median, factor: 2}", "unknown key"),
        ("trial=3", "Did you mean 'trials'"),
        ("workers=0", "workers"),
    ],
)
def test_a_study_file_that_cannot_be_used_says_why(study_file: Path, changes: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(study_file, (changes,))


def test_the_space_becomes_distributions(study_file: Path) -> None:
    found = distributions(load_study(study_file).space)
    assert set(found) == {"model.hidden", "optimizer.learning_rate", "model.layer"}
    rate = found["optimizer.learning_rate"]
    assert (rate.low, rate.high, rate.log) == (3e-4, 1e-2, True)  # type: ignore[attr-defined]
    assert found["model.layer"].choices == ("egnn", "painn")  # type: ignore[attr-defined]


def test_a_written_study_reads_back_also_from_another_place(study_file: Path, tmp_path: Path) -> None:
    config = load_study(study_file)
    write_study(config)
    assert read_study(config.output) == config
    config.output.rename(tmp_path / "moved")
    assert read_study(tmp_path / "moved") == config.model_copy(update={"output": tmp_path / "moved"})


def test_only_the_budget_of_a_study_may_change(study_file: Path) -> None:
    write_study(load_study(study_file))
    write_study(load_study(study_file, ("trials=20", "workers=4", "finish=null")))
    assert read_study(study_file.parent / "out/study").trials == 20
    with pytest.raises(ConfigError, match="another epochs, seed"):
        write_study(load_study(study_file, ("seed=1", "epochs=11")))


def test_an_empty_folder_has_no_study(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no study here"):
        read_study(tmp_path)


def test_the_file_on_disk_is_plain_yaml(study_file: Path) -> None:
    config = load_study(study_file)
    write_study(config)
    data = yaml.safe_load((config.output / "study.yaml").read_text())
    assert data["space"]["model.hidden"] == {"int": [16, 64], "log": True, "step": 1}
