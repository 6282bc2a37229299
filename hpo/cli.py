"""The verbs of ``gfm hpo``, and of ``gfm ensemble``."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
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

_Folder = Annotated[Path, typer.Argument(help="Folder of the ensemble.", show_default=False)]
_Dataset = Annotated[Path | None, typer.Option(help="Dataset; by default the one it was trained on.")]
_Run = Annotated[Path | None, typer.Option(help="Run folder of a training to report on.")]
_Study = Annotated[Path | None, typer.Option(help="Folder of a study to report on.")]


@ensemble_app.callback()
def _ensemble() -> None:
    """Ensembles with calibrated uncertainty: chosen from a study, calibrated on validation, scored on test.

    gfm ensemble select out/study --members 4 --out out/ensemble; gfm ensemble evaluate out/ensemble
    """


@ensemble_app.command("select")
def _ensemble_select(
    study: Annotated[Path, typer.Argument(help="Folder of a study, its `output`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to make for the ensemble.", show_default=False)],
    members: Annotated[int, typer.Option(help="How many trials to take.")] = 3,
    energy_weight: Annotated[
        float, typer.Option(help="Weight of joules, relative to the dearest trial; 0 looks at accuracy only.")
    ] = 0.1,
    tolerance: Annotated[
        float, typer.Option(help="First tier: loss at most this share above the best trial's.")
    ] = 0.25,
    as_json: _Json = False,
) -> None:
    """Choose members from the finished trials of a study: accuracy first, then energy.

    The models are copied, so that the folder needs nothing else. The Pareto front of loss and joules is
    written down with the choice.

    Examples:
      gfm ensemble select out/study --members 4 --out out/ensemble
      gfm ensemble select out/study --members 8 --energy-weight 0.3 --out out/frugal
    """
    from hpo.select import select

    with _warnings_as_lines():
        ensemble = select(
            study, out, members=members, energy_weight=energy_weight, tolerance=tolerance
        )  # fmt: skip
    if as_json:
        print(json.dumps(ensemble, indent=1))
        return
    for member in ensemble["members"]:
        joules = "" if member["joules"] is None else f", {member['joules']:.0f} J"
        print(f"{member['model']}: trial {member['trial']}, loss {member['value']:.4g}{joules}")
    front = ", ".join(str(number) for number in ensemble["selection"]["pareto_front"])
    print(f"Pareto front of loss and joules: trials {front}")


@ensemble_app.command("evaluate")
def _ensemble_evaluate(
    folder: _Folder,
    dataset: _Dataset = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures a model predicts at once.")] = 32,
    run: _Run = None,
    study: _Study = None,
    as_json: _Json = False,
) -> None:
    """Predict with all members, calibrate on the validation split, score on the test split.

    Dask spreads members and shards over worker processes. What is there already is not computed again, so the
    same command continues an interrupted evaluation. Writes scores.json and report.html into the folder.

    Examples:
      gfm ensemble evaluate out/ensemble
      gfm ensemble evaluate out/ensemble --dataset out/dataset --workers 8 --json > scores.json
    """
    import sys

    from gfm.model.ensemble_card import read_ensemble
    from gfm.runtime.cluster import ClusterConfig, open_client
    from hpo.ensemble import evaluate
    from hpo.report import build_report
    from hpo.waves import Waves

    _require_folders(folder, dataset, run, study)
    read_ensemble(folder)  # a mistaken folder is told before any worker starts
    with _warnings_as_lines(), open_client(ClusterConfig(workers=workers)) as client:
        print(f"Dask dashboard: {client.dashboard_link}", file=sys.stderr)
        with Waves() as waves:
            scores = evaluate(
                folder, dataset, client=client, batch_size=batch_size, on_progress=waves.show
            )  # fmt: skip
    report = build_report(folder / "report.html", ensemble=folder, dataset=dataset, run=run, study=study)
    print(f"report: {report}", file=sys.stderr)
    if as_json:
        print(json.dumps(scores, indent=1))
        return
    _show_scores(scores)


@ensemble_app.command("report")
def _ensemble_report(
    folder: Annotated[Path | None, typer.Argument(help="Folder of the ensemble.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    dataset: _Dataset = None,
    run: _Run = None,
    study: _Study = None,
) -> None:
    """Write one page on dataset, training, study and ensemble; what is not given is left out with a sentence.

    Examples:
      gfm ensemble report out/ensemble --run out/train --out report.html
      gfm ensemble report --dataset out/dataset --out dataset.html
    """
    from gfm.errors import ConfigError
    from hpo.report import build_report

    if folder is None and dataset is None and run is None and study is None:
        raise ConfigError("nothing to report on: give the folder of an ensemble, --dataset, --run or --study")
    _require_folders(folder, dataset, run, study)
    print(build_report(out, ensemble=folder, dataset=dataset, run=run, study=study))


def _require_folders(*folders: Path | None) -> None:
    """Refuse folders that are named and not there: what is not named is left out, which would hide a slip.

    Raises:
        MissingDataError: There is such a folder.
    """
    from gfm.errors import MissingDataError

    missing = [str(folder) for folder in folders if folder is not None and not folder.is_dir()]
    if missing:
        raise MissingDataError(f"there is no such folder: {', '.join(missing)}")


def _show_scores(scores: dict[str, Any]) -> None:
    """Print scores for a person."""
    comparison = scores["comparison"]
    print(f"{scores['members']} members on {scores['structures']['test']} test structures")
    for key, label in (
        ("energy_mae_mev_per_atom", "energy MAE, meV/atom"),
        ("forces_mae_ev_per_angstrom", "forces MAE, eV/angstrom"),
    ):
        single, mean = comparison["single_best"][key], comparison["ensemble"][key]
        if mean is not None:
            print(f"  {label}: best single member {single:.4g}, ensemble {mean:.4g}")
    for output in ("energy", "forces"):
        for key in ("before", "after") if output in scores else ():
            part = scores[output]["pooled"][key]
            coverage = ", ".join(f"{100 * share:.0f} % in {level}" for level, share in part["coverage"].items())
            print(
                f"  {output} {key} calibration: NLL {part['nll']:.2f}, miscalibration area "
                f"{part['miscalibration_area']:.3f}, ENCE {part['ence']:.2f}, coverage {coverage}"
            )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print warnings as single lines on stderr."""
    import sys
    import warnings

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
