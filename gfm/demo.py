"""``gfm demo``: the whole line on small sample data, by the very commands a user would type.

Every step is a ``gfm`` command in a process of its own, printed before it runs, with its configuration left
beside its output: to go on from here is to copy a line and change a file.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from gfm.errors import GfmError, ResourceError

__all__ = ["app"]

app = typer.Typer()

# Path and what the labels of `gfm sample-data` really are; the readers would state the published level.
_SOURCES = {
    "ani1x": ("raw/ani1x/ani1x-release.h5", "GFN2-xTB"),
    "qm7x": ("raw/qm7x", "GFN2-xTB"),
    "oc20": ("raw/oc20", "EMT"),
    "oc22": ("raw/oc22", "EMT"),
    "mptrj": ("raw/mptrj/MPtrj_2022.9_full.json", "EMT"),
}

_RECIPE = """\
# What to read, and into what: gfm ingest run recipe.yaml
output: dataset
format: {format}
sources:
{sources}
"""

_TRAIN = """\
# One model on all five sources: mpiexec -n {ranks} gfm train run train.yaml
dataset: dataset
output: train
epochs: {epochs}
store: {store}
batch: {{size: {batch}}}  # structures per rank
model: {{layer: painn, hidden: 48, num_layers: 2, heads: per-dataset, forces: gradient}}
optimizer: {{learning_rate: 3.0e-3, warmup_steps: 20, schedule: cosine}}
loss: {{energy: 1.0, forces: 10.0}}
"""

_STUDY = """\
# Which model, which settings: gfm hpo run study.yaml
name: demo
output: study
base:
  dataset: dataset
  output: study/base  # each trial gets a folder of its own
  store: local
  batch: {{size: 16}}
  model: {{layer: painn, hidden: 32, num_layers: 2, heads: per-dataset, forces: gradient}}
  optimizer: {{learning_rate: 3.0e-3, warmup_steps: 20, schedule: cosine}}
  loss: {{energy: 1.0, forces: 10.0}}
space:
  model.layer: {{categorical: [egnn, painn]}}
  model.hidden: {{int: [32, 48]}}
  optimizer.learning_rate: {{float: [3.0e-3, 1.2e-2], log: true}}
  seed: {{int: [0, 9999]}}  # members that start elsewhere err elsewhere
sampler: tpe
discard: {{kind: median, startup_trials: 3, warmup_epochs: 2}}
epochs: {trial_epochs}
trials: {trials}
workers: 2
seed: 0
finish: {{best: {members}, epochs: {member_epochs}}}
"""


@dataclass
class _Line:
    """Runs commands inside the demo's folder and remembers how long each took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, step: str, arguments: list[str], *, ranks: int = 1, as_json: bool = True) -> Any:
        """Run one ``gfm`` command, shown as a user would type it; return what it printed as JSON."""
        typed = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
        bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
        shown = shlex.join([*typed, "gfm", *arguments])
        print(f"\n{bold}$ {shown}{plain}", file=sys.stderr, flush=True)
        launcher = [_mpiexec(), "-n", str(ranks)] if ranks > 1 else []
        command = [*launcher, sys.executable, "-m", "gfm", *arguments, *(["--json"] if as_json else [])]
        started = time.monotonic()
        process = subprocess.run(
            command, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        self.seconds[step] = round(time.monotonic() - started, 1)
        if process.returncode:
            raise GfmError(
                f"the demo's step {step!r} failed with exit code {process.returncode}; its message is above. "
                f"Run it again with: cd {self.folder} && {shown}"
            )
        return json.loads(process.stdout) if as_json else None


@app.command()
def _demo(
    out: Path = typer.Option(Path("demo-out"), "--out", help="Folder for everything the demo makes."),
    structures: int = typer.Option(200, help="Structures of each of the five sources."),
    epochs: int = typer.Option(16, help="Epochs of the training on two ranks."),
    trials: int = typer.Option(8, help="Trials of the study."),
    trial_epochs: int = typer.Option(6, help="Epochs of each trial."),
    member_epochs: int = typer.Option(14, help="Epochs to which the best trials go on."),
    members: int = typer.Option(3, help="Members of the ensemble."),
    ranks: int = typer.Option(2, help="MPI ranks of the training; 1 needs no MPI."),
    storage: str = typer.Option("adios", "--format", help="Format of the dataset: adios or zarr."),
) -> None:
    """Run the whole line on small sample data: raw files, dataset, training, study, ensemble, report.

    Takes under 6 minutes on 2 cores. Every command is printed as you would type it; the folder holds their
    configurations, so each can be changed and run again.
    """
    if (out / "summary.json").exists():
        raise ResourceError(
            f"{out} holds a finished demo already; name another folder with --out, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    line = _Line(out)
    sources = "\n".join(
        f'  - {{name: {name}, reader: {name}, path: {path}, theory: {theory} (sample), licence: "", doi: ""}}'
        for name, (path, theory) in _SOURCES.items()
    )
    (out / "recipe.yaml").write_text(_RECIPE.format(format=storage, sources=sources))
    (out / "train.yaml").write_text(
        _TRAIN.format(epochs=epochs, ranks=ranks, store="rma" if ranks > 1 else "local", batch=16 // ranks)
    )
    (out / "study.yaml").write_text(
        _STUDY.format(trials=trials, trial_epochs=trial_epochs, members=members, member_epochs=member_epochs)
    )

    line.run("sample-data", ["sample-data", "raw", "--structures", str(structures)], as_json=False)
    line.run("ingest", ["ingest", "run", "recipe.yaml"])
    info = line.run("store", ["store", "info", "dataset"])
    training = line.run("train", ["train", "run", "train.yaml"], ranks=ranks)
    study = line.run("hpo", ["hpo", "run", "study.yaml"])
    line.run("select", ["ensemble", "select", "study", "--members", str(members), "--out", "ensemble"])
    scores = line.run("ensemble", ["ensemble", "evaluate", "ensemble", "--dataset", "dataset"])
    report = ["--dataset", "dataset", "--run", "train", "--study", "study", "--out", "report.html"]
    line.run("report", ["ensemble", "report", "ensemble", *report], as_json=False)

    summary = {
        "datasets": info["datasets"],
        "store": {key: info[key] for key in ("structures", "atoms", "bytes", "bytes_per_structure", "format")},
        "train": _errors(training),
        "hpo": study,
        "ensemble": _scores(scores),
        "seconds": line.seconds,
        "report": str((out / "report.html").resolve()),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _tell(out, summary)


def _errors(training: dict[str, Any]) -> dict[str, Any]:
    """Keep of a training what a reader asks first, and its validation errors, overall and by source."""
    kept = ("status", "ranks", "store", "epochs", "structures_per_second", "joules", "joules_method")
    return {
        **{key: training[key] for key in kept},
        **{record: training[record]["validation"] for record in ("first", "last", "best")},
    }


def _scores(scores: dict[str, Any]) -> dict[str, Any]:
    """Keep of an ensemble's scores the errors on test, and the calibration over all sources."""
    outputs = {name: scores[name]["pooled"] for name in ("energy", "forces")}
    return {
        "members": scores["members"],
        "test": scores["comparison"],
        "calibration": {
            when: {name: pooled[when] for name, pooled in outputs.items()} for when in ("before", "after")
        },
    }


def _tell(out: Path, summary: dict[str, Any]) -> None:
    """Say where everything is."""
    places = {
        "report.html": "the whole line on one page: open it in a browser",
        "summary.json": "the same in numbers, for programs",
        "raw/": "small files in the five published layouts (computed here, not the published data)",
        "dataset/": "the dataset; look with: gfm store info dataset",
        "train/": "the training on MPI ranks: metrics, plots, checkpoints, model",
        "study/": "the trials; look with: gfm hpo dashboard study",
        "ensemble/": "gfm.calculator.EnsembleCalculator('ensemble') is its ASE calculator",
    }
    print(f"\ndone in {sum(summary['seconds'].values()):.0f} s; everything is in {out}/", file=sys.stderr)
    width = max(len(f"{out}/{name}") for name in places)
    for name, what in places.items():
        print(f"  {f'{out}/{name}':{width}}  {what}", file=sys.stderr)


def _mpiexec() -> str:
    """Return the mpiexec to start the training with."""
    from gfm.runtime.mpi import find_mpiexec

    found = find_mpiexec()
    if found is None:
        raise ResourceError("no mpiexec: pip install 'gfm-atoms[mpi]', or run the demo with --ranks 1")
    return found
