"""Learning rate, moving average, parameter groups."""

import itertools

import pytest
import torch

from train.config import OptimizerConfig
from train.optimize import MovingAverage, build_optimizer, learning_rate


def test_warm_up_then_cosine_to_its_end() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=10, final=0.01)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.001)
    assert all(before >= after for before, after in itertools.pairwise(rates[10:]))
    assert rates[10 + 99 // 2] == pytest.approx(0.0505, rel=0.02)


def test_constant_stays_and_short_runs_end_in_the_warm_up() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 3, config) for step in range(3)] == pytest.approx([0.025, 0.05, 0.075])
    assert learning_rate(1000, 3, config) == 0.1


def test_the_average_follows_and_forgets() -> None:
    layer = torch.nn.Linear(2, 2)
    average = MovingAverage(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for _ in range(200):
        average.update(layer)
    assert torch.allclose(average.module.weight, layer.weight)
    assert not average.module.weight.requires_grad
    assert layer.weight.requires_grad


def test_without_decay_the_average_is_the_model() -> None:
    layer = torch.nn.Linear(3, 3)
    average = MovingAverage(layer, 0.0)
    with torch.no_grad():
        layer.weight.normal_()
    average.update(layer)
    assert torch.equal(average.module.weight, layer.weight)


def test_vectors_are_not_decayed_and_nothing_is_left_out() -> None:
    layer = torch.nn.Linear(2, 2)
    groups = build_optimizer(layer, OptimizerConfig(weight_decay=0.1)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay == {id(layer.weight): 0.1, id(layer.bias): 0.0}
