"""Recipes: small ones suffice, wrong ones are explained."""

from pathlib import Path
from typing import Any

import pytest

from gfm.errors import ConfigError
from gfm.runtime.config import dump_config, load_config, parse_config
from ingest.recipe import Recipe

SMALLEST: dict[str, Any] = {
    "output": "out",
    "sources": [{"name": "ani1x", "reader": "ani1x", "path": "raw/ani1x-release.h5"}],
}


def test_the_smallest_recipe_has_defaults_and_survives_a_round_trip(tmp_path: Path) -> None:
    recipe = parse_config(Recipe, SMALLEST, "recipe")
    assert (recipe.format, recipe.on_error, recipe.cluster.kind) == ("adios", "stop", "local")
    assert (recipe.filters.max_force, recipe.filters.min_distance, recipe.edges_cutoff) == (500.0, 0.3, 5.0)
    assert recipe.part_bytes == 64 << 20
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe))
    assert load_config(Recipe, tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formt": "zarr"}, "Did you mean 'format'"),
        ({"format": "hdf5"}, "format"),
        ({"part_bytes": "many"}, "part_bytes"),
        ({"split": {"train": 0.9}}, "expected 1"),
        ({"filters": {"max_force": -1}}, "filters.max_force"),
        ({"sources": []}, "sources"),
        ({"edges_cutoff": 1e300}, "edges_cutoff"),
        ({"cluster": {"memory": "lots"}}, "cluster.memory: expected a size"),
        ({"cluster": {"memory": 0}}, "cluster.memory: expected a size"),
        ({"sources": SMALLEST["sources"] * 2}, "two are called ani1x"),
        ({"sources": [{"name": "a/b", "reader": "ani1x", "path": "x"}]}, "name"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Recipe, SMALLEST | changes, "recipe")


def test_readers_and_their_options_are_checked_by_name() -> None:
    source = {"name": "ani1x", "reader": "ani1", "path": "x"}
    with pytest.raises(ConfigError, match="Did you mean 'ani1x'"):
        parse_config(Recipe, SMALLEST | {"sources": [source]}, "recipe").sources[0].open_reader()
    source = {"name": "ani1x", "reader": "ani1x", "path": "x", "options": {"level_of_theori": "hf_dz"}}
    with pytest.raises(ConfigError, match="Did you mean 'level_of_theory'"):
        parse_config(Recipe, SMALLEST | {"sources": [source]}, "recipe").sources[0].open_reader()


def test_the_content_does_not_depend_on_where_and_how_the_work_is_done() -> None:
    here = parse_config(Recipe, SMALLEST, "recipe").content()
    there = {"output": "elsewhere", "on_error": "reject", "cluster": {"workers": 9}}
    assert parse_config(Recipe, SMALLEST | there, "recipe").content() == here
    assert parse_config(Recipe, SMALLEST | {"edges_cutoff": 6.0}, "recipe").content() != here


def test_what_a_source_states_is_content_and_what_it_does_not_state_is_not() -> None:
    silent = parse_config(Recipe, SMALLEST, "recipe").content()
    assert set(silent["sources"][0]) == {"name", "reader", "path", "options"}
    source = SMALLEST["sources"][0] | {"theory": "GFN2-xTB"}
    assert parse_config(Recipe, SMALLEST | {"sources": [source]}, "recipe").content() != silent
