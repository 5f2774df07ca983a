"""Scanning what exists already: files, archives, tables and object stores, into rows that say what was found.

`run_scan` looks at every picture and video of some sources and writes a row about each; `read_rows` reads them.
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .parts import read_rows
    from .row import Row
    from .run import run_scan
    from .settings import ScanSettings
    from .sources import Sources, parse_sources
    from .summary import Summary

__all__ = ["Row", "ScanSettings", "Sources", "Summary", "parse_sources", "read_rows", "run_scan"]

# The command line reads its options without loading torch.
__getattr__ = lazily(
    __name__,
    {
        "parts": ("read_rows",),
        "row": ("Row",),
        "run": ("run_scan",),
        "settings": ("ScanSettings",),
        "sources": ("Sources", "parse_sources"),
        "summary": ("Summary",),
    },
)
