"""Images of one size in a tensor or array: what their numbers mean, and how redacted pixels are written back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError
from ..placement import constant
from .frames import Frames
from .stretched import stretches

# Rounding in a caller's own arithmetic; what is further out is another range, or unclamped.
TOLERANCE = 1e-3
# Frames up to this many pixels in all are converted together: on a CPU what fits its cache.
_CPU_PIXELS = 2**20
_DEVICE_PIXELS = 2**26
# What is converted as late as can be; other dtypes (float64, float8) at once.
_STORED = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"


@dataclass(frozen=True)
class Reading:
    """What the numbers of a tensor or array mean.

    Attributes:
        span: ``(0, 1)`` or ``(-1, 1)``, the range of floating-point values.
        also: Other ranges in which they may be meant: each is looked at.
        clamp: Whether values outside the range are clamped rather than refused.
        stretch: Whether what leaves the range, or is faint in it, is looked at from its least to its greatest value.
        alpha: Whether a fourth channel is alpha; otherwise channels beyond the third are a host's own.
        written: The range in which redacted pixels are written back.
    """

    span: tuple[int, int] = (0, 1)
    also: tuple[tuple[int, int], ...] = ()
    clamp: bool = False
    stretch: bool = False
    alpha: bool = True
    written: tuple[int, int] = (0, 1)

    @property
    def channels(self) -> tuple[int, ...]:
        """How many channels an image may have."""
        return (1, 3, 4) if self.alpha else (1, 3, 4, 6)  # LDM3D hands over RGB with one or three channels of depth


class Stack:
    """Images of one size in one tensor or NumPy array.

    Args:
        original: The caller's object.
        data: The same numbers as a tensor ``[B, C, H, W]``.
        reading: What they mean.
        masked: Of a masked array: where something is masked, ``[B, 1, H, W]``.
    """

    def __init__(self, original: Any, data: Tensor, reading: Reading, *, masked: Tensor | None = None) -> None:
        self.original = original
        self.data = data
        self.device = None if isinstance(original, np.ndarray) else data.device
        self.count = len(data)
        self.owners = list(range(self.count))
        self._reading = reading
        self._masked = masked
        self._layered = masked is not None or (data.shape[1] == 4 and reading.alpha)

    def shown(self, image: int) -> int:
        """How many frames of an image come back: one."""
        return 1

    @property
    def at_once(self) -> int:
        """How many frames are converted together: what that takes is bounded, whatever the batch."""
        on_cpu = self.data.device.type == "cpu"
        if self._reading.stretch or (on_cpu and self._layered):
            return 1  # how many looks there are differs from frame to frame
        return max(1, (_CPU_PIXELS if on_cpu else _DEVICE_PIXELS) // self.data[0, 0].numel())

    def stored(self, start: int, stop: int) -> Frames:
        """Return a slice of the frames, transparent ones over white."""
        return self._looks_as(self._raw(start, stop), self._reading.span, self._alpha_of(start, stop))[0]

    def looks(self, start: int, stop: int, size: int = 0) -> tuple[Frames, ...]:
        """Return the looks at a slice of the frames; see ``ImageBatch.looks``."""
        raw, alpha = self._raw(start, stop), self._alpha_of(start, stop)
        looks = self._looks_as(raw, self._reading.span, alpha)
        if raw.dtype == torch.uint8:
            return tuple(looks)
        for span in self._reading.also:
            looks += self._looks_as(raw, span, alpha)
        if self._reading.stretch:
            looks += self._stretched(raw, alpha, looks)
        return tuple(looks)

    def _raw(self, start: int, stop: int) -> Tensor:
        raw = self.data[start:stop].detach()
        return raw if raw.dtype in _STORED else raw.to(torch.float32)

    def _alpha_of(self, start: int, stop: int) -> Tensor | None:
        return None if self._masked is None else 1 - self._masked[start:stop].to(torch.float32)

    def _looks_as(self, raw: Tensor, span: tuple[int, int], alpha: Tensor | None) -> list[Frames]:
        """Return the looks by one reading: the first over white, and, unless it is opaque, alone and over black."""
        shift, scale = (0, 255) if raw.dtype == torch.uint8 else (1, 2) if span == (-1, 1) else (0, 1)
        alone = Frames(raw[:, :3], shift, scale, raw if raw.shape[1] > 3 else None)
        if not self._layered:
            return [alone]
        values = (raw.to(torch.float32) + shift) / scale
        inside = values.clamp(0, 1)
        color = inside[:, :3]
        if raw.shape[1] == 4 and self._reading.alpha:
            alpha = inside[:, 3:] if alpha is None else inside[:, 3:] * alpha
        if alpha is None:
            return [alone]
        # On a GPU asking would make the host wait.
        if raw.device.type == "cpu" and bool((alpha >= 1).all()):
            return [alone]
        black = color * alpha
        return [Frames(black + (1 - alpha), measured=values), alone, Frames(black)]

    def _stretched(self, raw: Tensor, alpha: Tensor | None, looks: list[Frames]) -> list[Frames]:
        """Return what comes of the frames when somebody stretches them: of what leaves the range, of faint looks."""
        values = raw.to(torch.float32)
        color, further = values[:, :3], values[:, 3:]
        low, high = Frames(color).extent().T
        outside = (low < self._reading.span[0]) | (high > 1)
        found: list[Frames] = []
        if bool(outside.any()):
            for stretched in stretches(color, outside):
                found += self._looks_as(torch.cat([stretched, further], dim=1), (0, 1), alpha)
        return found + [Frames(stretched) for look in looks for stretched in stretches(look.pixels())]

    def refuse(self, low: float, high: float, name: str) -> None:
        """Raise the error for values outside the range, unless they are to be clamped."""
        if self._reading.clamp:
            return
        signed = self._reading.span == (-1, 1)
        if signed:
            low, high = 2 * low - 1, 2 * high - 1
        if not signed and low >= -1 - 2 * TOLERANCE and high <= 1 + TOLERANCE:
            advice = "If they are in [-1, 1], as a VAE gives them, pass value_range=(-1, 1)."
        elif low >= 0 and high > 2:
            advice = "If they are 0 to 255, pass a uint8 array, or divide by 255."
        else:
            advice = "If they are meant to be in the range, pass images.clamp(...) of your choice."
        expected = "[-1, 1]" if signed else "[0, 1]"
        raise ImageError(f"{name} has values from {low:.4g} to {high:.4g}; expected {expected}. {advice}")

    def as_written(self, pixels: Tensor, image: int) -> Tensor:
        """Bring redacted RGB in [0, 1] into the dtype, range and channels of the image that it replaces; opaque."""
        old = self.data[image]
        pixels = pixels.to(old.device, torch.float32)
        opaque, channels = 1.0, len(old)
        if channels == 1:
            pixels = (pixels * constant(_LUMA, pixels.device).view(3, 1, 1)).sum(0, keepdim=True)
        if old.dtype == torch.uint8:
            pixels, opaque = (pixels * 255).round(), 255.0
        elif self._reading.written == (-1, 1):
            pixels = pixels * 2 - 1
        if channels > 3:
            # A silhouette in the alpha shows what was taken away, and so does a host's depth.
            further = pixels.new_full((channels - 3, *pixels.shape[1:]), opaque if self._reading.alpha else 0.0)
            pixels = torch.cat([pixels, further])
        return pixels.to(old.dtype)

    def seen(self, candidates: list[Tensor], image: int) -> tuple[Frames, ...]:
        """Return the looks at some redacted pixels, each ``[3, h, w]``, as they would be written for an image."""
        written = torch.stack([self.as_written(pixels, image) for pixels in candidates])
        # The other ways in which what is written may be read stay.
        again = Stack(written, written, replace(self._reading, span=self._reading.written))
        return again.looks(0, len(written))

    def replace(self, redacted: Mapping[int, list[Tensor]]) -> Any:
        """Return a copy with some images' pixels replaced; see ``ImageBatch.replace``."""
        copy = torch.empty_like(self.data)
        for index, image in enumerate(self.data.detach()):
            copy[index] = self.as_written(redacted[index][0], index) if index in redacted else image
        single = self.original.ndim == 3
        if isinstance(self.original, np.ndarray):
            array = copy.movedim(1, -1).numpy().astype(self.original.dtype, copy=False)
            return _as_array_of(self.original, array[0] if single else array, redacted)
        made = copy[0] if single else copy
        return made if type(self.original) is Tensor else made.as_subclass(type(self.original))


def _as_array_of(original: Any, array: np.ndarray[Any, Any], redacted: Mapping[int, Any]) -> np.ndarray[Any, Any]:
    """Return an array of the caller's own kind; what is redacted is masked nowhere."""
    if not isinstance(original, np.ma.MaskedArray):
        return array
    mask = np.ma.getmaskarray(original).copy()
    for index in redacted:
        mask[index if array.ndim == 4 else slice(None)] = False
    return np.ma.MaskedArray(array, mask=mask, fill_value=original.fill_value)
