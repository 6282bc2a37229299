"""The loop in one process: it learns, it stops and goes on to the bit, it says what is wrong."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gfm.data.structure import Structure
from gfm.errors import ConfigError, DataError, ResourceError
from gfm.runtime.config import parse_config
from gfm.runtime.runs import RunFolder
from store import open_dataset
from store.samples import open_samples
from train.config import TrainConfig
from train.loop import Diverged, Interrupted, TrainResult, train
from train.setup import select

Settings = Callable[..., dict[str, Any]]


def _train(settings: dict[str, Any], **options: Any) -> TrainResult:
    return train(parse_config(TrainConfig, settings, "test"), quiet=True, **options)


def _outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return a run's records without what depends on the clock, and its best weights."""
    records = RunFolder(folder).records()
    clocked = ("seconds", "joules", "structures_per_second")
    kept = [{key: value for key, value in record.items() if key not in clocked} for record in records]
    return kept, load_file(folder / "model" / "model.safetensors")


def _same(one: Path, other: Path) -> None:
    (records, weights), (others, other_weights) = _outcome(one), _outcome(other)
    assert records == others
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_it_learns(settings: Settings, forces: str) -> None:
    data = settings(epochs=25, model__forces=forces, model__hidden=16, optimizer__ema=0.9)
    result = _train(data)
    records = RunFolder(data["output"]).records()
    assert [record["epoch"] for record in records] == list(range(26))
    assert result.status == "finished"
    # Zero forces are the mean |F| off; before training the model is about there.
    assert result.best["validation"]["loss"] < 0.5 * records[0]["validation"]["loss"]
    assert result.best["train"]["loss"] < 0.5 * records[1]["train"]["loss"]
    assert result.best in records
    assert result.joules > 0
    assert result.joules_method


def test_the_folder_tells_the_whole_run(settings: Settings) -> None:
    data = settings(plots=True)
    result = _train(data)
    folder = Path(data["output"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["epochs"] == 2
    assert (summary["ranks"], summary["store"]) == (1, "local")
    assert summary["parameters"] > 0
    assert summary["best"] == result.best
    assert summary["joules_method"] == result.joules_method
    assert summary["first"]["epoch"] == 0
    for name in ("config.yaml", "provenance.json", "plots/loss.png", "plots/parity.png"):
        assert (folder / name).stat().st_size > 0
    record = result.last
    assert set(record["validation"]["datasets"]) == {"clusters", "alloys"}
    assert record["validation"]["structures"] == sum(
        entry["structures"] for entry in record["validation"]["datasets"].values()
    )
    total = sum(line["joules"] for line in RunFolder(folder).records())
    assert result.joules == pytest.approx(total)
    names = sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))
    assert names == ["epoch-00001.pt", "epoch-00002.pt"]


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    settings: Settings, tmp_path: Path, forces: str
) -> None:
    straight = settings(output=str(tmp_path / "straight"), epochs=4, model__forces=forces)
    broken = settings(output=str(tmp_path / "broken"), epochs=4, model__forces=forces)
    _train(straight)
    seen: list[int] = []

    def two(record: dict[str, Any]) -> bool:
        seen.append(record["epoch"])
        return record["epoch"] < 2

    stopped = _train(broken, on_epoch=two)
    assert (stopped.status, stopped.epochs, seen) == ("stopped", 2, [1, 2])
    result = _train(broken)
    assert (result.status, result.epochs) == ("finished", 4)
    _same(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_within_an_epoch_and_it_goes_on_to_the_same_bits(
    settings: Settings, tmp_path: Path, signum: int, code: int
) -> None:
    straight = settings(output=str(tmp_path / "straight"), epochs=3)
    broken = settings(output=str(tmp_path / "broken"), epochs=3)
    _train(straight)

    def interrupt(step: int, loss: float) -> None:
        if step == 11:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted, match=signal.Signals(signum).name) as caught:
        _train(broken, on_step=interrupt)
    assert caught.value.exit_code == code
    assert RunFolder(tmp_path / "broken").summary()["status"] == "interrupted"  # type: ignore[index]
    assert any("-at-" in path.name for path in (tmp_path / "broken" / "checkpoints").iterdir())
    assert _train(broken).status == "finished"
    _same(tmp_path / "straight", tmp_path / "broken")


def test_a_second_ctrl_c_does_not_wait(settings: Settings) -> None:
    def twice(step: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _train(settings(), on_step=twice)
    assert signal.getsignal(signal.SIGINT) is former


def test_a_crash_between_checkpoints_doubles_nothing(settings: Settings, tmp_path: Path) -> None:
    straight = settings(output=str(tmp_path / "straight"), epochs=4, checkpoint__every=2)
    broken = settings(output=str(tmp_path / "broken"), epochs=4, checkpoint__every=2)
    _train(straight)

    def crash(record: dict[str, Any]) -> bool:
        if record["epoch"] == 3:
            raise RuntimeError("power cut")
        return True

    with pytest.raises(RuntimeError, match="power cut"):
        _train(broken, on_epoch=crash)
    assert len(RunFolder(tmp_path / "broken").records()) == 4
    _train(broken)
    _same(tmp_path / "straight", tmp_path / "broken")


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, broken = settings(output=str(tmp_path / "a"), epochs=3), settings(output=str(tmp_path / "b"))
    broken["epochs"] = 3
    _train(straight)
    _train(broken, on_epoch=lambda record: record["epoch"] < 2)
    last = tmp_path / "b" / "checkpoints" / "epoch-00002.pt"
    last.write_bytes(last.read_bytes()[:-100])
    train(parse_config(TrainConfig, broken, "test"))
    assert "skipped" in (said := capsys.readouterr().err)
    assert "epoch-00002.pt" in said
    _same(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_is_not_trained_again(settings: Settings) -> None:
    first = _train(settings())
    again = _train(settings(), on_epoch=lambda record: pytest.fail("an epoch was trained"))
    assert again == first


def test_another_configuration_is_refused_with_what_differs(settings: Settings) -> None:
    _train(settings())
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.005 -> 0\.1"):
        _train(settings(optimizer__learning_rate=0.1))
    with pytest.raises(ConfigError, match="--extend"):
        _train(settings(epochs=3))
    with pytest.raises(ConfigError, match="epochs: 2 -> 1"):
        _train(settings(epochs=1), extend=True)
    result = _train(settings(epochs=3), extend=True)
    assert result.epochs == 3
    fresh = _train(settings(epochs=1), resume=False)
    assert fresh.epochs == 1
    assert len(RunFolder(settings()["output"]).records()) == 2


def test_another_content_of_the_dataset_is_refused(
    settings: Settings, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    path = make_dataset(tmp_path / "changing", 20, 0)
    _train(settings(dataset=str(path)), on_epoch=lambda record: False)
    make_dataset(path, 30, 0)
    with pytest.raises(DataError, match="content has changed"):
        _train(settings(dataset=str(path)))


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_labels_that_are_not_finite_are_named_before_training(
    settings: Settings, tmp_path: Path, make_dataset: Callable[..., Path], label: str
) -> None:
    def spoil(row: int, structure: Structure) -> None:
        if row == 14 and label == "energy":
            structure.energy = float("inf")
        elif row == 14:
            assert structure.forces is not None
            structure.forces[0, 1] = np.nan

    path = make_dataset(tmp_path / "spoilt", 30, 0, change=spoil)
    with pytest.raises(DataError, match=f"clusters:{114:016x}"):
        _train(settings(dataset=str(path)))


def test_a_run_that_diverges_ends_with_step_and_structures(settings: Settings) -> None:
    data = settings(optimizer={"learning_rate": 1e37, "warmup_steps": 0, "clip": None}, batch__size=4)
    with pytest.raises(Diverged, match=r"step \d+ \(epoch 1\): .*(clusters|alloys):[0-9a-f]{16}"):
        _train(data)
    assert RunFolder(data["output"]).summary()["status"] == "diverged"  # type: ignore[index]


def test_a_folder_that_cannot_be_made_is_said(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResourceError, match=r"file/run.* cannot be written"):
        _train(settings(output=str(tmp_path / "file" / "run")))


def test_an_open_sample_store_is_used_and_left_open(settings: Settings, dataset_path: Path) -> None:
    dataset = open_dataset(dataset_path)
    config = parse_config(TrainConfig, settings(epochs=1), "test")
    samples = open_samples(dataset, "local", ids=select(dataset, config).ids)
    train(config, samples=samples, quiet=True)
    before = samples.stats["records"]
    assert before > 0
    train(config, samples=samples, quiet=True, resume=False)
    assert samples.stats["records"] > before


def test_one_source_and_a_subset_of_it(settings: Settings) -> None:
    result = _train(settings(sources=["alloys"], max_train_structures=9))
    summary = RunFolder(settings()["output"]).summary()
    assert summary is not None
    assert summary["train_structures"] == 9
    assert set(result.last["validation"]["datasets"]) == {"alloys"}
    with pytest.raises(DataError, match="aloys"):
        _train(settings(sources=["aloys"]), resume=False)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_other_precisions(settings: Settings, precision: str) -> None:
    result = _train(settings(precision=precision, epochs=4))
    first = RunFolder(settings()["output"]).records()[1]
    assert result.last["train"]["loss"] < 0.98 * first["train"]["loss"]


def test_reading_from_disk_gives_the_same_run(settings: Settings, tmp_path: Path) -> None:
    one, other = settings(output=str(tmp_path / "a")), settings(output=str(tmp_path / "b"), store="disk")
    _train(one)
    _train(other)
    (records, weights), (others, other_weights) = _outcome(tmp_path / "a"), _outcome(tmp_path / "b")
    assert [record["validation"] for record in records] == [record["validation"] for record in others]
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
