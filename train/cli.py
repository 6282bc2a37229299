"""The verbs of ``gfm train``."""

import typer

__all__ = ["app"]

app = typer.Typer(name="train", help="Train, evaluate and use models.", no_args_is_help=True)


@app.callback()
def _main() -> None:
    """Train, evaluate and use models."""
