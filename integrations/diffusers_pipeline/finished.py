"""Looking at finished output of any kind: what a pipeline returns without having handed it to the guard before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsfw_guard.errors import ImageError
from nsfw_guard.verdict import Verdict

from .checks import Range, check_images
from .clips import check_clip
from .record import Passed, Record


def check_any(
    images: Any,
    record: Record,
    *,
    clips: bool,
    value_range: Range,
    sure: bool = True,
    before: Sequence[Verdict] = (),
) -> tuple[Any, list[Passed]]:
    """Check finished output of any kind: what a pipeline returns without having handed it to the guard before.

    Args:
        images: PIL images, clips of them, arrays or tensors, one item or many.
        record: Of the call.
        clips: Whether a flat list of pictures, or a 4-D array, is one clip.
        value_range: Of arrays and tensors, as far as it is known; see ``_ranges_of``.
        sure: Whether (-1, 1) is what the pipeline's class is known for.
        before: What was decided earlier in the call.

    Returns:
        The same, redacted; one entry per item.

    Raises:
        ImageError: It is none of these.
    """
    also: tuple[Range, ...] = ()

    def of_clips(items: Any) -> tuple[list[Any], list[Passed]]:
        checked = [check_clip(item, record, value_range=value_range, also=also, before=before) for item in items]
        return [clip for clip, _ in checked], [passed for _, passed in checked]

    if isinstance(images, Image.Image):
        (image,), passed = check_images([images], record, value_range=value_range, before=before)
        return image, passed
    if isinstance(images, (list, tuple)):
        kind: Callable[[Any], Any] = list if isinstance(images, list) else tuple
        if images and all(isinstance(item, (list, tuple)) for item in images):
            done, passed = of_clips([list(item) for item in images])
            return kind(done), passed
        if clips and images and all(isinstance(item, Image.Image) for item in images):
            clip, one = check_clip(list(images), record, value_range=value_range, before=before)
            return kind(clip), [one]
        if all(isinstance(item, Image.Image) for item in images):
            done, passed = check_images(list(images), record, value_range=value_range, before=before)
            return kind(done), passed
        parts = [
            check_any(item, record, clips=clips, value_range=value_range, sure=sure, before=before) for item in images
        ]
        return kind(part for part, _ in parts), [entry for _, passed in parts for entry in passed]
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim in (3, 4, 5):
        value_range, *others = _ranges_of(images, value_range, sure=sure)
        also = tuple(others)
        if images.ndim == 5:
            given = list(images)
            done, passed = of_clips(given)
            if all(one is other for one, other in zip(done, given, strict=True)):
                return images, passed
            return (torch.stack(done) if isinstance(images, Tensor) else np.stack(done)), passed
        if images.ndim == 4 and clips:
            clip, one = check_clip(images, record, value_range=value_range, also=also, before=before)
            return clip, [one]
        if images.ndim == 4:
            return check_images(images, record, value_range=value_range, also=also, before=before)
        if images.ndim == 3:
            done, passed = check_images(images[None], record, value_range=value_range, also=also, before=before)
            return (done[0] if passed[0].verdict.flagged else images), passed
    described = f"a {type(images).__name__}" + (f" of shape {tuple(images.shape)}" if hasattr(images, "shape") else "")
    raise ImageError(
        f"The pipeline returned {described}, which cannot be checked; expected images or clips as PIL, NumPy or "
        'tensors. Ask it for output_type="pil".'
    )


def _ranges_of(images: Any, value_range: Range, *, sure: bool) -> list[Range]:
    """Return the ranges in which finished arrays and tensors may be meant, the likeliest first: all are looked at.

    What is redacted is written in the first. ``output_type`` "np" and "pt" are in [0, 1] by diffusers' convention, but
    for a few classes that return [-1, 1]. So of values that are nowhere below 0 only [0, 1] is looked at: in [-1, 1]
    they are the same picture at half its contrast. Values below 0 may be either, and so may anything of a class that
    is made of one of those few. Values up to 1.5 are clamped, as on a screen, and looked at from least to greatest too.

    Raises:
        ImageError: They are no images in [0, 1] or [-1, 1]; latents, for example.
    """
    channels = images.shape[-3] if isinstance(images, Tensor) else images.shape[-1]
    if channels not in (1, 3):
        raise ImageError(
            f"The pipeline returned a {type(images).__name__} of shape {tuple(images.shape)}: {channels} channels, "
            'which cannot be checked; expected images of 1 or 3. Ask it for output_type="pil".'
        )
    floating = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
    low, high = _extent_of(images) if floating else (0.0, 1.0)
    if high > 1.5 and value_range == (0, 1):
        raise ImageError(
            f"The pipeline returned values from {low:.4g} to {high:.4g}, which cannot be checked; expected [0, 1]. "
            'Ask it for output_type="pil".'
        )
    if value_range == (-1, 1):
        return [(-1, 1)] if sure and low < 0 else [(-1, 1), (0, 1)]
    if low >= 0:
        return [(0, 1)]
    return [(-1, 1), (0, 1)] if low < -0.05 else [(0, 1), (-1, 1)]


def _extent_of(images: Any) -> tuple[float, float]:
    """The least and the greatest of the finite values; what holds others is flagged whatever its range."""
    if not math.prod(images.shape):
        return 0.0, 1.0
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(high - low):
        finite = images[torch.isfinite(images) if isinstance(images, Tensor) else np.isfinite(images)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, high
