"""What the operator of a server has set: environment variables, read anew each time."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nsfw_guard.errors import SettingError

from . import checkpoints, options

ENFORCE, MODEL, POLICY, ACTION, ALLOW, AUDIT = (
    f"NSFW_GUARD_{name}" for name in ("ENFORCE", "MODEL", "POLICY", "ACTION", "ALLOW", "AUDIT")
)
_OFF = ("", "0", "false", "no", "off")
_ACTIONS = ("blur", "pixelate", "fill", options.BLOCK)
_HELD = "Held back by the operator of this server: flagged as NSFW."


@dataclass(frozen=True)
class Settings:
    """The operator's word.

    Attributes:
        model: A checkpoint, as ``checkpoints.installed()`` names it.
        sensitivity: As the input of a node.
        action: Likewise.
        audit: The folder of the audit log, if there is to be one.
    """

    model: str
    sensitivity: dict[str, str]
    action: dict[str, str]
    audit: Path | None


def enforced() -> bool:
    """Whether every prompt is to be guarded: any word but one for no says so."""
    return os.environ.get(ENFORCE, "").strip().lower() not in _OFF


def settings() -> Settings:
    """Return the settings.

    Raises:
        SettingError: One that there is not.
        CheckpointError: No checkpoint is installed.
    """
    model = os.environ.get(MODEL) or checkpoints.default()
    if model not in (*checkpoints.installed(), checkpoints.DEMO):
        raise SettingError(f"{MODEL} is {model!r}; expected one of {[*checkpoints.installed(), checkpoints.DEMO]}.")
    action = os.environ.get(ACTION) or "blur"
    if action not in _ACTIONS:
        raise SettingError(f"{ACTION} is {action!r}; expected one of {', '.join(_ACTIONS)}.")
    sensitivity = os.environ.get(POLICY) or "balanced"
    if sensitivity not in options.PRESETS:
        raise SettingError(f"{POLICY} is {sensitivity!r}; expected one of {', '.join(options.PRESETS)}.")
    folder = os.environ.get(AUDIT)
    return Settings(
        model, {"sensitivity": sensitivity}, {"action": action, "message": _HELD}, Path(folder) if folder else None
    )


def allowed() -> frozenset[str]:
    """Return the classes of nodes, or single inputs as ``Class.input``, that may be given what cannot be looked at."""
    return frozenset(name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip())


def stamp() -> str:
    """Return what changes with the settings, and tells nothing of them, for the ``fingerprint_inputs`` of nodes."""
    chosen = settings()
    text = f"{chosen.sensitivity} {chosen.action} {checkpoints.stamp(chosen.model)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def without_paths(text: str) -> str:
    """Return a message with the folders of this machine taken out, for those who only use the server."""
    return _PATH.sub(lambda match: match["name"] or "...", text)


_PATH = re.compile(
    r"""(?<![\w.:/\\-])(?:[A-Za-z]:[\\/]|\\\\|~?/)  # where it begins
    (?:[^\s'",;:()\[\]<>|]*[\\/])*  # folders
    (?P<name>[^\s'",;:()\[\]<>|\\/]*)""",
    re.VERBOSE,
)
