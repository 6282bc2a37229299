"""Several ranks with the memory store are one rank with the whole batch: same losses, same weights."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from gfm.runtime.config import dump_config, parse_config
from gfm.runtime.runs import RunFolder
from store import open_dataset
from store.samples import open_samples
from train.checkpoint import newest
from train.cli import app
from train.config import TrainConfig
from train.evaluate import ALONE
from train.loop import Interrupted, train
from train.scales import training_scales
from train.setup import select

Settings = Callable[..., dict[str, Any]]

# Trains one configuration after the other on the same ranks and writes each one's loss by step.
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from gfm.runtime.config import parse_config
from gfm.runtime.mpi import world
from train.config import TrainConfig
from train.loop import Interrupted, train

comm = world()
for settings in json.loads(Path(sys.argv[1]).read_text()):
    stop_at = settings.pop("stop_at", None)
    config = parse_config(TrainConfig, settings, "script")
    losses = []

    def note(step, loss):
        losses.append(loss)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)

    try:
        result = train(config, comm=comm, on_step=note, quiet=True)
        assert result.last["ranks"] == comm.size
        assert result.last["store"] == "rma"
    except Interrupted as error:
        assert stop_at is not None, error
    if comm.rank == 0:
        (config.output / "losses.json").write_text(json.dumps(losses))
"""


def _mpiexec(ranks: int, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    return subprocess.run(
        [str(mpiexec), "-n", str(ranks), *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
    )


def _train_on_ranks(ranks: int, tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    result = _mpiexec(
        ranks, sys.executable, "-m", "mpi4py", tmp_path / "script.py", tmp_path / "runs.json", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr


def _train_alone(settings: dict[str, Any]) -> list[float]:
    losses: list[float] = []
    config = parse_config(TrainConfig, settings, "test")
    train(config, on_step=lambda step, loss: losses.append(loss), quiet=True)
    return losses


def _stop_alone(settings: dict[str, Any], step: int) -> None:
    def stop(number: int, loss: float) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Interrupted):
        train(parse_config(TrainConfig, settings, "test"), on_step=stop, quiet=True)


def _final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights after the last step (not the average), from the newest checkpoint."""
    found = newest(folder / "checkpoints", pytest.fail)
    assert found is not None
    weights: dict[str, torch.Tensor] = found[1]["model"]
    return weights


def _assert_same(one: Path, other: Path, tolerance: float) -> None:
    records, others = RunFolder(one).records(), RunFolder(other).records()
    assert len(records) == len(others) > 1
    for record, twin in zip(records, others, strict=True):
        for key in ("loss", "energy_mae_mev_per_atom", "forces_mae_ev_per_angstrom", "structures"):
            assert record["validation"][key] == pytest.approx(twin["validation"][key], rel=tolerance)
        assert record["step"] == twin["step"]
    weights, twins = _final_weights(one), _final_weights(other)
    assert weights.keys() == twins.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, twins[name], rtol=tolerance, atol=tolerance)


# 25 structures in batches of 8: the last one has a single structure, so one of two ranks has none.
_VARIANTS: dict[str, dict[str, Any]] = {
    "direct": {"precision": "fp64"},
    "gradient": {"precision": "fp64", "model__forces": "gradient"},
    "gradient fp32": {"model__forces": "gradient"},
    "shared heads": {"precision": "fp64", "model__heads": "shared", "model__layer": "egnn"},
    "dealt in turn": {"precision": "fp64", "batch__balance": False},
}


@pytest.mark.mpi
@pytest.mark.slow
def test_two_ranks_do_what_one_does(settings: Settings, tmp_path: Path) -> None:
    pairs = []
    for name, overrides in _VARIANTS.items():
        folder = tmp_path / name.replace(" ", "-")
        common = {"max_train_structures": 25, "store": "rma", **overrides}
        alone = settings(**{**common, "store": "local"}, output=str(folder / "one"), batch__size=8)
        pairs.append((name, alone, settings(**common, output=str(folder / "two"), batch__size=4)))
    _train_on_ranks(2, tmp_path, [both for _, _, both in pairs])
    for name, alone, both in pairs:
        tolerance = 2e-4 if "fp32" in name else 1e-9
        expected = _train_alone(alone)
        losses = json.loads((Path(both["output"]) / "losses.json").read_text())
        assert len(expected) == 4 * alone["epochs"]
        assert losses == pytest.approx(expected, rel=tolerance), name
        _assert_same(Path(alone["output"]), Path(both["output"]), tolerance)
    # Whom a structure is dealt to changes nothing but rounding.
    _assert_same(Path(pairs[0][2]["output"]), Path(pairs[-1][2]["output"]), 1e-9)


@pytest.mark.mpi
@pytest.mark.slow
def test_a_run_on_ranks_that_was_stopped_goes_on(settings: Settings, tmp_path: Path) -> None:
    straight = settings(output=str(tmp_path / "straight"), precision="fp64", epochs=3)
    moved = settings(output=str(tmp_path / "moved"), precision="fp64", epochs=3, batch__size=4)
    _train_alone(straight)
    _train_on_ranks(2, tmp_path, [{**moved, "stop_at": 11}])
    assert RunFolder(tmp_path / "moved").summary()["status"] == "interrupted"  # type: ignore[index]
    # The signal came after step 11; the step after it was finished.
    content = newest(tmp_path / "moved" / "checkpoints", pytest.fail)
    assert content is not None
    assert (content[1]["ranks"], content[0].epoch, content[0].position) == (2, 1, 32)
    _train_on_ranks(2, tmp_path, [moved])
    _assert_same(tmp_path / "straight", tmp_path / "moved", 1e-9)
    records = RunFolder(tmp_path / "moved").records()
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]


@pytest.mark.mpi
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(settings: Settings, tmp_path: Path) -> None:
    common = {"precision": "fp64", "epochs": 3, "store": "auto"}
    _train_alone(settings(**common, output=str(tmp_path / "straight"), batch__size=8))
    down, up = ({**common, "output": str(tmp_path / name)} for name in ("down", "up"))
    # The same global batch on fewer or more ranks: the same run, to rounding.
    _train_on_ranks(2, tmp_path, [{**settings(**down, batch__size=4), "stop_at": 11}])
    _train_alone(settings(**down, batch__size=8))
    _stop_alone(settings(**up, batch__size=8), 11)
    # The same batch per rank: another global batch, the structures still in the same order.
    other = {**common, "output": str(tmp_path / "other")}
    _stop_alone(settings(**other, batch__size=8), 11)
    _train_on_ranks(2, tmp_path, [settings(**up, batch__size=4), settings(**other, batch__size=8)])
    for name in ("down", "up"):
        _assert_same(tmp_path / "straight", tmp_path / name, 1e-9)
    records = RunFolder(tmp_path / "other").records()
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    # 64 structures: 8 steps of 8; then, 32 structures into the second epoch, steps of 16.
    assert [record["step"] for record in records] == [0, 8, 8, 12]


@pytest.mark.mpi
@pytest.mark.slow
def test_the_command_line_on_ranks(settings: Settings, tmp_path: Path) -> None:
    data = settings(epochs=1, output="run")
    # One source has heads of shape (1, n), over which torch would warn.
    data["sources"] = ["clusters"]
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(data))
    gfm = Path(sys.executable).with_name("gfm")
    wrong = _mpiexec(2, gfm, "train", "run", "train.yaml", "batch.siz=4", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.count("batch.siz: unknown key. Did you mean 'size'?") == 1
    result = _mpiexec(2, gfm, "train", "run", "train.yaml", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    report = json.loads(result.stdout)
    assert (report["status"], report["last"]["ranks"], report["last"]["store"]) == ("finished", 2, "rma")
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")
    evaluated = _mpiexec(2, gfm, "train", "evaluate", "run", "--split", "validation", "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(evaluated.stdout)
    assert metrics["loss"] == pytest.approx(report["best"]["validation"]["loss"], rel=1e-5)


def test_a_run_of_ranks_is_measured_by_one_process(settings: Settings, tmp_path: Path) -> None:
    config = parse_config(TrainConfig, settings(epochs=1), "test")
    train(config, quiet=True)
    run = RunFolder(config.output)
    run.write_config(dump_config(config.model_copy(update={"store": "rma"})))
    result = CliRunner().invoke(app, ["evaluate", str(config.output), "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["structures"] == 8


def test_scales_are_the_root_mean_squares_of_the_training_labels(
    settings: Settings, dataset_path: Path
) -> None:
    dataset = open_dataset(dataset_path)
    config = parse_config(TrainConfig, settings(), "test")
    selection = select(dataset, config)
    names = dataset.dataset_names
    scales = training_scales(
        open_samples(dataset, "local"),
        selection.train,
        dataset.references[::-1],
        stored=names,
        trained=names[::-1],
        ranks=ALONE,
    )
    forces = [
        dataset[row].forces
        for row in selection.train
        if dataset[row].dataset == 1 and dataset[row].forces is not None
    ]
    expected = torch.cat([torch.tensor(force).double().flatten() for force in forces]).square().mean().sqrt()
    assert scales.forces[0] == pytest.approx(float(expected))
    assert [int(z) for z in scales.seen[1].nonzero()[0]] == [1, 6, 8]
    assert 0.01 < scales.energy[1] < 10
