"""The verb ``gfm download``."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["download_app"]

download_app = typer.Typer(add_completion=False, help="Published archives: resumable, checked.")


@download_app.command()
def _download(
    name: Annotated[
        str | None, typer.Argument(help="ani1x, qm7x, oc20, oc22 or mptrj.", show_default=False)
    ] = None,
    directory: Annotated[
        Path | None, typer.Argument(help="Where the folder of that name goes.", show_default=False)
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split of oc20, as in 200K; may be given several times.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Only show what there is.")] = False,
    unpack: Annotated[bool, typer.Option("--unpack", help="Unpack tar files beside themselves.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read finished files again.")] = False,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds without a byte until a retry.")] = 60.0,
    retries: Annotated[int, typer.Option(min=0, help="Retries without a new byte until giving up.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout at the end.")] = False,
) -> None:
    """Download a published data set. Run it again to go on after a stop; what is there is not fetched again.

    Without a name it shows what there is: files, sizes, licences, DOIs. Every file is compared with the
    published checksum before it gets its name. At the end stand the lines of a recipe for gfm ingest run.

    Examples: gfm download; gfm download mptrj raw; gfm download oc20 raw --split 200K --split val_id --unpack
    """
    from gfm.errors import ConfigError
    from gfm.runtime.registry import suggest
    from ingest import download_console
    from ingest.archives import ARCHIVES
    from ingest.transfer import Network

    if show_list or name is None:
        download_console.show_table(as_json)
        return
    if name not in ARCHIVES:
        known = ", ".join(ARCHIVES)
        raise ConfigError(f"no data set is called {name!r}.{suggest(name, ARCHIVES)} Known: {known}")
    if directory is None:
        raise ConfigError(f"say where to put it: gfm download {name} DIR")
    # A batch system ends it as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        download_console.run(
            name, directory, split or [], Network(retries, timeout),
            unpacked=unpack, verify=verify, as_json=as_json,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("gfm: interrupted; what came is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
