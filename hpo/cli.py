"""The verbs of ``gfm hpo``, and of ``gfm ensemble``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    name="hpo",
    help="Hyperparameter studies: many trials, early discarding, the best ones trained on.",
    no_args_is_help=True,
)

_Output = Annotated[Path, typer.Argument(help="Folder of the study, its `output`.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]


@app.callback()
def _main() -> None:
    """Hyperparameter studies: many trials, early discarding, the best ones trained on.

    gfm hpo run study.yaml; gfm hpo status out/study; gfm hpo dashboard out/study
    """


@app.command("run")
def _run(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings: key.sub=value.", show_default=False)
    ] = None,
    reclaim: Annotated[
        bool, typer.Option("--reclaim", help="Take up all running trials again; no other worker may be alive.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Run a study, or go on with it: workers train trials until there are as many as it asks for.

    The same command continues a study that was stopped, and makes it longer where `trials` was raised.

    Started on another machine as well, with a PostgreSQL storage and a shared folder, it joins in.

    Examples:
      gfm hpo run study.yaml
      gfm hpo run study.yaml trials=40 workers=4 --json > summary.json
    """
    import signal
    import sys

    from hpo.run import run_study
    from hpo.show import Progress
    from hpo.study import load_study

    config = load_study(study, tuple(overrides or ()))
    former = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with Progress(config) as progress:
            summary = run_study(config, reclaim_all=reclaim, progress=progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, former)
    _show(summary, as_json)


@app.command("worker", hidden=True)
def _worker(
    output: _Output,
    slot: Annotated[int, typer.Option(help="Number of this worker.")] = 0,
    under: Annotated[str | None, typer.Option(help="Lease of the process that started this one.")] = None,
) -> None:
    """Train trials of a study until it is done; `gfm hpo run` starts these."""
    from gfm.runtime.mpi import failing_together
    from hpo.worker import work

    with failing_together():
        work(output, slot, under)


@app.command("status")
def _status(output: _Output, as_json: _Json = False) -> None:
    """Show how a study stands, also while it runs."""
    from hpo.run import summarise
    from hpo.study import read_study
    from hpo.trials import open_study

    with open_study(read_study(output)) as opened:
        _show(summarise(opened), as_json)


@app.command("export")
def _export(
    output: _Output,
    out: Annotated[Path, typer.Option("--out", help="The CSV file to write.")] = Path("trials.csv"),
) -> None:
    """Write all trials as a table: state, value, settings, joules, epochs."""
    import sys

    from hpo.show import export_csv

    print(f"{export_csv(output, out)} trials in {out}", file=sys.stderr)


@app.command("dashboard")
def _dashboard(
    output: _Output,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
) -> None:
    """Show the study in a browser (Optuna Dashboard) until Ctrl-C, on this machine only."""
    from hpo.show import serve_dashboard

    serve_dashboard(output, port)


def _show(summary: dict[str, Any], as_json: bool) -> None:
    """Print a summary: for a program, or for a person."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    states = ", ".join(f"{count} {state}" for state, count in summary["trials"].items() if count)
    print(f"study {summary['study']}: {states or 'no trials yet'}")
    print(f"  epochs: {summary['epochs_trained']} trained, {summary['epochs_saved']} saved by discarding")
    print(f"  energy: {summary['joules']:.0f} J ({summary['joules_method'] or 'nothing trained yet'})")
    if summary["best"] is not None:
        settings = ", ".join(f"{path} = {value}" for path, value in summary["best"]["params"].items())
        print(f"  best:   trial {summary['best']['trial']}, {summary['best']['value']:.4g} ({settings})")
    for row in summary["finished"]:
        print(f"  went on: trial {row['trial']} to epoch {row['epochs']}, {row['value']:.4g}, {row['path']}")


ensemble_app = typer.Typer(help="Ensembles with calibrated uncertainty.", no_args_is_help=True)


@ensemble_app.callback()
def _ensemble() -> None:
    """Ensembles with calibrated uncertainty."""
