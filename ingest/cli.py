"""The verbs of ``gfm ingest``."""

import typer

__all__ = ["app"]

app = typer.Typer(name="ingest", help="Raw published files to a dataset on disk.", no_args_is_help=True)


@app.callback()
def _main() -> None:
    """Raw published files to a dataset on disk."""


sample_data_app = typer.Typer(help="Small raw files in the five published layouts.")


@sample_data_app.command()
def _sample_data() -> None:
    """Small raw files in the five published layouts."""
