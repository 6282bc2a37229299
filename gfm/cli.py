"""The root of the ``gfm`` command; verbs come from the entry points of group ``gfm.commands``.

Each package owns its verbs in its own ``cli.py`` (a `typer.Typer`), so that this floor imports none above it.
Those files import what is heavy inside their functions: ``gfm --help`` stays fast.
"""

import sys
from importlib.metadata import entry_points
from typing import Any

import click
import typer

from gfm import __version__
from gfm.errors import GfmError, ResourceError, from_system
from gfm.runtime.registry import suggest

__all__ = ["main"]

# Which extra brings a module that may be missing.
_EXTRAS = {
    "adios2": "store",
    "dask": "ingest",
    "dask_jobqueue": "ingest",
    "distributed": "ingest",
    "h5py": "ingest",
    "httpx": "ingest",
    "lmdb": "ingest",
    "matplotlib": "train",
    "mpi4py": "mpi",
    "optuna": "hpo",
    "optuna_dashboard": "hpo",
    "orjson": "ingest",
    "safetensors": "model",
    "scipy": "hpo",
    "tblite": "sample-data",
    "torch": "model",
    "zarr": "store",
}


class _Verb(click.Command):
    """One verb; its arguments, its help and its usage errors are the business of its own typer command.

    Newer typer carries its own copy of click, so that the exceptions of the one are unknown to the other: the
    verb is run as a whole program instead of as a subcommand.
    """

    def __init__(self, name: str, command: Any) -> None:
        """Take a verb's name and its typer command."""
        super().__init__(name, help=command.help, add_help_option=False)
        command.context_settings.setdefault("help_option_names", ["-h", "--help"])
        self._command = command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave every argument to the verb."""
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: click.Context) -> None:
        """Run the verb, which exits with its own code."""
        self._command.main(args=ctx.args, prog_name=ctx.command_path)


class _Verbs(click.Group):
    """A group whose commands are the entry points of ``gfm.commands``, in the order a user meets them."""

    _ORDER = ("demo", "doctor", "sample-data", "download", "ingest", "store", "train", "hpo", "ensemble")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs: ours in the order of the work, third parties' after them."""
        names = {point.name for point in entry_points(group="gfm.commands")}
        return [name for name in self._ORDER if name in names] + sorted(names - set(self._ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that owns a verb."""
        for point in entry_points(group="gfm.commands", name=cmd_name):
            return _Verb(cmd_name, typer.main.get_command(point.load()))
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of a command line; a misspelt one gets a suggestion."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(f"no verb {args[0]!r}.{suggest(args[0], known)} Verbs: {', '.join(known)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gfm")
def _root() -> None:
    """Graph foundation models for atomistic materials: from published files to a calibrated ensemble.

    Try `gfm demo` first: it runs the whole line on a small sample and prints every command it uses.
    """


def main() -> None:
    """Run the ``gfm`` command; expected errors become one message and the exit code of their kind."""
    try:
        _root()
    except GfmError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(ResourceError(f"this needs {error.name}: pip install 'gfm-atoms[{extra}]'"))
    except OSError as error:
        known = from_system(error)
        if known is None:
            raise
        _fail(known)


def _fail(error: GfmError) -> None:
    print(f"gfm: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
