"""The image contract, and the converters at the edge.

Inside, images are float32 tensors ``[B, 3, H, W]``, RGB, in [0, 1], on any device. ``read_images`` takes what callers
have and gives an ``ImageBatch``, which converts lazily, a few images at a time, and puts redacted pixels back in the
caller's own type, shape, dtype, device, range and channels. It never writes to the caller's data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from .frames import Frames
from .pictures import Picture
from .stack import TOLERANCE, Reading, Stack

_EXPECTED = (
    "a torch tensor [B, C, H, W] or [C, H, W], a NumPy array [B, H, W, C] or [H, W, C], a PIL image, a file path, "
    "encoded bytes, or a list of single images of these kinds"
)


class ImageBatch:
    """What a caller handed in, seen through the contract.

    A frame is what is classified. An image is one frame, or several if it is an animated picture. Where people can see
    a frame in more than one ordinary way, each is a look.

    Attributes:
        items: What holds the frames.
        owners: For each frame, the index of its image.
        device: Where the caller's first tensor is; ``None`` if there is none.
    """

    def __init__(self, original: Any, items: Sequence[Any]) -> None:
        self._original = original
        self.items = items
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

    def looks(self, start: int, stop: int, size: int = 0) -> Iterator[tuple[Frames, ...]]:
        """Yield the looks at the frames ``start`` to ``stop``, as many of one stack together as are small.

        Args:
            start: The first frame.
            stop: The one after the last.
            size: The edge in pixels to which the model resizes, for what is drawn no larger than that.

        Yields:
            The looks at some frames, all of one size, each of the same frames; the worst counts. The first look holds
            the extents of what is stored.
        """
        for item, first, last in self._parts(start, stop):
            yield item.looks(first, last, size)

    def stored(self, start: int, stop: int) -> Iterator[Frames]:
        """Yield frames as they are stored, transparent ones over white, as many of one stack together as are small."""
        for item, first, last in self._parts(start, stop):
            yield item.stored(first, last)

    def frames(self, image: int) -> Iterator[Tensor]:
        """Convert one image: yield the pixels ``[3, H, W]`` of each of its frames, transparent ones over white.

        The pictures beside it in its file are no frames: they are looked at, and never handed on.
        """
        first = self.owners.index(image)
        item, of_item = self.item_of(image)
        for frame in range(first, first + item.shown(of_item)):
            for stored in self.stored(frame, frame + 1):
                yield stored.pixels()[0]

    def item_of(self, image: int) -> tuple[Any, int]:
        """Return what holds an image, and the index of the image in it."""
        index, frame = self._places[self.owners.index(image)]
        return self.items[index], self.items[index].owners[frame]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Any, int, int]]:
        while start < stop:
            index, first = self._places[start]
            item = self.items[index]
            count = min(stop - start, len(item.owners) - first, item.at_once)
            yield item, first, first + count
            start += count

    def refuse_out_of_range(self, extents: list[list[float]]) -> None:
        """Raise for the first frame with values outside the declared range; non-finite values are no matter of range.

        Args:
            extents: For each frame, its ``Frames.extent``.

        Raises:
            ImageError: With the values, what was expected, and what to type.
        """
        for (low, high), image, (index, _) in zip(extents, self.owners, self._places, strict=True):
            if math.isfinite(low) and math.isfinite(high) and (low < -TOLERANCE or high > 1 + TOLERANCE):
                self.items[index].refuse(low, high, f"images[{image}]")

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
            return self.items[0].replace(redacted)
        images = [
            item.replace({0: redacted[index]}) if index in redacted else item.original
            for index, item in enumerate(self.items)
        ]
        return _sequence_of(self._original, images) if isinstance(self._original, tuple) else images


def read_images(
    images: Any,
    *,
    value_range: tuple[float, float] = (0, 1),
    also: Sequence[tuple[float, float]] = (),
    clamp: bool = False,
    stretch: bool = False,
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
        also: Other such ranges in which they may be meant: what they show is looked at, too.
        clamp: Clamp values outside the range, in a copy, instead of refusing them. For hosts that hand over raw output.
        stretch: Look at what leaves the range, or spans little of it, from its least to its greatest value, too. For
            hosts whose images go on as numbers.
        alpha: Whether a fourth channel is alpha; otherwise any channels beyond the third are a host's own.
        written_range: The range of redacted pixels, if it is another than ``value_range``.

    Returns:
        The batch. Paths and bytes come back from it as PIL images, everything else as what it was.

    Raises:
        ImageError: A type, shape, dtype, layout, range or file that is none of the above.
    """
    if isinstance(images, ImageBatch):
        return images
    reading = Reading(
        span=_span(value_range),
        also=tuple(map(_span, also)),
        clamp=clamp,
        stretch=stretch,
        alpha=alpha,
        written=_span(value_range if written_range is None else written_range),
    )
    if isinstance(images, (list, tuple)):
        items = [_item(image, f"images[{i}]", reading, listed=True) for i, image in enumerate(images)]
        if all(item.original is image for item, image in zip(items, images, strict=True)):
            return ImageBatch(images, items)
        return ImageBatch(_sequence_of(images, [item.original for item in items]), items)
    item = _item(images, "images", reading, listed=False)
    return ImageBatch(item.original, [item])


def _sequence_of(given: Any, items: list[Any]) -> Any:
    """Return a list, tuple or named tuple of the caller's own kind."""
    return given._make(items) if hasattr(given, "_make") else type(given)(items)


def _item(image: Any, name: str, reading: Reading, *, listed: bool) -> Stack | Picture:
    if isinstance(image, torch.Tensor):
        return _tensor_stack(image, name, reading, listed=listed)
    if isinstance(image, np.ndarray):
        return _array_stack(image, name, reading, listed=listed)
    if isinstance(image, (Image.Image, str, Path, bytes, bytearray, memoryview)):
        return Picture.read(image, name)
    raise ImageError(f"{name} is a {type(image).__name__}; expected {_EXPECTED}.")


def _tensor_stack(tensor: Tensor, name: str, reading: Reading, *, listed: bool) -> Stack:
    if tensor.is_nested:
        raise ImageError(f"{name} is a nested tensor; expected a list of single images: pass list(images.unbind()).")
    shape = tuple(tensor.shape)
    if tensor.device.type == "meta":
        raise ImageError(f"{name} is on the meta device and holds no pixels; expected a tensor with data.")
    if tensor.layout != torch.strided:
        raise ImageError(f"{name} has the layout {tensor.layout}; expected a dense tensor: call .to_dense().")
    _check_dtype(tensor.dtype.is_floating_point or tensor.dtype == torch.uint8, tensor.dtype, name)
    _check_rank(tensor.ndim, shape, name, "[B, C, H, W]", "[C, H, W]", listed=listed)
    if shape[-3] not in reading.channels:
        advice = " It looks like channels last: pass images.movedim(-1, -3)." if shape[-1] in (1, 3, 4) else ""
        raise ImageError(_wrong_channels(name, shape, shape[-3], reading) + advice)
    _check_sides(shape[-2], shape[-1], shape, name)
    plain = tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)
    return Stack(tensor, plain if plain.ndim == 4 else plain[None], reading)


def _array_stack(array: np.ndarray[Any, Any], name: str, reading: Reading, *, listed: bool) -> Stack:
    shape = array.shape
    if array.dtype.names:
        raise ImageError(
            f"{name} has the fields {list(array.dtype.names)}; expected plain numbers: pass "
            "numpy.stack([array[name] for name in ('r', 'g', 'b')], axis=-1) with the names that it has."
        )
    _check_dtype(array.dtype.kind == "f" and array.dtype.itemsize <= 8 or array.dtype == np.uint8, array.dtype, name)
    _check_rank(array.ndim, shape, name, "[B, H, W, C]", "[H, W, C]", listed=listed)
    if shape[-1] not in reading.channels:
        advice = " It looks like channels first: pass numpy.moveaxis(images, -3, -1)." if shape[-3] in (1, 3, 4) else ""
        raise ImageError(_wrong_channels(name, shape, shape[-1], reading) + advice)
    _check_sides(shape[-3], shape[-2], shape, name)
    readable = np.asarray(array)
    # torch shares memory only with writable, native-endian arrays whose strides are whole, positive numbers of
    # elements; others are copied to be read.
    strides = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    if not (readable.flags.writeable and readable.dtype.isnative and strides):
        readable = np.array(readable, dtype=readable.dtype.newbyteorder("="))
    data = torch.from_numpy(readable).movedim(-1, -3)
    masked = None
    if isinstance(array, np.ma.MaskedArray) and np.ma.getmaskarray(array).any():
        masked = torch.from_numpy(np.ma.getmaskarray(array).any(axis=-1))
        masked = masked[:, None] if array.ndim == 4 else masked[None, None]
    return Stack(array, data if array.ndim == 4 else data[None], reading, masked=masked)


def _wrong_channels(name: str, shape: tuple[int, ...], given: int, reading: Reading) -> str:
    expected = ", ".join(map(str, reading.channels))
    return f"{name} has {given} channels (shape {shape}); expected {expected}: gray, RGB or RGBA."


def _check_dtype(ok: bool, dtype: Any, name: str) -> None:
    if ok:
        return
    advice = "For integers from 0 to 255, convert to uint8."
    if dtype in (torch.bool, np.dtype(bool)):
        advice = "For True and False as white and black, convert to float32."
    raise ImageError(f"{name} has the dtype {dtype}; expected floating point or uint8. {advice}")


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
