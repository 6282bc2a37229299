"""``python -m gfm``: the ``gfm`` command, for subprocesses that must run under this very interpreter."""

from gfm.cli import main

main()
