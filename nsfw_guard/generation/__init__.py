"""Batch generation with a guard: prompts in, images that may be shown out, and a log of every decision.

`Generation` runs prompts through any diffusers pipeline; `GuardedFolder` saves what a loop of one's own has made.
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

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

# The command line reads its options without loading torch.
__getattr__ = lazily(
    __name__,
    {
        "launch": ("Processes", "processes"),
        "prompts": ("BadRow", "PromptRow", "read_rows"),
        "run": ("Generation",),
        "keep": ("GuardedFolder",),
        "entries": ("Made",),
        "settings": ("OnFlag",),
        "folder": ("OutputError",),
        "summary": ("Summary",),
    },
)
