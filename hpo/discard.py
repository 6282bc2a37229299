"""Early discarding: which trials stop before their constant number of epochs, and what that saved.

Every trial trains for the same number of epochs; that alone (``none``) already is the first rung, as
`finish` continues only the best of them. ``median`` and ``halving`` also stop trials on the way.

Source: median rule, Golovin et al. 2017, doi:10.1145/3097983.3098043; asynchronous successive halving, Li et
al. 2020, arXiv:1810.05934.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from gfm.runtime.config import Config

__all__ = ["Discard", "Halving", "KeepAll", "Median", "epochs_saved", "epochs_trained", "pruner"]


class KeepAll(Config):
    """No trial stops early."""

    kind: Literal["none"] = "none"


class Median(Config):
    """Stop a trial whose best loss so far is worse than the median of the complete trials at the same epoch.

    Attributes:
        startup_trials: No trial stops before this many are complete.
        warmup_epochs: No trial stops before it trained this many epochs.
    """

    kind: Literal["median"]
    startup_trials: int = pydantic.Field(default=4, ge=1)
    warmup_epochs: int = pydantic.Field(default=2, ge=1)


class Halving(Config):
    """Asynchronous successive halving: after min_epochs * factor^k epochs only the best 1/factor go on.

    Attributes:
        min_epochs: Epochs of the first rung.
        factor: How much fewer trials, and how many times more epochs, the next rung has.
    """

    kind: Literal["halving"]
    min_epochs: int = pydantic.Field(default=1, ge=1)
    factor: int = pydantic.Field(default=3, ge=2)


def _from_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Discard = Annotated[
    KeepAll | Median | Halving,
    pydantic.Field(discriminator="kind"),
    pydantic.BeforeValidator(_from_name),
]


def pruner(discard: KeepAll | Median | Halving) -> BasePruner:
    """Return Optuna's pruner for a rule; steps are epochs, and step 0 is the untrained model."""
    if isinstance(discard, Median):
        return MedianPruner(n_startup_trials=discard.startup_trials, n_warmup_steps=discard.warmup_epochs)
    if isinstance(discard, Halving):
        return SuccessiveHalvingPruner(min_resource=discard.min_epochs, reduction_factor=discard.factor)
    return NopPruner()


def epochs_trained(trials: Iterable[FrozenTrial]) -> int:
    """Return the epochs that the trials trained; one that took over from another counts the other's epochs."""
    return sum(int(trial.user_attrs.get("epochs", 0)) for trial in trials)


def epochs_saved(trials: Iterable[FrozenTrial], epochs: int) -> int:
    """Return the epochs that trials did not train because they were discarded or diverged early."""
    return sum(
        epochs - int(trial.user_attrs.get("epochs", 0)) for trial in trials if trial.state == TrialState.PRUNED
    )
