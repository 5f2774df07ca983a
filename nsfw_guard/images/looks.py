"""The looks at a picture: what people see of a frame, in every ordinary way to show it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from .color import Coding, as_shown, differ
from .keys import alpha_of_key

_OPAQUE = 255


class Colors(NamedTuple):
    """What a file says of its colours, and where to say what of that is refused.

    Attributes:
        profile: Its ICC profile.
        coding: What it says besides, which counts before.
        warnings: Takes what is refused.
    """

    profile: bytes | None
    coding: Coding | None
    warnings: list[str]


def looks_at(frame: Image.Image, name: str, colors: Colors | None = None) -> list[Tensor]:
    """Return the looks at an upright frame, each ``[1, H, W]`` or ``[3, H, W]``, uint8 or float32 in [0, 1].

    They are all combinations of what its numbers may mean, its colours as stored and as shown, where that differs
    visibly, and, unless it is opaque, its transparency: over white, alone, over black.

    Args:
        frame: The frame.
        name: What errors call it.
        colors: What the file says of its colours.

    Raises:
        ImageError: Numbers whose range is unknown.
    """
    looks: list[Tensor] = []
    for stored, alpha, picture in _readings(frame, name):
        renditions = [stored]
        if colors is not None and (colors.profile or colors.coding):
            shown, warning = as_shown(picture, profile=colors.profile, coding=colors.coding)
            if warning is not None and warning not in colors.warnings:
                colors.warnings.append(warning)
            if shown is not None and differ(_levels(stored), pixels := _pixels(shown)):
                renditions.append(pixels)
        looks += renditions if alpha is None else [look for one in renditions for look in _over(one, alpha)]
    return looks


def stored_look(frame: Image.Image, name: str) -> Tensor:
    """Return the first of ``looks_at``: the colours as stored, over white."""
    stored, alpha, _ = _readings(frame, name)[0]
    return stored if alpha is None else _over(stored, alpha)[0]


def is_layered(frame: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere."""
    return frame.has_transparency_data or frame.mode in ("La", "RGBa", "PA", "RGBX")


def with_alpha(frame: Image.Image) -> Image.Image:
    """Return a picture with transparency as RGBA."""
    if frame.mode == "RGBX":  # what some take for padding, others take for alpha
        return Image.frombytes("RGBA", frame.size, frame.tobytes())
    if frame.mode == "La":
        frame = frame.convert("LA")
    return frame if frame.mode == "RGBA" else frame.convert("RGBA")


def _readings(frame: Image.Image, name: str) -> list[tuple[Tensor, NDArray[Any] | None, Image.Image]]:
    """Return what the numbers of a frame may mean: its colours, its alpha ``[H, W]`` unless opaque, and a picture."""
    if frame.mode.startswith("I"):
        alpha = alpha_of_key(frame)
        return [(one, alpha, Image.fromarray(_levels(one)[0].numpy())) for one in _of_16_bits(frame, name)]
    if not is_layered(frame):
        return [(_pixels(frame), None, frame)]
    stored = frame
    frame = with_alpha(frame)
    layered = np.array(frame)
    alpha = layered[..., 3]
    colors = torch.from_numpy(layered[..., :3].copy()).movedim(-1, 0)
    readings = [(colors, None if alpha.min() == _OPAQUE else alpha, frame)]
    if (
        stored.mode in ("RGBa", "La") and readings[0][1] is not None
    ):  # some lay premultiplied colours over others without a look at the alpha
        levels = torch.from_numpy(np.array(stored)).movedim(-1, 0)[:-1]
        added = levels.expand(3, -1, -1)
        readings.append((added, None, Image.fromarray(added.movedim(0, -1).contiguous().numpy())))
    return readings


def _of_16_bits(frame: Image.Image, name: str) -> list[Tensor]:
    """Return what gray in more than 8 bits may mean, ``[1, H, W]`` each; the most likely comes first."""
    values = torch.from_numpy(np.asarray(frame).astype(np.float32))[None]
    low, high = float(values.min()), float(values.max())
    if frame.format is None and (low < 0 or high > 65535):
        raise ImageError(f"{name} has the mode {frame.mode} and values outside 0 to 65535; expected 16-bit gray.")
    # Viewers take 16 bits, or the values that there are; Pillow's own conversion, and so most scripts, clips at 255.
    readings = [(values / 65535).clamp(0, 1), (values / 255).clamp(0, 1)]
    if high <= 255:
        readings.reverse()
    if high > low:
        readings.append((values - low) / (high - low))
    kept: list[Tensor] = []
    for one in readings:
        if not any(torch.equal(one, other) for other in kept):
            kept.append(one)
    return kept


def _over(colors: Tensor, alpha: NDArray[Any]) -> list[Tensor]:
    """Return colours over white, alone, and over black."""
    opacity = torch.from_numpy(alpha.astype(np.int32))
    black = _levels(colors).to(torch.int32) * opacity
    white = black + 255 * (_OPAQUE - opacity)
    return [((white + 127) // 255).to(torch.uint8), colors, ((black + 127) // 255).to(torch.uint8)]


def _levels(pixels: Tensor) -> Tensor:
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))).movedim(-1, 0)
