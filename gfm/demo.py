"""``gfm demo``."""

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def _demo() -> None:
    """Run demo."""
