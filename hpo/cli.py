"""The verbs of ``gfm hpo``."""

import typer

__all__ = ["app"]

app = typer.Typer(name="hpo", help="Hyperparameter studies.", no_args_is_help=True)


@app.callback()
def _main() -> None:
    """Hyperparameter studies."""


ensemble_app = typer.Typer(help="Ensembles with calibrated uncertainty.", no_args_is_help=True)


@ensemble_app.callback()
def _ensemble() -> None:
    """Ensembles with calibrated uncertainty."""
