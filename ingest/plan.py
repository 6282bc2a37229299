"""The plan: every file cut into fixed parts, in a fixed order, with a digest that says when two plans are one.

Parts, their order and their names follow from the recipe and the sizes of the files alone, so any number of
workers, any order of tasks and any number of interrupted runs add up to the same dataset.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfm.errors import DataError
from ingest.readers.base import Part, Reader
from ingest.recipe import Recipe

__all__ = [
    "PIPELINE_VERSION",
    "PackedFile",
    "Plan",
    "PlannedPart",
    "differences",
    "make_plan",
    "open_readers",
    "packed_files",
    "part_name",
    "scratch_folders",
]

# Raised whenever the same recipe and files would give another dataset; an unfinished run of an older version is
# then not continued.
PIPELINE_VERSION = 2


@dataclass(frozen=True)
class PlannedPart:
    """One task: a part of a source, and the name of its shard, receipt and rejects."""

    index: int
    name: str
    source: int
    part: Part


@dataclass(frozen=True)
class Plan:
    """All tasks of a recipe.

    Attributes:
        recipe: What it follows.
        readers: Reader of each source.
        parts: The tasks, in the order of rows.
        files: Size of each file as the plan was made.
        digest: Hash of everything the dataset's content depends on.
    """

    recipe: Recipe
    readers: tuple[Reader, ...]
    parts: tuple[PlannedPart, ...]
    files: dict[str, int]
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return what is kept beside the receipts, to know and to explain another plan."""
        return {"digest": self.digest, **_content(self.recipe, self.parts, self.files)}


@dataclass(frozen=True)
class PackedFile:
    """A file that must be unpacked before it can be cut into parts."""

    dataset: str
    reader: Reader
    file: Path


def open_readers(recipe: Recipe) -> tuple[Reader, ...]:
    """Return the reader of each source, which finds unpacked files where this recipe has them unpacked.

    Raises:
        ConfigError: A reader or one of its options does not exist.
    """
    readers = [source.open_reader() for source in recipe.sources]
    folders = scratch_folders(recipe)
    return tuple(reader.unpacking_to(folder) for reader, folder in zip(readers, folders, strict=True))


def scratch_folders(recipe: Recipe) -> list[Path]:
    """Return where the packed files of each source are unpacked."""
    output = recipe.output.absolute()
    if recipe.scratch is None:
        return [output / "build" / "unpacked" / source.name for source in recipe.sources]
    return [recipe.scratch.absolute() / f"{output.name}.{source.name}" for source in recipe.sources]


def packed_files(recipe: Recipe) -> list[PackedFile]:
    """Return the files of a recipe that must be unpacked first.

    Raises:
        ConfigError: A reader or one of its options does not exist.
        MissingDataError: There is nothing at a path.
    """
    return [
        PackedFile(source.name, reader, file)
        for source, reader in zip(recipe.sources, open_readers(recipe), strict=True)
        for file in reader.packed(source.path)
    ]


def make_plan(recipe: Recipe) -> Plan:
    """Look at the files of a recipe and cut them into parts; nothing is read yet.

    Raises:
        ConfigError: A reader or one of its options does not exist.
        MissingDataError: There is nothing at a path.
        DataError: A file is of another layout, or a source has nothing to read.
    """
    # All options are checked before the first file is opened.
    readers = open_readers(recipe)
    parts: list[PlannedPart] = []
    for index, (source, reader) in enumerate(zip(recipe.sources, readers, strict=True)):
        found = reader.plan(source.path, int(recipe.part_bytes))
        if not found:
            raise DataError(f"source {source.name}: {source.path} holds nothing that {source.reader} reads")
        for part in found:
            parts.append(PlannedPart(len(parts), part_name(len(parts)), index, part))
    paths = sorted({planned.part.path for planned in parts})
    files = {path: Path(path).stat().st_size for path in paths if Path(path).is_file()}
    text = json.dumps(_content(recipe, parts, files), sort_keys=True, separators=(",", ":"))
    return Plan(recipe, readers, tuple(parts), files, hashlib.sha256(text.encode()).hexdigest())


def part_name(index: int) -> str:
    """Return the name of the part of this number in the plan."""
    return f"{index:06d}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in lines where two plans (values of `Plan.to_json`) differ: settings first, else files."""
    lines = _differences(old.get("recipe"), new.get("recipe"), "")
    if old.get("version") != new.get("version"):
        lines.append(f"version of the pipeline: {old.get('version')} before, {new.get('version')} now")
    if lines:
        return lines
    lines = _differences(old.get("files"), new.get("files"), "size of ")
    return lines or ["the files are cut into other parts than before: their content changed"]


def _content(recipe: Recipe, parts: Sequence[PlannedPart], files: dict[str, int]) -> dict[str, Any]:
    return {
        "version": PIPELINE_VERSION,
        "recipe": recipe.content(),
        "files": files,
        "parts": [
            {"name": item.name, "source": item.source, **dataclasses.asdict(item.part)} for item in parts
        ],
    }


def _differences(old: Any, new: Any, where: str) -> list[str]:
    """Compare JSON values leaf by leaf."""
    if isinstance(old, dict) and isinstance(new, dict):
        dot = where if not where or where.endswith(" ") else f"{where}."
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{dot}{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in _differences(a, b, f"{where}[{i}]")]
    return [] if old == new else [f"{where}: {json.dumps(old)} before, {json.dumps(new)} now"]
