"""The state of a run: what one step changes, and how it goes to disk and comes back, bit for bit."""

import importlib.metadata
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gfm
from gfm.errors import DataError
from gfm.model.build import save_model
from gfm.model.potential import Potential
from gfm.runtime.config import dump_config
from gfm.runtime.runs import RunFolder, writing
from train import checkpoint
from train.batches import GlobalBatches
from train.config import TrainConfig
from train.optimize import MovingAverage
from train.ranks import Ranks

__all__ = ["EpochRecord", "Spent", "State", "save_best"]

# One line of metrics.jsonl; `train.loop.train` says what is in it.
EpochRecord = dict[str, Any]


@dataclass
class Spent:
    """What the run cost so far.

    Attributes:
        seconds: Wall seconds, whole run.
        joules: Over all ranks, whole run.
        epoch_seconds: Of the present epoch.
        epoch_joules: Of the present epoch.
        training_seconds: Of the present epoch's steps, without validation.
    """

    seconds: float = 0.0
    joules: float = 0.0
    epoch_seconds: float = 0.0
    epoch_joules: float = 0.0
    training_seconds: float = 0.0


@dataclass
class State:
    """A run between two steps.

    Attributes:
        potential: The model being trained.
        objective: It and its loss, its gradients averaged over ranks.
        average: Moving average of the weights, which is validated and saved.
        optimizer: AdamW.
        epoch: Whole epochs done.
        step: Optimiser steps done.
        position: Structures of the next epoch done.
        loss_sum: This rank's part of the sum of losses times structures over the present epoch.
        best: Record of the epoch with the lowest validation loss.
        best_weights: The average's weights at that epoch.
        spent: Seconds and joules.
        charged: Joules of the running meters that are already in ``spent``; not saved.
    """

    potential: Potential
    objective: nn.Module
    average: MovingAverage[Potential]
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    position: int = 0
    loss_sum: float = 0.0
    best: EpochRecord | None = None
    best_weights: dict[str, Tensor] | None = None
    spent: Spent = field(default_factory=Spent)
    charged: float = 0.0

    def save(
        self, folder: RunFolder, config: TrainConfig, ranks: Ranks, content_hash: str, loss: float | None
    ) -> None:
        """Write a checkpoint and remove superfluous ones; collective, written by rank 0."""
        loss_sum = float(ranks.sum(torch.tensor(self.loss_sum, dtype=torch.float64, device=ranks.device)))
        random_states = ranks.gather(torch.get_rng_state())

        def write() -> None:
            best_is_now = self.best is not None and self.best["epoch"] == self.epoch and not self.position
            content = {
                "model": self.potential.state_dict(),
                "average": self.average.module.state_dict(),
                "average_updates": self.average.updates,
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "position": self.position,
                "loss_sum": loss_sum,
                "best": json.dumps(self.best),
                "best_weights": None if best_is_now else self.best_weights,
                "spent": dict(vars(self.spent)),
                "random_states": random_states,
                "ranks": ranks.size,
                "config": dump_config(config),
                "content_hash": content_hash,
                "versions": {"gfm": gfm.__version__, "torch": importlib.metadata.version("torch")},
            }
            place = folder / "checkpoints"
            checkpoint.write(place, content, epoch=self.epoch, position=self.position, loss=loss)
            checkpoint.prune(place, config.checkpoint.keep)

        ranks.first(write)

    def restore(self, content: dict[str, Any], batches: GlobalBatches, ranks: Ranks, content_hash: str) -> None:
        """Take over a checkpoint's content, on the same number of ranks or another.

        Raises:
            DataError: The dataset has another content than the one the checkpoint was trained on.
        """
        if content["content_hash"] != content_hash:
            raise DataError(
                f"the dataset's content has changed since this run began (hash {content['content_hash']}, now "
                f"{content_hash}); restore it, choose another output, or start over with --fresh"
            )
        self.potential.load_state_dict(content["model"])
        self.average.module.load_state_dict(content["average"])
        self.average.updates = content["average_updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.position = content["epoch"], content["position"]
        # On as many ranks as before this is content["step"]; the schedule goes by the share that is done.
        self.step = self.epoch * len(batches) + -(-self.position // batches.size)
        self.loss_sum = content["loss_sum"] if ranks.rank == 0 else 0.0
        self.best = json.loads(content["best"])
        self.best_weights = content["best_weights"]
        if self.best is not None and self.best_weights is None:
            self.best_weights = content["average"]
        self.spent = Spent(**content["spent"])
        if content["ranks"] == ranks.size:
            torch.set_rng_state(content["random_states"][ranks.rank])

    def note_best(self, record: EpochRecord) -> bool:
        """Keep the average's weights if this record has the lowest validation loss so far."""
        if self.best is not None and record["validation"]["loss"] >= self.best["validation"]["loss"]:
            return False
        self.best = record
        self.best_weights = {
            name: value.detach().cpu().clone() for name, value in self.average.module.state_dict().items()
        }
        return True


def save_best(state: State, folder: RunFolder) -> None:
    """Write the best weights to the run's ``model`` directory, replacing it as a whole; rank 0 only."""
    assert state.best_weights is not None
    present = {name: value.clone() for name, value in state.average.module.state_dict().items()}
    new, old = folder / ".model-new", folder / ".model-old"
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    target: Path = folder / "model"
    with writing(target):
        state.average.module.load_state_dict(state.best_weights)
        save_model(state.average.module, new)
        state.average.module.load_state_dict(present)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)
