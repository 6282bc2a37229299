"""What a run starts from: which structures, in which folder, from which checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from gfm.errors import ConfigError, DataError
from gfm.runtime.config import parse_config
from gfm.runtime.runs import RunFolder, writing
from store.dataset import Dataset
from train.batches import shuffled
from train.checkpoint import Checkpoint, newest
from train.config import TrainConfig, config_changes

__all__ = ["DTYPES", "Selection", "begin", "select"]

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32}

# What a run makes in its folder; a fresh start removes these and nothing else.
_OWN = ("checkpoints", "model", "plots", "metrics.jsonl", "summary.json", "provenance.json", "config.yaml")


@dataclass(frozen=True)
class Selection:
    """The structures of a run.

    Attributes:
        names: Sources that are used, in the dataset's order.
        train: Row ids to train on, ascending (n,).
        validation: Row ids to validate on, ascending (m,).
    """

    names: list[str]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]

    @property
    def ids(self) -> NDArray[np.int64]:
        """All row ids that are needed, ascending."""
        return np.sort(np.concatenate([self.train, self.validation]))


def select(dataset: Dataset, config: TrainConfig) -> Selection:
    """Choose the structures of the sources that are asked for; a subset is drawn by seed.

    Raises:
        DataError: A source does not exist, or nothing is left to train or validate on.
    """
    names = [name for name in dataset.dataset_names if config.sources is None or name in config.sources]
    if config.sources is not None:
        for name in config.sources:
            dataset.split_ids("train", name)  # an unknown name is answered with the known ones
    parts = {}
    for split in ("train", "validation"):
        parts[split] = np.sort(np.concatenate([dataset.split_ids(split, name) for name in names]))
        if len(parts[split]) == 0:
            raise DataError(
                f"{config.dataset}: no {split} structures in {', '.join(names)}; ingest more structures or "
                "other split fractions"
            )
    train = parts["train"]
    limit = config.max_train_structures
    if limit is not None and limit < len(train):
        # Epoch 2**63 never comes: the draw is independent of every epoch's order.
        train = np.sort(train[shuffled(np.arange(limit), len(train), config.seed, 2**63)])
    return Selection(names, train, parts["validation"])


def begin(
    folder: RunFolder,
    config: TrainConfig,
    ranks: int,
    *,
    resume: bool,
    extend: bool,
    say: Callable[[str], None],
) -> Checkpoint | None:
    """Return the checkpoint to go on from, None for a start from the beginning. For rank 0 alone.

    Whoever changes the number of ranks may change batch.size with it so that the global batch stays.

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    if not resume:
        for name in _OWN:
            path = folder / name
            with writing(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return None
    found = newest(folder / "checkpoints", lambda text: say(f"checkpoint {text}"))
    if found is None:
        folder.cut_after(-1)
        return None
    checkpoint, content = found
    old = parse_config(TrainConfig, yaml.safe_load(content["config"]), str(checkpoint.path))
    changes = config_changes(old, config)
    if extend and config.epochs > old.epochs:
        changes.pop("epochs")
    if content["ranks"] * old.batch.size == ranks * config.batch.size:
        changes.pop("batch.size", None)
    if changes:
        raise ConfigError(_refusal(folder, changes))
    return checkpoint


def _refusal(folder: RunFolder, changes: dict[str, tuple[Any, Any]]) -> str:
    lines = [f"  {key}: {old} -> {new}" for key, (old, new) in changes.items()]
    longer = set(changes) == {"epochs"} and changes["epochs"][1] > changes["epochs"][0]
    remedy = (
        "continue it for more epochs with --extend"
        if longer
        else "undo the changes, choose another output, or start over with --fresh"
    )
    return "\n".join([f"{folder.path} holds a run with another configuration:", *lines, f"Either {remedy}."])
