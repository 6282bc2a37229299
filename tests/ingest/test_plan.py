"""Plans: fixed by the recipe and the files, and able to say how they differ."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gfm.errors import MissingDataError
from gfm.runtime.config import parse_config
from ingest.plan import differences, make_plan
from ingest.recipe import Recipe


def recipe_for(path: Path, **changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "output": str(path.parent / "out"),
        "sources": [{"name": "ani1x", "reader": "ani1x", "path": str(path)}],
        "part_bytes": 500,
    }
    return parse_config(Recipe, data | changes, "test")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "ani1x.h5", "w") as file:
        group = file.create_group("H2")
        group["atomic_numbers"] = np.array([1, 1], dtype=np.uint8)
        group["coordinates"] = np.zeros((40, 2, 3), dtype=np.float32)
        group["wb97x_dz.energy"] = np.zeros(40)
        group["wb97x_dz.forces"] = np.zeros((40, 2, 3), dtype=np.float32)
    return tmp_path / "ani1x.h5"


def test_the_same_recipe_and_files_give_the_same_plan(raw: Path) -> None:
    plan, again = make_plan(recipe_for(raw)), make_plan(recipe_for(raw, cluster={"workers": 3}))
    assert plan.digest == again.digest
    assert plan.parts == again.parts
    assert [planned.name for planned in plan.parts] == [f"{i:06d}" for i in range(len(plan.parts))]
    assert len(plan.parts) > 2
    assert differences(plan.to_json(), again.to_json()) != []  # asked only where digests differ


def test_another_setting_or_file_gives_another_plan_and_says_where(raw: Path) -> None:
    plan = make_plan(recipe_for(raw))
    other = make_plan(recipe_for(raw, part_bytes=900, filters={"max_atoms": 5}))
    assert plan.digest != other.digest
    assert differences(plan.to_json(), other.to_json()) == [
        "filters.max_atoms: null before, 5 now",
        "part_bytes: 500 before, 900 now",
    ]
    size = raw.stat().st_size
    with raw.open("ab") as file:
        file.write(b"x")
    grown = make_plan(recipe_for(raw))
    assert differences(plan.to_json(), grown.to_json()) == [f"size of {raw}: {size} before, {size + 1} now"]


def test_a_path_with_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere\.h5"):
        make_plan(recipe_for(tmp_path / "nowhere.h5"))
