"""``gfm doctor``."""

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def _doctor() -> None:
    """Run doctor."""
