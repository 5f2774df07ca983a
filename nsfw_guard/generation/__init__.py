"""Batch generation with a guard: prompts in, images that may be shown out, and a log of every decision.

`Generation` runs prompts through any diffusers pipeline; `GuardedFolder` saves what a loop of one's own has made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .entries import Made
    from .folder import OutputError
    from .keep import GuardedFolder
    from .launch import Processes, processes
    from .prompts import BadRow, PromptRow, read_rows
    from .run import Generation
    from .settings import OnFlag
    from .summary import Summary

__all__ = [
    "BadRow",
    "Generation",
    "GuardedFolder",
    "Made",
    "OnFlag",
    "OutputError",
    "Processes",
    "PromptRow",
    "Summary",
    "processes",
    "read_rows",
]

_WHERE = {
    "launch": ("Processes", "processes"),
    "prompts": ("BadRow", "PromptRow", "read_rows"),
    "run": ("Generation",),
    "keep": ("GuardedFolder",),
    "entries": ("Made",),
    "settings": ("OnFlag",),
    "folder": ("OutputError",),
    "summary": ("Summary",),
}


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():  # the command line reads its options without loading torch
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
