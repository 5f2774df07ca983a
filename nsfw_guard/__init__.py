"""nsfw_guard: the safety check at the end of an image generator.

The public names are loaded when they are first used: ``import nsfw_guard`` imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .cards import CARDS, CardRegistry, Figure, ModelCard, Preset
    from .checkpoint import download
    from .cosmos import CosmosChecker
    from .errors import CheckpointError, GuardError, ImageError, SettingError
    from .guard import NsfwGuard
    from .policy import Policy
    from .preprocess import PreprocessSpec
    from .redact import Redaction
    from .verdict import GuardResult, Level, Scores, Verdict

_MODULES = {
    "NsfwGuard": "guard",
    "Policy": "policy",
    "Redaction": "redact",
    "Level": "verdict",
    "Verdict": "verdict",
    "Scores": "verdict",
    "GuardResult": "verdict",
    "ModelCard": "cards",
    "CardRegistry": "cards",
    "Preset": "cards",
    "Figure": "cards",
    "CARDS": "cards",
    "CosmosChecker": "cosmos",
    "PreprocessSpec": "preprocess",
    "download": "checkpoint",
    "GuardError": "errors",
    "ImageError": "errors",
    "SettingError": "errors",
    "CheckpointError": "errors",
}

__all__ = [
    "CARDS",
    "CardRegistry",
    "CheckpointError",
    "CosmosChecker",
    "Figure",
    "GuardError",
    "GuardResult",
    "ImageError",
    "Level",
    "ModelCard",
    "NsfwGuard",
    "Policy",
    "PreprocessSpec",
    "Preset",
    "Redaction",
    "Scores",
    "SettingError",
    "Verdict",
    "download",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    elif name == "PreTrainedModel":
        # Not ours, but diffusers looks for the base class of a component in the package that the component is from.
        value = importlib.import_module("transformers").PreTrainedModel
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
