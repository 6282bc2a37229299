"""The verbs of ``gfm ingest``."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(name="ingest", help="Raw published files to a dataset on disk.", no_args_is_help=True)


@app.callback()
def _main() -> None:
    """Raw published files to a dataset on disk."""


sample_data_app = typer.Typer(add_completion=False, help="Small raw files in the five published layouts.")


@sample_data_app.command()
def _sample_data(
    directory: Annotated[Path, typer.Argument(help="Where the folder of each source goes.")],
    structures: Annotated[int, typer.Option(min=1, help="Structures of each source.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 2026,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this source; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON on stdout.")] = False,
) -> None:
    """Compute small raw files in the layouts of ANI-1x, QM7-X, OC20, OC22 and MPtrj, offline, in seconds.

    Labels are tight binding (GFN2-xTB) for molecules and effective-medium theory for slabs and alloys. They are
    not the published data; a NOTE.txt in every folder says so. The extra `sample-data` brings what is needed.

    Examples: gfm sample-data raw; gfm sample-data raw --structures 1000 --only ani1x --only mptrj
    """
    import json
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ingest.sample_data import SAMPLES, write_sample_data

    names = only or list(SAMPLES)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {name: progress.add_task(name, total=structures, start=False) for name in names}

        def advance(name: str) -> None:
            progress.start_task(bars[name])
            progress.advance(bars[name])

        paths = write_sample_data(
            directory, structures_per_source=structures, seed=seed, sources=names, on_structure=advance
        )
    if as_json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
        return
    for name, path in paths.items():
        print(f"{name:8} {structures} structures: {path}", file=sys.stderr)
