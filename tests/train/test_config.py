"""Training configuration: what is refused, what counts as a change."""

from collections.abc import Callable
from typing import Any

import pytest

from gfm.errors import ConfigError
from gfm.runtime.config import dump_config, parse_config
from train.config import TrainConfig, config_changes

Settings = Callable[..., dict[str, Any]]


def test_a_misspelt_key_is_refused_with_the_right_one(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        parse_config(TrainConfig, settings(optimizer__learning_rte=1e-3), "train.yaml")


def test_it_goes_through_yaml_and_back(settings: Settings) -> None:
    import yaml

    config = parse_config(TrainConfig, settings(sources=["alloys"]), "train.yaml")
    assert parse_config(TrainConfig, yaml.safe_load(dump_config(config)), "again") == config


def test_changes_are_named_by_dotted_key_and_the_place_is_none(settings: Settings) -> None:
    old = parse_config(TrainConfig, settings(), "old")
    new = parse_config(TrainConfig, settings(optimizer__clip=None, output="elsewhere", threads=2), "new")
    assert config_changes(old, new) == {"optimizer.clip": (5.0, None)}
