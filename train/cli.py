"""The verbs of ``gfm train``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from train.loop import TrainResult

__all__ = ["app"]

app = typer.Typer(name="train", help="Train, evaluate and use models.", no_args_is_help=True)

_JSON = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for programs.")]


@app.callback()
def _main() -> None:
    """Train, evaluate and use models."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that override the file.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, removing what the run wrote.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Go on with a run for more epochs.")] = False,
    as_json: _JSON = False,
) -> None:
    """Train a model; started again, it goes on where it was.

    Alone or on several ranks: a step's batch is batch.size structures from each. SIGTERM and SIGUSR1 end it
    after the step with a checkpoint (exit code 143), and so does Ctrl-C (130); a second Ctrl-C does not wait.

    For example:

        gfm train run train.yaml

        gfm train run train.yaml model.layer=egnn optimizer.learning_rate=3e-4 output=out/egnn

        mpiexec -n 2 gfm train run train.yaml

        gfm train run train.yaml epochs=20 --extend
    """
    from gfm.runtime.mpi import failing_together, world

    comm = world()
    with failing_together():
        from gfm.runtime.config import load_config
        from train.config import TrainConfig
        from train.loop import train

        result = train(
            load_config(TrainConfig, config, overrides or []), comm=comm, resume=not fresh, extend=extend
        )
    if comm is None or comm.rank == 0:
        _print_result(result, as_json)


def _print_result(result: "TrainResult", as_json: bool) -> None:
    from gfm.runtime.runs import RunFolder

    if as_json:
        summary = RunFolder(result.model.parent).summary()
        print(json.dumps({**(summary or {}), "model": str(result.model)}))
        return
    best = result.best["validation"]
    print(
        f"{result.status} after {result.epochs} epochs; best is epoch {result.best['epoch']}: {_errors(best)}"
    )
    print(f"model {result.model}   {result.joules:.4g} J ({result.joules_method})")


def _errors(metrics: dict[str, Any]) -> str:
    energy, forces = metrics["energy_mae_mev_per_atom"], metrics["forces_mae_ev_per_angstrom"]
    parts = [
        "" if energy is None else f"energy {energy:.3g} meV/atom",
        "" if forces is None else f"forces {forces:.3g} eV/Å",
    ]
    return ", ".join(part for part in parts if part)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    dataset: Annotated[
        Path | None, typer.Option(help="Another dataset; by default the one it was trained on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures at a time.")] = 32,
    as_json: _JSON = False,
) -> None:
    """Measure a run's best model on a split of a dataset; exact means, by source.

    For example:

        gfm train evaluate out/run

        gfm train evaluate out/run --split validation --json
    """
    from gfm.runtime.mpi import failing_together, world

    comm = world()
    with failing_together():
        metrics = _evaluate(run, split, dataset, batch_size, comm)
    if comm is not None and comm.rank != 0:
        return
    if as_json:
        print(json.dumps(metrics))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{run}: {split}", title_justify="left")
    for name in ("source", "structures", "energy MAE (meV/atom)", "forces MAE (eV/Å)"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, row in [*metrics["datasets"].items(), ("all", metrics)]:
        energy, forces = row["energy_mae_mev_per_atom"], row["forces_mae_ev_per_angstrom"]
        shown = ("-" if energy is None else f"{energy:.4g}", "-" if forces is None else f"{forces:.4g}")
        table.add_row(name, str(row["structures"]), *shown)
    Console().print(table)


def _evaluate(run: Path, split: str, path: Path | None, batch_size: int, comm: Any | None) -> dict[str, Any]:
    """Load the run's best model and measure it on the ranks there are."""
    import numpy as np
    import torch

    from gfm.errors import DataError, MissingDataError
    from gfm.model.build import load_model
    from gfm.runtime.config import load_config
    from store.dataset import open_dataset
    from store.samples import open_samples
    from train.config import TrainConfig
    from train.evaluate import evaluate
    from train.ranks import joined

    if not (run / "model").is_dir():
        raise MissingDataError(f"{run}: there is no trained model in it (expected {run / 'model'})")
    config = load_config(TrainConfig, run / "config.yaml")
    torch.set_num_threads(config.threads)
    dataset = open_dataset(path or config.dataset)
    with joined(comm, "cpu") as ranks:
        potential = load_model(run / "model")
        names = [name for name in dataset.dataset_names if name in potential.dataset_names]
        if not names:
            raise DataError(
                f"{dataset.path} has none of the sources the model knows: {', '.join(potential.dataset_names)}"
            )
        ids = np.sort(np.concatenate([dataset.split_ids(split, name) for name in names]))
        if len(ids) == 0:
            raise DataError(f"{dataset.path}: the split {split} has no structures of {', '.join(names)}")
        # A run on many ranks may be measured on one: memory is then this process's own.
        kind = "auto" if config.store == "rma" else config.store
        samples = open_samples(dataset, kind, comm, ids)
        metrics = evaluate(
            potential,
            samples,
            ids,
            stored=dataset.dataset_names,
            loss=config.loss,
            batch_size=batch_size,
            ranks=ranks,
        )
        samples.close()
    return {"run": str(run), "dataset": str(dataset.path), "split": split, **metrics}


@app.command()
def status(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    as_json: _JSON = False,
) -> None:
    """Show training runs: how far they are, how good, and what they cost.

    For example:

        gfm train status out/run

        gfm train status out
    """
    from gfm.errors import MissingDataError
    from gfm.runtime.runs import RunFolder

    found = [path for folder in folders for path in _runs_in(folder)]
    if not found:
        raise MissingDataError(
            f"no training run (a folder with summary.json) in {', '.join(map(str, folders))}"
        )
    rows: list[dict[str, Any]] = []
    for path in found:
        summary = RunFolder(path).summary() or {}
        keys = ("status", "epochs", "ranks", "store", "structures_per_second", "seconds", "joules",
                "joules_method", "parameters")  # fmt: skip
        best = (summary.get("best") or {}).get("validation")
        rows.append({"run": str(path), **{key: summary.get(key) for key in keys}, "best": best})
    if as_json:
        print(json.dumps({"runs": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("run", "status", "epochs", "best errors (validation)", "joules"):
        table.add_column(name, justify="right" if name in ("epochs", "joules") else "left", overflow="fold")
    for row in rows:
        joules = f"{row['joules']:.4g} ({row['joules_method'].partition(':')[0]})"
        errors = "-" if row["best"] is None else _errors(row["best"])
        table.add_row(row["run"], row["status"], str(row["epochs"]), errors, joules)
    Console().print(table)


def _runs_in(folder: Path) -> list[Path]:
    """Return a run folder itself, or the run folders at most two levels below."""
    if (folder / "metrics.jsonl").exists() and (folder / "summary.json").exists():
        return [folder]
    files = sorted({*folder.glob("*/metrics.jsonl"), *folder.glob("*/*/metrics.jsonl")})
    return [file.parent for file in files if file.with_name("summary.json").exists()]
