"""The guide and the help of ingestion: recipes that are accepted, options and defaults as in the code."""

import json
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from typer.testing import CliRunner

from gfm.runtime.cluster_config import ClusterConfig
from gfm.runtime.config import Config, parse_config
from ingest.cli import app
from ingest.progress import STAGES
from ingest.recipe import Filters, Outliers, Recipe, Source, SplitConfig

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "ingest.md").read_text()
TABLES: dict[str, type[Config]] = {
    "Recipe": Recipe, "Source": Source, "Filters": Filters, "Outliers": Outliers, "Split": SplitConfig,
    "Cluster": ClusterConfig,
}  # fmt: skip


def default_of(field: Any) -> Any:
    """Return a default as the guide writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, pydantic.BaseModel):
        return "see below"
    if isinstance(value, pydantic.ByteSize):
        return f"`{value.human_readable()}`".replace(".0", "")
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


@pytest.mark.parametrize("heading", TABLES)
def test_the_guide_states_every_option_with_its_default_and_meaning(heading: str) -> None:
    section = re.search(rf"(?ms)^### {heading}$(.*?)(?=^##)", GUIDE)
    assert section is not None
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \| (.+) \|$", section[1])
    expected = {name: default_of(field) for name, field in TABLES[heading].model_fields.items()}
    assert {name: default for name, default, _ in rows} == expected


def test_recipes_of_the_guide_are_accepted() -> None:
    whole, cluster = (yaml.safe_load(block) for block in re.findall(r"(?s)```yaml\n(.*?)```", GUIDE))
    recipe = parse_config(Recipe, whole | cluster, "docs/ingest.md")
    for source in recipe.sources:
        source.open_reader()
    assert recipe.cluster.num_workers == 64


def test_recipes_in_the_help_are_accepted_and_lines_are_not_wrapped() -> None:
    text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    blocks = re.findall(r"(?m)^ {5}output:.*\n(?: {5,}\S.*\n)+", text)
    assert len(blocks) == 2
    for block in blocks:
        for source in parse_config(Recipe, yaml.safe_load(block), "help").sources:
            source.open_reader()


@pytest.mark.parametrize("verb", ["run", "status", "report"])
def test_help_shows_an_example_of_each_verb(verb: str) -> None:
    assert f"gfm ingest {verb} " in CliRunner().invoke(app, [verb, "--help"]).stdout.split("Examples:")[1]


def test_the_guide_names_every_stage() -> None:
    stages = re.search(r"(?s)## What happens(.*?)## What lies", GUIDE)
    assert stages is not None
    assert not [stage for stage in STAGES if stage not in stages[1]]
