"""The guard for every diffusers pipeline: ``attach(pipe)``, ``detach(pipe)``, ``is_guarded(pipe)``.

How it holds together: `attach` changes the class of one pipeline object and of its processors (`swap`). A call opens a
record (`record`) of what has passed the guard; the slot and pictures made by hand (`pipeline`), the processors
(`processors`) and modular pipelines (`modular`) look at tensors on their way (`checks`) and note them there; at the
end, whatever the call returns and the record does not know is looked at before the caller gets it.
"""

from .attach import attach, detach, is_guarded
from .coverage import coverage, installed_pipelines, unclassified
from .early import EarlyExit
from .modular import NsfwGuardBlock

__all__ = [
    "EarlyExit",
    "NsfwGuardBlock",
    "attach",
    "coverage",
    "detach",
    "installed_pipelines",
    "is_guarded",
    "unclassified",
]
