"""Families of named things (readers, layers, stores): a visible dict, plus entry points of third parties.

An unknown name answers with the known ones and, where one is close, a "did you mean".
"""

import difflib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from gfm.errors import ConfigError

__all__ = ["Registry", "suggest"]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` where a known name is close, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


class Registry:
    """Name to object, each given as ``"module:attribute"`` and imported when it is first asked for."""

    def __init__(self, family: str, entries: dict[str, str]) -> None:
        """Name the family (singular, also the entry-point group ``gfm.<family>s``) and its own entries."""
        self.family = family
        self._entries = entries

    def names(self) -> list[str]:
        """Return all names, third parties' included."""
        return sorted({*self._entries, *(point.name for point in self._points())})

    def get(self, name: str) -> Any:
        """Import and return one entry.

        Raises:
            ConfigError: Nothing has that name.
        """
        if name in self._entries:
            module, _, attribute = self._entries[name].partition(":")
            return getattr(import_module(module), attribute)
        for point in self._points():
            if point.name == name:
                return point.load()
        known = self.names()
        raise ConfigError(
            f"no {self.family} is called {name!r}.{suggest(name, known)} Known: {', '.join(known)}"
        )

    def _points(self) -> Any:
        return entry_points(group=f"gfm.{self.family}s")
