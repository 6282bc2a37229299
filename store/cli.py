"""The verbs of ``gfm store``."""

import typer

__all__ = ["app"]

app = typer.Typer(name="store", help="Datasets on disk.", no_args_is_help=True)


@app.callback()
def _main() -> None:
    """Datasets on disk."""
