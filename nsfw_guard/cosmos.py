"""The guard as the checker that Cosmos pipelines and servers ask, about prompts and about clips."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .errors import SettingError
from .policy import Policy

if TYPE_CHECKING:
    from .guard import NsfwGuard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """What looks at one thing: prompts, or clips. Servers read it to move the networks."""

    models: list[Any]

    @property
    def nn_models(self) -> list[nn.Module]:
        """Those of them that are networks."""
        return [model for model in self.models if isinstance(model, nn.Module)]


class CosmosChecker:
    """A guard for the clips and somebody else's check of the prompts, with the interface of ``CosmosSafetyChecker``.

    Args:
        guard: Looks at the clips.
        text: Reads the prompts: a function that returns whether a prompt may be used, or an object with such a
            ``check_text_safety``, as NVIDIA's own checker has; ``None``: nobody does.

    Raises:
        SettingError: ``guard`` is no guard, or ``text`` is something else, or reads no prompts, as a guard does not.
    """

    def __init__(self, guard: NsfwGuard, *, text: Any) -> None:
        if not _is_guard(guard):
            raise SettingError(f"guard is {_said(guard)}; expected an NsfwGuard, which looks at the clips.")
        if _is_guard(text) or (isinstance(text, CosmosChecker) and text.text is None):
            raise SettingError("text is a guard, which reads no prompts. If nobody is to read them, say so: text=None.")
        unmade = isinstance(text, type) and hasattr(text, "check_text_safety")
        if unmade or (text is not None and not callable(getattr(text, "check_text_safety", text))):
            raise SettingError(
                f"text is {_said(text)}; expected a function that returns whether a prompt may be used, an "
                "object with a check_text_safety, or None."
            )
        self.guard = guard
        self.text: Any = text

    def check_text_safety(self, prompt: str) -> bool:
        """Return whether a prompt may be used.

        Raises:
            SettingError: The check returns something else than a bool. Of a tuple, or of a text, one would not see it.
        """
        if self.text is None:
            return self.guard.check_text_safety(prompt)
        check: Callable[[str], Any] = getattr(self.text, "check_text_safety", self.text)
        allowed = check(prompt)
        if not isinstance(allowed, bool):
            raise SettingError(f"The check of prompts returned {allowed!r}; expected True, it may be used, or False.")
        return allowed

    def check_video_safety(self, frames: Any) -> Any:
        """See ``NsfwGuard.check_video_safety``; never ``None``, which servers take for a clip that may be shown."""
        return self.guard.check_video_safety(frames)

    def to(self, *args: Any, **kwargs: Any) -> CosmosChecker:
        """Move the networks, as hosts do before and after they ask."""
        for model in self.nn_models:
            model.to(*args, **kwargs)
        return self

    @property
    def text_guardrail(self) -> Any:
        """What reads the prompts: ``text``'s own of that name, or ``text``."""
        own = getattr(self.text, "text_guardrail", None)
        return own if hasattr(own, "models") else Models([] if self.text is None else [self.text])

    @property
    def video_guardrail(self) -> Models:
        """What looks at the clips: the guard."""
        return Models([self.guard])

    @property
    def models(self) -> list[Any]:
        """Everything that looks at something."""
        return [*self.text_guardrail.models, *self.video_guardrail.models]

    @property
    def nn_models(self) -> list[nn.Module]:
        """The networks among them."""
        return Models(self.models).nn_models


def _is_guard(given: Any) -> bool:
    # NVIDIA's checker looks at clips too, and is a module; it has no policy of ours.
    return isinstance(given, nn.Module) and isinstance(getattr(given, "policy", None), Policy)


def _said(given: Any) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"


def say_prompts_unread(guard: NsfwGuard) -> None:
    """Log, once for a guard, that a host took it for a checker of prompts."""
    if not getattr(guard, "_said_prompts_unread", False):
        guard._said_prompts_unread = True
        logger.warning(
            "A Cosmos host asked the guard about a prompt. The guard reads no prompts, so every prompt passes; it "
            "looks at the clips. To check prompts too, give the host CosmosChecker(guard, text=...), with NVIDIA's own "
            "checker or a function of yours."
        )
