"""The inputs that nodes share, when to flag and what then, and what they mean to the core."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from nsfw_guard.cards import ModelCard
from nsfw_guard.drawing import FITS
from nsfw_guard.errors import ImageError, SettingError
from nsfw_guard.policy import Policy
from nsfw_guard.redact import Redaction

ClassifierType = io.Custom("NSFWG_CLASSIFIER")
PolicyType = io.Custom("NSFWG_POLICY")
ScoresType = io.Custom("NSFWG_SCORES")

PRESETS = ("balanced", "strict", "permissive")
THRESHOLD = "threshold"
BLOCK = "block"
DETECT = "detect only"
CELLS, COLOR = 16, "#000000"
# The default of a lazy input: one that is linked and not evaluated yet is None.
UNLINKED = object()


def classifier_input() -> Any:
    """The classifier, if another than the default one."""
    return ClassifierType.Input(
        "classifier",
        optional=True,
        tooltip="From Load NSFW Classifier. Without it, the only checkpoint in models/nsfw_guard is taken; of several, "
        "the one that NSFW_GUARD_MODEL names.",
    )


def policy_input() -> Any:
    """A policy, instead of the sensitivity."""
    return PolicyType.Input(
        "policy", optional=True, tooltip="From NSFW Policy. If it is linked, the sensitivity here counts for nothing."
    )


def threshold_input(tooltip: str) -> Any:
    """A threshold in [0, 1]."""
    return io.Float.Input(
        "threshold", default=0.5, min=0.0, max=1.0, step=0.01, display_mode=io.NumberDisplay.slider, tooltip=tooltip
    )


def sensitivity_input() -> Any:
    """When an image is flagged: a preset of the model's card, or a threshold."""
    threshold = threshold_input(
        "An image is flagged when its score reaches this. Lower finds more, and is wrong more often."
    )
    return io.DynamicCombo.Input(
        "sensitivity",
        options=[
            *(io.DynamicCombo.Option(preset, []) for preset in PRESETS),
            io.DynamicCombo.Option(THRESHOLD, [threshold]),
        ],
        tooltip="When an image is flagged: a published setting of the model, or a threshold of your own.",
    )


def action_input() -> Any:
    """What becomes of flagged images. What belongs to one action may be left out of API prompts."""

    def cells() -> Any:
        return io.Int.Input(
            "cells",
            default=CELLS,
            min=1,
            max=256,
            optional=True,
            tooltip="At most, what is shown is made of the mean colours of so many cells along the short side, and "
            "nothing else. It is looked at again: while it would be flagged, half as many are taken, and at last a "
            "colour.",
        )

    options = {
        "blur": [cells()],
        "pixelate": [cells()],
        "fill": [
            io.Color.Input("color", default=COLOR, optional=True, tooltip="The colour that flagged images become.")
        ],
        "replace": [
            io.Combo.Input(
                "fit",
                options=list(FITS),
                default=FITS[0],
                optional=True,
                tooltip="cover: cut what stands over; contain: show all of it; stretch: lose its proportions.",
            ),
        ],
        BLOCK: [
            io.String.Input(
                "message",
                default="",
                optional=True,
                tooltip="Shown as an error. Empty: what comes after this node is left out silently.",
            )
        ],
        DETECT: [],
    }
    return io.DynamicCombo.Input(
        "action",
        options=[io.DynamicCombo.Option(key, inputs) for key, inputs in options.items()],
        tooltip="What becomes of flagged images. Images that are not flagged stay as they are, bit by bit.",
    )


def replacement_input() -> Any:
    """The picture for the action "replace". Not among that action's own inputs: ComfyUI knows no lazy ones there."""
    return io.Image.Input(
        "replacement",
        optional=True,
        lazy=True,
        tooltip="For the action replace: shown instead of flagged images. It is made only when something is flagged.",
    )


def guard_inputs() -> list[Any]:
    """What a node needs that classifies, decides and redacts in one, beside what it looks at."""
    return [sensitivity_input(), action_input(), replacement_input(), classifier_input(), policy_input()]


@dataclass(frozen=True)
class Action:
    """What becomes of flagged images.

    Attributes:
        kind: A kind of ``Redaction``, ``BLOCK`` or ``DETECT``.
        redaction: For the kinds that have one.
        message: For ``BLOCK``: the error, or ``None`` to be silent.
    """

    kind: str
    redaction: Redaction
    message: str | None = None


def policy_of(card: ModelCard, sensitivity: Any, policy: Policy | None) -> Policy:
    """Return the policy that the inputs of a node say.

    Raises:
        SettingError: They say none, or a preset that the card does not have.
    """
    if policy is not None:
        if not isinstance(policy, Policy):
            raise SettingError(f"policy is a {type(policy).__name__}; expected what NSFW Policy puts out.")
        return policy
    key = _key(sensitivity, "sensitivity", (*PRESETS, THRESHOLD))
    return Policy(threshold=sensitivity.get("threshold")) if key == THRESHOLD else card.policy(key)


def action_of(action: Any, replacement: Any = None, *, flagged: bool = True) -> Action:
    """Return the action that the inputs of a node say.

    Args:
        action: The value of ``action_input()``.
        replacement: The picture for "replace".
        flagged: Whether anything is flagged: otherwise no replacement is needed.

    Raises:
        SettingError: They say none; "replace" without a picture.
        ImageError: A replacement that is no picture.
    """
    key = _key(action, "action", ("blur", "pixelate", "fill", "replace", BLOCK, DETECT))
    # What is left out of an API prompt is None here.
    given = {name: value for name, value in action.items() if value is not None}
    if key in ("blur", "pixelate"):
        return Action(key, Redaction(key, cells=given.get("cells", CELLS)))
    if key == "fill":
        return Action(key, Redaction(key, color=_rgb(given.get("color", COLOR))))
    if key == "replace" and flagged:
        return Action(key, Redaction(key, image=_replacement(replacement), fit=given.get("fit", FITS[0])))
    message = str(action.get("message") or "").strip() or None
    return Action(key, Redaction("none"), message if key == BLOCK else None)


def needed(linked: dict[str, Any], action: Any, flagged: Callable[[], bool]) -> list[str]:
    """Ask for the lazy inputs that are linked, not made yet, and needed: for ``check_lazy_status``.

    Args:
        linked: Input → ``None`` if it is linked and not made, ``UNLINKED`` if it is not linked.
        action: The value of ``action_input()``.
        flagged: Tells whether anything is flagged; asked only if it matters.
    """
    needs = {"blur": ["mask"], "pixelate": ["mask"], "fill": ["mask"], "replace": ["replacement", "mask"]}
    wanted = [name for name in needs.get(str(plain(action).get("action")), []) if linked.get(name, UNLINKED) is None]
    return wanted if wanted and flagged() else []


def plain(value: Any) -> dict[str, Any]:
    """A dynamic input as ``execute`` gets it, from what ``check_lazy_status`` gets: pairs of a value and its name."""
    if not isinstance(value, dict):
        return {}
    return {key: entry[0] if isinstance(entry, tuple) else entry for key, entry in value.items()}


def _key(value: Any, name: str, choices: tuple[str, ...]) -> str:
    key = value.get(name) if isinstance(value, dict) else None
    if key not in choices:
        # ComfyUI drops what is none of the choices before a node sees it.
        given = "missing, or none of its choices" if key is None else repr(key)
        raise SettingError(f"{name} is {given}; expected one of {', '.join(choices)}.")
    return str(key)


def _rgb(color: Any) -> tuple[float, float, float]:
    text = str(color).strip().removeprefix("#")
    if not re.fullmatch("[0-9a-fA-F]{6}", text):
        raise SettingError(f"color is {color!r}; expected a colour such as #000000.")
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return (red, green, blue)


def _replacement(image: Any) -> Tensor:
    if image is None or image is UNLINKED:
        raise SettingError('The action is "replace", and no picture is linked; link one to "replacement".')
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.numel():
        raise ImageError("The replacement is no IMAGE; expected one picture, such as that of Load Image.")
    return image[0].movedim(-1, 0).float().clamp(0, 1)
