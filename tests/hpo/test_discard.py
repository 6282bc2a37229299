"""Early discarding: which trials stop, and what that saves."""

from collections.abc import Callable

import optuna
import pydantic
import pytest
from optuna.trial import TrialState

from hpo.discard import Discard, Halving, KeepAll, Median, epochs_saved, epochs_trained, pruner

# Losses by epoch of trials that are ever worse, one after the other.
_CURVES = [
    [1.0 / epoch + offset for epoch in range(1, 10)] for offset in (0.0, 0.3, 0.1, 0.5, 0.2, 0.9, 0.05, 1.5)
]


def _lengths(discard: KeepAll | Median | Halving) -> list[int]:
    """Return for how many epochs each of the curves went on."""
    study = optuna.create_study(pruner=pruner(discard))
    lengths = []
    for curve in _CURVES:
        trial, stopped = study.ask(), False
        for epoch, loss in enumerate(curve, start=1):
            trial.report(loss, epoch)
            if epoch < len(curve) and trial.should_prune():
                stopped = True
                break
        lengths.append(epoch)
        trial.set_user_attr("epochs", epoch)
        study.tell(trial, None if stopped else loss, state=TrialState.PRUNED if stopped else None)
    assert epochs_trained(study.trials) == sum(lengths)
    assert epochs_saved(study.trials, 9) == 9 * len(lengths) - sum(lengths)
    return lengths


def test_no_rule_keeps_all() -> None:
    assert _lengths(KeepAll()) == [9] * 8


def test_the_median_rule_stops_the_worse_half_after_its_warm_up() -> None:
    lengths = _lengths(Median(kind="median", startup_trials=4, warmup_epochs=3))
    assert lengths[:4] == [9] * 4  # nothing to compare with yet
    assert lengths[5] == lengths[7] == 3
    assert lengths[6] == 9


def test_halving_stops_at_its_rungs_only() -> None:
    lengths = _lengths(Halving(kind="halving", min_epochs=2, factor=2))
    assert set(lengths) <= {2, 4, 8, 9}
    assert lengths[0] == 9
    assert lengths[7] == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", KeepAll()),
        ({"kind": "median", "startup_trials": 2}, Median(kind="median", startup_trials=2)),
        ("halving", Halving(kind="halving")),
    ],
)
def test_a_rule_is_a_name_or_a_mapping(value: object, expected: KeepAll | Median | Halving) -> None:
    parse: Callable[[object], object] = pydantic.TypeAdapter(Discard).validate_python
    assert parse(value) == expected
