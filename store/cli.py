"""The verbs of ``gfm store``: what a dataset on disk holds, and whether it is still what was written."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from store.dataset import Dataset

__all__ = ["app"]

app = typer.Typer(name="store", help="Look at and check datasets on disk.", no_args_is_help=True)

_PATH = typer.Argument(help="Directory of the dataset, the one with manifest.json.", show_default=False)


@app.callback()
def _main() -> None:
    """Look at and check datasets on disk.

    A dataset is a directory made by `gfm ingest run`; in Python, `store.open_dataset(PATH)`.
    """


@app.command()
def info(
    path: Annotated[Path, _PATH],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what a dataset holds: structures, atoms, bytes, splits, rejects, by source.

    Example: gfm store info out/dataset
    """
    from store.dataset import open_dataset

    dataset = open_dataset(path)
    summary = _summary(dataset)
    if as_json:
        print(json.dumps(summary))
        return
    from rich.console import Console

    console = Console()
    console.print(_overview(summary))
    console.print(_sources(summary))


@app.command()
def verify(
    path: Annotated[Path, _PATH],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Read every byte of a dataset and compare it with what was written; exit code 3 if anything differs.

    Sizes, checksums and content hashes of all shards; files that do not belong to the dataset are named.

    Example: gfm store verify out/dataset
    """
    from rich.console import Console
    from rich.progress import Progress

    from gfm.errors import CorruptDataError
    from store.manifest import Manifest
    from store.verify import verify_dataset

    total = Manifest.load(path).bytes
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("verifying", total=total)
        dataset, problems = verify_dataset(path, lambda shard: progress.advance(task, shard.bytes))
    manifest = dataset.manifest
    if as_json:
        result = {
            "path": str(dataset.path),
            "whole": not problems,
            "problems": problems,
            "shards": len(manifest.shards),
            "content_hash": manifest.content_hash,
        }
        print(json.dumps(result))
        if problems:
            raise typer.Exit(CorruptDataError.exit_code)
        return
    if problems:
        raise CorruptDataError("\n  ".join([f"{dataset.path}: {len(problems)} problems", *problems]))
    print(
        f"{dataset.path}: whole. {manifest.structures} structures in {len(manifest.shards)} shards, "
        f"content hash {manifest.content_hash}"
    )


def _summary(dataset: "Dataset") -> dict[str, Any]:
    """Return what ``gfm store info --json`` prints."""
    manifest = dataset.manifest
    return {
        "path": str(dataset.path),
        "format": manifest.format,
        "format_version": manifest.format_version,
        "structures": manifest.structures,
        "atoms": manifest.atoms,
        "edges": manifest.edges,
        "edges_cutoff": manifest.edges_cutoff,
        "bytes": manifest.bytes,
        "bytes_per_structure": manifest.bytes / manifest.structures if manifest.structures else None,
        "shards": len(manifest.shards),
        "fields": manifest.fields,
        "datasets": [entry.model_dump(exclude={"reference"}) for entry in manifest.datasets],
        "rejects": manifest.rejects,
        "splits": manifest.splits.model_dump(),
        "content_hash": manifest.content_hash,
    }


def _overview(summary: dict[str, Any]) -> "Table":
    """Return the table of what is said once of the whole dataset."""
    from rich.table import Table

    from store.memory import sized

    counts = summary["splits"]["counts"]
    per_structure = summary["bytes_per_structure"]
    rows = {
        "format": f"{summary['format']}, version {summary['format_version']}, {summary['shards']} shards",
        "structures": f"{summary['structures']:,}",
        "atoms": f"{summary['atoms']:,}",
        "edges": f"{summary['edges']:,} at {summary['edges_cutoff']:g} angstrom",
        "size": sized(summary["bytes"]) + (f", {per_structure:.0f} bytes/structure" if per_structure else ""),
        "splits": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        "fields": ", ".join(summary["fields"]),
        "content hash": summary["content_hash"],
    }
    table = Table(title=summary["path"], show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _sources(summary: dict[str, Any]) -> "Table":
    """Return the table with a row for each dataset inside."""
    from rich.table import Table

    table = Table(title="datasets", title_justify="left")
    for name in ("name", "structures", "atoms", "rejected", "theory", "licence"):
        table.add_column(name, justify="right" if name in ("structures", "atoms") else "left")
    for entry in summary["datasets"]:
        rejected = ", ".join(f"{reason} {count:,}" for reason, count in sorted(entry["rejected"].items()))
        table.add_row(
            entry["name"],
            f"{entry['structures']:,}",
            f"{entry['atoms']:,}",
            rejected or "none",
            entry["theory"],
            entry["licence"],
        )
    return table
