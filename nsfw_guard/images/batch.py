"""The image contract, and the converters at the edge.

Inside, images are float32 tensors ``[B, 3, H, W]``, RGB, in [0, 1], on any device. ``read_images`` takes what callers
have and gives an ``ImageBatch``, which converts lazily, a few images at a time, and puts redacted pixels back in the
caller's own type, shape, dtype, device, range and channels. It never writes to the caller's data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from ..placement import constant
from .frames import Frames
from .pictures import Picture

# Rounding in a caller's own arithmetic; what is further out is another range, or unclamped.
TOLERANCE = 1e-3
# Frames up to this many pixels in all are converted together: on a CPU what fits its cache.
_CPU_PIXELS = 2**20
_DEVICE_PIXELS = 2**26
# What is converted as late as can be; other dtypes (float64, float8) at once.
_STORED = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"

_EXPECTED = (
    "a torch tensor [B, C, H, W] or [C, H, W], a NumPy array [B, H, W, C] or [H, W, C], a PIL image, a file path, "
    "encoded bytes, or a list of single images of these kinds"
)


class ImageBatch:
    """What a caller handed in, seen through the contract.

    A frame is what is classified. An image is one frame, or several if it is an animated picture.

    Attributes:
        owners: For each frame, the index of its image.
        device: Where the caller's first tensor is; ``None`` if there is none.
    """

    def __init__(self, original: Any, items: list[Stack | Picture]) -> None:
        self._original = original
        self._items = items
        self._count = 0
        self.owners: list[int] = []
        self._places: list[tuple[int, int]] = []  # frame → (item, frame within the item)
        for index, item in enumerate(items):
            self._places += [(index, frame) for frame in range(len(item.owners))]
            self.owners += [self._count + owner for owner in item.owners]
            self._count += item.count
        self.device = next((item.device for item in items if item.device is not None), None)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    def stored(self, start: int, stop: int) -> Iterator[Frames]:
        """Yield the frames ``start`` to ``stop`` as they are stored, as many of one stack together as are small."""
        while start < stop:
            index, first = self._places[start]
            item = self._items[index]
            count = min(stop - start, len(item.owners) - first, item.at_once)
            yield item.stored(first, first + count)
            start += count

    def frames(self, image: int) -> Iterator[Tensor]:
        """Convert one image: yield the pixels ``[3, H, W]`` of each of its frames."""
        first = self.owners.index(image)
        for frame in range(first, first + self.owners.count(image)):
            for stored in self.stored(frame, frame + 1):
                yield stored.pixels()[0]

    def refuse_out_of_range(self, extents: list[list[float]]) -> None:
        """Raise for the first frame with values outside the declared range; non-finite values are no matter of range.

        Args:
            extents: For each frame, its ``Frames.extent``.

        Raises:
            ImageError: With the values, what was expected, and what to type.
        """
        for (low, high), image, (index, _) in zip(extents, self.owners, self._places, strict=True):
            if math.isfinite(low) and math.isfinite(high) and (low < -TOLERANCE or high > 1 + TOLERANCE):
                self._items[index].refuse(low, high, f"images[{image}]")

    def replace(self, redacted: Mapping[int, list[Tensor]]) -> Any:
        """Return what the caller handed in, with the pixels of some images replaced.

        Args:
            redacted: Image index → its frames, each ``[3, H, W]``, floating point, in [0, 1].

        Returns:
            The caller's own object if nothing is replaced; otherwise a new one, every other image bit-identical.
        """
        if not redacted:
            return self._original
        if not isinstance(self._original, (list, tuple)):
            return self._items[0].replace(redacted)
        images = [
            item.replace({0: redacted[index]}) if index in redacted else item.original
            for index, item in enumerate(self._items)
        ]
        return tuple(images) if isinstance(self._original, tuple) else images


class Stack:
    """Images of one size in one tensor or NumPy array.

    Args:
        original: The caller's object.
        data: The same numbers as a tensor ``[B, C, H, W]``.
        span: ``(0, 1)`` or ``(-1, 1)``, the range of floating-point values.
        clamp: Whether values outside the range are clamped rather than refused.
        alpha: Whether a fourth channel is alpha; otherwise channels beyond the third are a host's own.
        written_span: The range in which redacted pixels are written back.
    """

    def __init__(
        self,
        original: Any,
        data: Tensor,
        *,
        span: tuple[int, int],
        clamp: bool,
        alpha: bool,
        written_span: tuple[int, int],
    ) -> None:
        self.original = original
        self.data = data
        self.device = None if isinstance(original, np.ndarray) else data.device
        self.count = len(data)
        self.owners = list(range(self.count))
        self._span = span
        self._clamp = clamp
        self._alpha = alpha
        self._written_span = written_span

    @property
    def at_once(self) -> int:
        """How many frames are converted together: what that takes is bounded, whatever the batch."""
        limit = _CPU_PIXELS if self.data.device.type == "cpu" else _DEVICE_PIXELS
        return max(1, limit // self.data[0, 0].numel())

    def stored(self, start: int, stop: int) -> Frames:
        """Return a slice of the frames."""
        raw = self.data[start:stop].detach()
        if raw.dtype not in _STORED:
            raw = raw.to(torch.float32)
        if raw.dtype == torch.uint8:
            shift, scale = 0, 255
        else:
            shift, scale = (1, 2) if self._span == (-1, 1) else (0, 1)
        if raw.shape[1] == 4 and self._alpha:
            values = (raw.to(torch.float32) + shift) / scale
            opaque = values.clamp(0, 1)
            composed = opaque[:, :3] * opaque[:, 3:] + (1 - opaque[:, 3:])
            return Frames(composed, measured=values)
        return Frames(raw[:, :3], shift, scale, raw if raw.shape[1] > 3 else None)

    def refuse(self, low: float, high: float, name: str) -> None:
        """Raise the error for values outside the range, unless they are to be clamped."""
        if self._clamp:
            return
        signed = self._span == (-1, 1)
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

    def replace(self, redacted: Mapping[int, list[Tensor]]) -> Any:
        """Return a copy with some images' pixels replaced; see ``ImageBatch.replace``."""
        copy = torch.empty_like(self.data)
        for index, image in enumerate(self.data.detach()):
            copy[index] = self._as_written(redacted[index][0], image) if index in redacted else image
        if isinstance(self.original, np.ndarray):
            array = copy.movedim(1, -1).numpy()
            return array if self.original.ndim == 4 else array[0]
        return copy if self.original.ndim == 4 else copy[0]

    def _as_written(self, pixels: Tensor, old: Tensor) -> Tensor:
        """Bring redacted RGB in [0, 1] into the dtype, range and channels of the image that it replaces."""
        pixels = pixels.to(old.device, torch.float32)
        if len(old) == 1:
            pixels = (pixels * constant(_LUMA, pixels.device).view(3, 1, 1)).sum(0, keepdim=True)
        if old.dtype == torch.uint8:
            pixels = (pixels * 255).round()
        elif self._written_span == (-1, 1):
            pixels = pixels * 2 - 1
        pixels = pixels.to(old.dtype)
        if len(old) <= 3:
            return pixels
        # A host's further channels (depth) show the shape of what was flagged: they are emptied. Alpha is kept.
        return torch.cat([pixels, old[3:] if self._alpha else torch.zeros_like(old[3:])])


def read_images(
    images: Any,
    *,
    value_range: tuple[float, float] = (0, 1),
    clamp: bool = False,
    alpha: bool = True,
    written_range: tuple[float, float] | None = None,
) -> ImageBatch:
    """See a caller's images through the contract; nothing is converted yet.

    Args:
        images: A tensor ``[B, C, H, W]`` or ``[C, H, W]``; a NumPy array ``[B, H, W, C]`` or ``[H, W, C]``; a PIL
            image; a file path (``str`` or ``Path``); encoded bytes; or a list or tuple of single images of any of these
            kinds. C is 1 (gray), 3 (RGB) or 4 (RGBA). Floating point or uint8. What has been read is handed on as it
            is.
        value_range: ``(0, 1)`` or ``(-1, 1)``: what floating-point values mean. uint8 is always 0 to 255.
        clamp: Clamp values outside the range, in a copy, instead of refusing them. For hosts that hand over raw output.
        alpha: Whether a fourth channel is alpha; otherwise any channels beyond the third are a host's own.
        written_range: The range of redacted pixels, if it is another than ``value_range``.

    Returns:
        The batch. Paths and bytes come back from it as PIL images, everything else as what it was.

    Raises:
        ImageError: A type, shape, dtype, layout, range or file that is none of the above.
    """
    if isinstance(images, ImageBatch):
        return images
    options: dict[str, Any] = {
        "span": _span(value_range),
        "clamp": clamp,
        "alpha": alpha,
        "written_span": _span(value_range if written_range is None else written_range),
    }
    if isinstance(images, (list, tuple)):
        items = [_item(image, f"images[{i}]", options, listed=True) for i, image in enumerate(images)]
        if all(item.original is image for item, image in zip(items, images, strict=True)):
            return ImageBatch(images, items)
        return ImageBatch(type(images)(item.original for item in items), items)  # paths and bytes became pictures
    item = _item(images, "images", options, listed=False)
    return ImageBatch(item.original, [item])


def _item(image: Any, name: str, options: dict[str, Any], *, listed: bool) -> Stack | Picture:
    if isinstance(image, torch.Tensor):
        return _tensor_stack(image, name, options, listed=listed)
    if isinstance(image, np.ndarray):
        return _array_stack(image, name, options, listed=listed)
    if isinstance(image, (Image.Image, str, Path, bytes, bytearray, memoryview)):
        return Picture.read(image, name)
    raise ImageError(f"{name} is a {type(image).__name__}; expected {_EXPECTED}.")


def _tensor_stack(tensor: Tensor, name: str, options: dict[str, Any], *, listed: bool) -> Stack:
    shape = tuple(tensor.shape)
    if tensor.device.type == "meta":
        raise ImageError(f"{name} is on the meta device and holds no pixels; expected a tensor with data.")
    if tensor.layout != torch.strided:
        raise ImageError(f"{name} has the layout {tensor.layout}; expected a dense tensor: call .to_dense().")
    _check_dtype(tensor.dtype.is_floating_point or tensor.dtype == torch.uint8, tensor.dtype, name)
    _check_rank(tensor.ndim, shape, name, "[B, C, H, W]", "[C, H, W]", listed=listed)
    if shape[-3] not in _channels(options):
        advice = " It looks like channels last: pass images.movedim(-1, -3)." if shape[-1] in (1, 3, 4) else ""
        raise ImageError(_wrong_channels(name, shape, shape[-3], options) + advice)
    _check_sides(shape[-2], shape[-1], shape, name)
    return Stack(tensor, tensor if tensor.ndim == 4 else tensor[None], **options)


def _array_stack(array: np.ndarray[Any, Any], name: str, options: dict[str, Any], *, listed: bool) -> Stack:
    shape = array.shape
    _check_dtype(array.dtype.kind == "f" and array.dtype.itemsize <= 8 or array.dtype == np.uint8, array.dtype, name)
    _check_rank(array.ndim, shape, name, "[B, H, W, C]", "[H, W, C]", listed=listed)
    if shape[-1] not in _channels(options):
        advice = " It looks like channels first: pass numpy.moveaxis(images, -3, -1)." if shape[-3] in (1, 3, 4) else ""
        raise ImageError(_wrong_channels(name, shape, shape[-1], options) + advice)
    _check_sides(shape[-3], shape[-2], shape, name)
    readable = array
    # torch shares memory only with writable, native-endian arrays of positive strides; others are copied to be read.
    if not readable.flags.writeable or not readable.dtype.isnative or any(s < 0 for s in readable.strides):
        readable = np.array(readable, dtype=readable.dtype.newbyteorder("="))
    data = torch.from_numpy(readable).movedim(-1, -3)
    return Stack(array, data if array.ndim == 4 else data[None], **options)


def _channels(options: dict[str, Any]) -> tuple[int, ...]:
    # LDM3D hands over RGB with one or three channels of depth.
    return (1, 3, 4) if options["alpha"] else (1, 3, 4, 6)


def _wrong_channels(name: str, shape: tuple[int, ...], given: int, options: dict[str, Any]) -> str:
    expected = ", ".join(map(str, _channels(options)))
    return f"{name} has {given} channels (shape {shape}); expected {expected}: gray, RGB or RGBA."


def _check_dtype(ok: bool, dtype: object, name: str) -> None:
    if not ok:
        raise ImageError(
            f"{name} has the dtype {dtype}; expected floating point or uint8. For integers from 0 to 255, "
            "convert to uint8."
        )


def _check_rank(rank: int, shape: tuple[int, ...], name: str, batch: str, single: str, *, listed: bool) -> None:
    expected = (3,) if listed else (3, 4)
    if rank not in expected:
        kinds = f"{single}, one image per list entry" if listed else f"{batch} or {single}"
        raise ImageError(f"{name} has {rank} dimensions (shape {shape}); expected {kinds}.")


def _check_sides(height: int, width: int, shape: tuple[int, ...], name: str) -> None:
    if height == 0 or width == 0:
        raise ImageError(f"{name} has no pixels (shape {shape}); expected a height and a width of at least 1.")


def _span(value_range: Any) -> tuple[int, int]:
    for span in ((0, 1), (-1, 1)):
        if isinstance(value_range, (tuple, list)) and tuple(value_range) == span:
            return span
    raise ImageError(f"value_range is {value_range!r}; expected (0, 1) or (-1, 1).")
