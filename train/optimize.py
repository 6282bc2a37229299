"""AdamW, the learning rate as a pure function of the step, and the moving average of the weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from train.config import OptimizerConfig

__all__ = ["MovingAverage", "build_optimizer", "learning_rate"]

M = TypeVar("M", bound=nn.Module)


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over all parameters; vectors and scalars (biases, scales) are not decayed."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Return the learning rate of a step (counted from 0) of ``total``.

    No scheduler object and no state: a resumed run needs only its step. A run that is extended follows the
    schedule of its new length from there on.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final + (1.0 - config.final) * cosine)


class MovingAverage(Generic[M]):
    """Exponential moving average of a module's parameters.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not keep its
    first random weights.

    Attributes:
        module: A copy that holds the average; in evaluation mode.
        updates: Updates so far.
    """

    def __init__(self, module: M, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: M) -> None:
        """Move the average towards the module's present parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = list(self.module.parameters())
        values: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(averages, values, 1.0 - decay)
        self.updates += 1
