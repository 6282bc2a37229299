"""The verbs of ``gfm ingest``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(name="ingest", help="Raw published files to a dataset on disk.", no_args_is_help=True)


@app.callback()
def _main() -> None:
    """Raw published files to a dataset on disk."""


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of the recipe: key.sub=value.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the parts, and the script of a worker's batch job.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout at the end.")] = False,
) -> None:
    """Read raw files as a recipe says, on Dask, and write a dataset. Run it again to go on after a stop.

    Paths in the recipe are relative to the current directory. The smallest recipe:

        output: out/dataset
        sources:
          - {name: ani1x, reader: ani1x, path: raw/ani1x-release.h5}

    A path is a file, a folder or a glob. A source whose files are not the
    published ones may state its own theory, licence and doi for the manifest.
    A recipe with more in it, for workers that are Slurm jobs:

        output: out/dataset
        sources:
          - {name: oc20, reader: oc20, path: raw/oc20}
          - {name: ours, reader: mptrj, path: ours.json, theory: EMT, doi: ""}
        filters: {max_force: 50, outliers: {energy: 10, stress: null}}
        duplicates: drop
        cluster: {kind: slurm, workers: 64, memory: 4GiB, interface: ib0,
                  queue: batch, account: materials, walltime: "12:00:00"}

    The whole reference and what it all means: docs/ingest.md. While it runs,
    the terminal shows how far each dataset is, the Dask dashboard (its address
    is printed) what each worker does, and `gfm ingest status` both elsewhere.

    Examples: gfm ingest run recipe.yaml --dry-run; gfm ingest run recipe.yaml format=zarr cluster.workers=2
    """
    import signal

    from gfm.runtime.config import load_config
    from ingest import console
    from ingest.recipe import Recipe

    config = load_config(Recipe, recipe, overrides or [])
    if dry_run:
        console.show_plan(config, as_json)
        return
    received = [signal.SIGINT]

    def end(number: int, frame: object) -> None:
        # A batch system or a closed terminal ends the run as Ctrl-C does: workers and announcements go with it.
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    # What is ignored already stays so: nohup is meant to outlive the terminal.
    ending = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) != signal.SIG_IGN]
    before = {name: signal.signal(name, end) for name in ending}
    try:
        console.run(config, as_json)
    except KeyboardInterrupt:
        print("gfm: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(128 + received[-1]) from None
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@app.command()
def status(
    output: Annotated[Path, typer.Argument(help="Output directory of a recipe.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds while it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say how far an ingestion is: also from another terminal while it runs, and after a crash.

    Parts, structures and rejects by reason of each dataset; while it runs, also the stage it is at, since when,
    and where the Dask dashboard is. It reads the output directory alone.

    Examples: gfm ingest status out/dataset; gfm ingest status out/dataset --watch
    """
    from ingest import console
    from ingest.status import status_of

    if watch and not as_json:
        console.watch_status(lambda: status_of(output))
        return
    console.show_status(status_of(output), as_json)


@app.command()
def report(
    dataset: Annotated[Path, typer.Argument(help="A finished dataset's directory.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; by default DATASET.report.html beside it.")
    ] = None,
) -> None:
    """Write one page on a dataset: counts, rejects, distributions, elements, references, splits, provenance.

    The page is one file that loads nothing from elsewhere: send it, or keep it beside the dataset. It is made
    of the manifest and some lines of the rejects, so it takes as long for a million structures as for one.

    Examples: gfm ingest report out/dataset; gfm ingest report out/dataset --out dataset.html
    """
    from ingest.report import default_report, write_report

    print(write_report(dataset, out or default_report(dataset)))


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
