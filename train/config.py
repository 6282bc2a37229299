"""What to train, on what, and how: the typed configuration of a training run."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gfm.model.config import ModelConfig
from gfm.runtime.config import Config

__all__ = [
    "BatchConfig",
    "CheckpointConfig",
    "LossConfig",
    "OptimizerConfig",
    "TrainConfig",
    "config_changes",
]


class BatchConfig(Config):
    """How structures are gathered into batches.

    Attributes:
        size: Structures per rank and step; a step's global batch is this times the number of ranks.
        balance: Deal the global batch to the ranks by cost, so that none waits for another.
        edge_cost: Cost of one edge (at the dataset's stated cutoff), any unit.
        atom_cost: Cost of one atom, same unit.
    """

    size: int = Field(default=16, ge=1)
    balance: bool = True
    edge_cost: float = Field(default=1.0, ge=0)
    atom_cost: float = Field(default=10.0, ge=0)


class OptimizerConfig(Config):
    """AdamW, its learning rate over time, clipping, and the moving average that is validated and saved.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps over which the learning rate rises linearly.
        schedule: After the warm-up: cosine down to ``final`` of the peak at the last step, or constant.
        final: Share of the peak that the cosine ends at.
        clip: Largest global gradient norm; null for no clipping.
        ema: Decay of the exponential moving average of the weights; 0 for none.
    """

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=50, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final: float = Field(default=0.01, ge=0, le=1)
    clip: float | None = Field(default=5.0, gt=0)
    ema: float = Field(default=0.99, ge=0, lt=1)


class LossConfig(Config):
    """Weights of the loss: weighted L1 of energy per atom (eV/atom) and force components (eV/angstrom).

    A structure has one energy and many force components, and an error of its energy per atom is small in eV:
    with a smaller share the energy is hardly learnt in the first epochs.
    """

    kind: Literal["l1"] = "l1"
    energy: float = Field(default=5.0, ge=0)
    forces: float = Field(default=1.0, ge=0)


class CheckpointConfig(Config):
    """A checkpoint every so many epochs; the newest ``keep`` and the best one stay."""

    every: int = Field(default=1, ge=1)
    keep: int = Field(default=2, ge=1)


class TrainConfig(Config):
    """One training run.

    Attributes:
        dataset: Folder of the dataset, relative to the current directory.
        output: The run's folder.
        seed: Of the weights and of the order of structures.
        epochs: Passes over the training structures.
        precision: Of the model; "bf16" is float32 weights with autocast.
        store: Where samples are: in memory of each rank ("local"), of all together ("rma"), in files ("disk").
        sources: Names of the dataset's sources to use; null for all.
        threads: Threads of one rank's arithmetic.
        max_train_structures: Train on a random subset of this size; null for all.
        device: "auto" takes a GPU where there is one.
        plots: Draw loss curves and parity plots at the end.
    """

    dataset: Path
    output: Path
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(default=10, ge=1)
    model: ModelConfig = ModelConfig.model_validate({})
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    precision: Literal["fp32", "fp64", "bf16"] = "fp32"
    store: Literal["auto", "rma", "local", "disk"] = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    sources: tuple[str, ...] | None = None
    threads: int = Field(default=1, ge=1)
    max_train_structures: int | None = Field(default=None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    plots: bool = True


# What may differ when a run goes on: where it lies and how fast it runs, never what it computes.
_FREE = {"output", "threads", "store", "plots", "checkpoint.every", "checkpoint.keep"}


def config_changes(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (old, new) of every setting that differs and changes what is computed."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after} - _FREE)
        if before.get(key) != after.get(key)
    }


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
