"""What tests of studies share: a small study, and a training that takes no time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    import math

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
