"""Guards a value, whatever it is: what can show something is looked at, what cannot be looked at is an error."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from nsfw_guard.errors import ImageError
from nsfw_guard.images import read_images
from nsfw_guard.layouts import is_array, layouts
from nsfw_guard.leaves import look_at
from nsfw_guard.redact import redact_flagged
from nsfw_guard.verdict import Scores, Verdict
from nsfw_guard.walk import Place, is_pictures, walk

from . import classifier, enforce_trace, options, redaction
from .enforce_models import is_model_file, look_at_model
from .enforce_settings import Settings, settings
from .nodes_image import decide
from .nodes_video import decide_video, redact_video

_MOST_SOUND_CHANNELS = 16


class Look:
    """One look at a value, by the operator's settings, and what it found.

    Args:
        node_id: The guard's.
        strict: Whether what cannot be looked at is an error, as it is before outputs. Otherwise it is handed on: it may
            be a model, and outputs are guarded again.
    """

    def __init__(self, node_id: str | None, *, strict: bool) -> None:
        self.settings: Settings = settings()
        self._node_id, self._strict = node_id, strict
        self._loaded = classifier.load(self.settings.model)
        self._action = options.action_of(self.settings.action)
        self._policy = options.policy_of(self._loaded.card, self.settings.sensitivity, None)
        self.verdicts: list[Verdict] = []
        self._told: dict[int, dict[str, Any]] = {}

    @property
    def flagged(self) -> bool:
        """Whether anything was."""
        return any(verdict.flagged for verdict in self.verdicts)

    def guarded(self, value: Any) -> Any:
        """Return the value itself, a copy in which what is flagged is redacted, or what holds it back.

        Raises:
            ImageError: Something in it cannot be looked at.
        """
        made = self._at(value, 0)
        return self.held() if self.flagged and self._action.kind == options.BLOCK else made

    def held(self) -> ExecutionBlocker:
        """What goes out in the place of what is held back."""
        return ExecutionBlocker(self._action.message)

    def decide(self, scores: Scores) -> list[Verdict]:
        """Decide, and remember it."""
        verdicts = decide(scores, self.settings.sensitivity, None)[1]
        self.verdicts += verdicts
        return verdicts

    def uncut(self, images: Tensor) -> bool:
        """Whether any of some images ``[B, H, W, C]`` is flagged; what they are cut out of is filled then."""
        first = len(self.verdicts)
        verdicts = self.decide(self._loaded.score(images, node_id=self._node_id))
        for index, verdict in enumerate(verdicts, start=first):
            if verdict.flagged:
                self._told[index] = {"redacted": "fill, for what it was cut out of", "verified": False}
        return any(verdict.flagged for verdict in verdicts)

    def trace(self, where: str) -> Any:
        """Leave a trace if anything was flagged; what the history keeps of it, if so."""
        if not self.flagged:
            return None
        kind = self._action.kind
        audit = self.settings.audit
        return enforce_trace.leave(self.verdicts, self._told, self._policy, kind, where=where, audit=audit)

    def _at(self, value: Any, depth: int) -> Any:
        if isinstance(value, ExecutionBlocker) or _is_sound(value) or (not self._strict and _passes_at_source(value)):
            return value
        if _is_latent(value):
            raise ImageError("The value is a LATENT, which cannot be looked at; expected an IMAGE: decode it before.")
        if hasattr(value, "get_components"):
            return self._video(value)
        batch = isinstance(value, Tensor) and value.ndim >= 2 and not _is_one_picture(value)
        if batch and (self._strict or _is_image(value)):
            return self._tensor(value)
        if _is_mesh(value):
            return self._mesh(value)
        if is_model_file(value):
            return look_at_model(value, lambda picture: self._leaf(picture, Place("texture")))
        if type(value) in (list, tuple, dict) and depth < 8 and not is_pictures(value) and not _is_numbers(value):
            return self._items(value, depth + 1)
        return walk(value, self._leaf, name="value")

    def _items(self, value: Any, depth: int) -> Any:
        items = value if isinstance(value, dict) else dict(enumerate(value))
        if any(self._at(key, depth) is not key for key in items):
            raise ImageError("A dict has a key that is flagged, and cannot be redacted; expected a name.")
        made = {key: self._at(item, depth) for key, item in items.items()}
        if all(made[key] is item for key, item in items.items()):
            return value
        return made if isinstance(value, dict) else type(value)(made.values())

    def _leaf(self, leaf: Any, place: Place) -> Any:
        if not self._strict and (
            isinstance(leaf, (str, bytes, bytearray, memoryview)) or (is_array(leaf) and not layouts(leaf, place.text))
        ):
            return leaf
        return look_at(leaf, self._check, place.text)

    def _check(self, pictures: Any) -> Any:
        """Look at pictures as ``nsfw_guard.leaves`` has them; the same, or with redacted ones in their places."""
        given = pictures.reshape(-1, *pictures.shape[-3:]) if isinstance(pictures, Tensor) else pictures
        batch = read_images(given, clamp=True, stretch=True)
        scores = self._loaded.look(batch)
        first = len(self.verdicts)
        verdicts = self.decide(scores)
        if not any(verdict.flagged for verdict in verdicts):
            return pictures
        chosen = redact_flagged(batch, verdicts, self._action.redaction, scores.judge(self._policy))
        for index, step in chosen.chosen.items():
            self._told[first + index] = redaction.told(step, verified=True)
        done = batch.replace(chosen)
        return done.reshape(pictures.shape) if isinstance(pictures, Tensor) else done

    def _tensor(self, value: Tensor) -> Any:
        """An IMAGE or a MASK, which can hold a picture too, in [0, 1]."""
        images = value[..., None] if value.ndim == 3 else value[None, ..., None] if value.ndim == 2 else value
        scores = self._loaded.score(images, node_id=self._node_id)
        first = len(self.verdicts)
        verdicts = self.decide(scores)
        shown = redaction.redacted(images, verdicts, self._action, scores.judge(self._policy))
        self._told.update({first + index: words for index, words in shown.told().items()})
        # Values outside of [0, 1] would bring back, in the nodes and files that keep them, what nobody has seen.
        inside = redaction.clamped(shown.images)
        made = value if inside is images else inside.reshape(value.shape)
        # Three or four masks may be one picture, its colours first.
        colours = self._strict and value.ndim == 3 and len(value) in (3, 4)
        return self._leaf(made, Place("value")) if colours else made

    def _video(self, value: Any) -> Any:
        decided = decide_video(value, self.settings.sensitivity, self._loaded, None, node_id=self._node_id)
        first = len(self.verdicts)
        self.verdicts += [verdict for verdict in decided.verdicts if verdict is not None]
        made, became = redact_video(decided, self._action, rebuild=True)
        for (start, stop), step in zip(decided.runs, became, strict=False):
            self._told.update({first + frame: redaction.told(step, verified=True) for frame in range(start, stop)})
        return made

    def _mesh(self, value: Any) -> Any:
        if getattr(value, "vertex_colors", None) is not None and self._strict:
            raise ImageError("The MESH has colours at its vertices, which cannot be looked at; expected a texture.")
        texture = value.texture if getattr(value, "texture", None) is None else self._at(value.texture, 1)
        if texture is value.texture:
            return value
        made = copy.copy(value)
        made.texture = texture
        return made


def filled(value: Any) -> Any:
    """Return what a value is when nothing of it may be seen.

    Raises:
        ImageError: It is no picture that could be filled.
    """
    if value is None or isinstance(value, (bool, int, float, ExecutionBlocker)):
        return value
    if isinstance(value, Tensor):
        made = torch.zeros_like(value)
        if value.ndim == 4 and value.shape[-1] == 4:
            made[..., 3] = 1
        return made
    if type(value) in (list, tuple):
        return type(value)(filled(item) for item in value)
    raise ImageError(f"A {type(value).__name__} that was made of a flagged latent is held back.")


def _is_sound(value: Any) -> bool:
    if not (isinstance(value, Mapping) and set(value) == {"waveform", "sample_rate"}):
        return False
    waveform = value["waveform"]
    sound = isinstance(waveform, Tensor) and waveform.ndim == 3 and waveform.shape[1] <= _MOST_SOUND_CHANNELS
    return sound and isinstance(value["sample_rate"], (int, float))


def _is_latent(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("samples"), Tensor)


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(
        isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[1], dict) for item in value
    )


def _passes_at_source(value: Any) -> bool:
    """What may come out of a wildcard beside pictures: models, latents and other things that no output shows."""
    if _is_latent(value) or _is_conditioning(value):
        return True
    pictures = (Tensor, np.ndarray, Image.Image, list, tuple, dict)
    return not (isinstance(value, pictures) or hasattr(value, "get_components") or _is_mesh(value))


def _is_image(value: Tensor) -> bool:
    shaped = value.ndim in (2, 3) or (value.ndim == 4 and value.shape[-1] in (1, 3, 4))
    return shaped and value.is_floating_point() and value.numel() > 0


def _is_one_picture(value: Tensor) -> bool:
    """Whether three dimensions are those of one picture, its colours last, rather than of masks."""
    return value.ndim == 3 and value.shape[-1] in (1, 3, 4) and min(value.shape[:2]) >= 8


def _is_mesh(value: Any) -> bool:
    return type(value).__name__ == "MESH" and hasattr(value, "vertices") and hasattr(value, "faces")


def _is_numbers(value: Any) -> bool:
    """Whether a list is rows of numbers, of which long ones are arrays."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_numbers, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)
