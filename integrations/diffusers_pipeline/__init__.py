"""The guard for every diffusers pipeline: ``attach(pipe)``, ``detach(pipe)``, ``is_guarded(pipe)``.

How it holds together: `attach` changes the class of one pipeline object and of its processors (`swap`). A call opens a
record (`record`) of what has passed the guard; the slot and pictures made by hand (`pipeline`), the processors
(`processors`) and modular pipelines (`modular`) look at tensors on their way (`checks`) and note them there; at the
end, whatever the call returns and the record does not know is looked at before the caller gets it.
"""

from typing import TYPE_CHECKING, Any

from nsfw_guard.errors import SettingError

from .attach import attach, detach, is_guarded
from .early import EarlyExit

if TYPE_CHECKING:
    from .block import NsfwGuardBlock

__all__ = ["EarlyExit", "NsfwGuardBlock", "attach", "detach", "is_guarded"]


def __getattr__(name: str) -> Any:
    if name == "NsfwGuardBlock":  # older releases of diffusers have no blocks
        try:
            from .block import NsfwGuardBlock
        except ImportError as error:
            raise SettingError(f"NsfwGuardBlock needs a diffusers with modular pipelines ({error}).") from error

        return NsfwGuardBlock
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
