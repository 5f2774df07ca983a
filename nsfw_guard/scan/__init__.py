"""Scanning what exists already: files, archives, tables and object stores, into rows that say what was found.

`run_scan` looks at every picture and video of some sources and writes a row about each; `read_rows` reads them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .parts import read_rows
    from .row import Row
    from .run import run_scan
    from .settings import ScanSettings
    from .sources import Sources, parse_sources
    from .summary import Summary

__all__ = ["Row", "ScanSettings", "Sources", "Summary", "parse_sources", "read_rows", "run_scan"]

_WHERE = {
    "parts": ("read_rows",),
    "row": ("Row",),
    "run": ("run_scan",),
    "settings": ("ScanSettings",),
    "sources": ("Sources", "parse_sources"),
    "summary": ("Summary",),
}


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():  # the command line reads its options without loading torch
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
