"""The ways in which an array may be pictures: which of its dimensions are height, width and colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

from .errors import ImageError, one_line

# Arrays of no more values show nothing, unless they are 8x8.
FEW = 64
# Pixels on each side: what is smaller shows nothing.
_SMALLEST = 8
_MOST_CHANNELS = 4

Range = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """One way to read an array.

    Attributes:
        pixels: ``[…, C, H, W]``, C being 1, 3 or 4, floating point or uint8; a view of the array where that is
            possible.
        restore: Takes pixels like these back to an array of the kind, dtype and shape that was given.
    """

    pixels: Tensor
    restore: Callable[[Tensor], Any]


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor, of whichever library."""
    kind = type(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return True
    if kind.__module__ == "builtins" or isinstance(value, (np.generic, type)):
        return False
    return any(hasattr(kind, name) for name in ("__array__", "__array_interface__", "__dlpack__")) or _is_buffer(value)


def as_array(value: Any, name: str) -> Tensor | np.ndarray[Any, Any]:
    """Return any array as a tensor or a NumPy array; lists of numbers, too.

    Raises:
        ImageError: It cannot be read.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return value
    try:
        if hasattr(type(value), "__dlpack__") and not hasattr(type(value), "__array__"):
            return torch.utils.dlpack.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:
        raise ImageError(
            f"{name} is a {type(value).__name__} that cannot be read as one array ({one_line(error)}); expected a "
            "NumPy array or a tensor."
        ) from error


def layouts(value: Any, name: str) -> list[Layout]:
    """Return every way in which an array may be pictures of at least 8x8 pixels; none if there is none.

    Heights and widths are next to each other. Before or behind them are 1 to 4 channels, or none: in ``[H, W]`` and
    ``[N, H, W]``. What may be several gray pictures instead of channels is read as such, too, except for three channels
    where the array's library has them (first in tensors, last in NumPy's). The colours of a clip may be before its
    frames.

    Raises:
        ImageError: The numbers cannot be read: complex, sparse, without data; or integers outside of [0, 65535].
    """
    array = as_array(value, name)
    shape = tuple(array.shape)
    if not math.prod(shape):
        return []
    ways = _axes(shape, channels_last=not isinstance(array, Tensor))
    if not ways:
        return []
    numbers, scale = _numbers(array, name)
    return [_layout(value, array, numbers, scale, axes) for axes in ways]


def layout_count(shape: tuple[int, ...]) -> int:
    """Return in how many ways an array of a shape may be pictures."""
    return len(_axes(shape, channels_last=False)) if math.prod(shape) else 0


def _axes(shape: tuple[int, ...], *, channels_last: bool) -> list[tuple[int | None, int, int]]:
    """Return the axes of channels (``None``: gray), height and width of each way, all counted from the end."""
    rank = len(shape)

    def large(*axes: int) -> bool:
        return all(-axis <= rank and shape[axis] >= _SMALLEST for axis in axes)

    def channels(axis: int) -> int:
        return shape[axis] if -axis <= rank and shape[axis] <= _MOST_CHANNELS else 0

    ways: list[tuple[int | None, int, int]] = []
    if large(-2, -1):
        if channels(-3) >= 3:
            ways.append((-3, -2, -1))
        if channels(-3) == 3 and not channels_last:
            return ways
        if channels(-3) != 3 and channels(-4) >= 3:  # the colours of a clip are before its frames
            ways.append((-4, -2, -1))
        if not channels(-3) and rank > 3:
            return ways  # more channels than a picture has, such as those of latents
        if large(-3) and shape[-3] == shape[-2]:  # [N, H, W] or [H, W, N]
            if shape[-2] != shape[-1]:
                return []
            ways.append((None, -3, -2))
        ways.append((-3 if channels(-3) == 1 else None, -2, -1))
    elif large(-3, -2) and channels(-1):
        if channels(-1) >= 3:
            ways.append((-1, -3, -2))
        if channels(-1) != 3 or not channels_last:
            ways.append((-1 if channels(-1) == 1 else None, -3, -2))
    elif large(-4, -3) and channels(-2) and channels(-1):  # [H, W, N, C] or [H, W, C, N]
        ways += [(axis, -4, -3) for axis in (-2, -1) if channels(axis) >= 3] + [(None, -4, -3)]
    return ways


def _layout(given: Any, array: Any, numbers: Tensor, scale: float | None, axes: tuple[int | None, int, int]) -> Layout:
    channel, height, width = axes
    rank = numbers.ndim
    picked = [axis + rank for axis in ((height, width) if channel is None else (channel, height, width))]
    order = [axis for axis in range(rank) if axis not in picked] + picked
    pixels = numbers.permute(order)
    if channel is None:
        pixels = pixels.unsqueeze(-3)

    def restore(changed: Tensor) -> Any:
        back = changed.squeeze(-3) if channel is None else changed
        back = back.permute([order.index(axis) for axis in range(rank)])
        if scale is not None:
            back = (back * scale).round()
        return _as_given(back, array, given)

    return Layout(pixels, restore)


def _numbers(array: Any, name: str) -> tuple[Tensor, float | None]:
    """Return an array as a tensor, floating point or uint8; and what to multiply by to have its integers back."""
    if isinstance(array, Tensor):
        if array.is_nested or array.is_quantized or array.device.type == "meta" or array.layout != torch.strided:
            raise ImageError(
                f"{name} is a tensor without plain values ({array.dtype}, {array.layout}, {array.device})."
            )
        numbers = array.detach()
        numbers = numbers if type(numbers) is Tensor else numbers.as_subclass(Tensor)
    else:
        if array.dtype.kind not in "buif":
            raise ImageError(f"{name} is an array of {array.dtype}; expected real numbers.")
        plain: Any = np.ma.getdata(array)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            return _scaled(torch.from_numpy(plain.astype(np.float64)), name)
        wide = np.float64 if plain.dtype.kind == "f" and plain.dtype.itemsize > 8 else plain.dtype.newbyteorder("=")
        shared = plain.flags.writeable and plain.dtype == wide and all(step >= 0 for step in plain.strides)
        numbers = torch.from_numpy(plain if shared else np.array(plain, dtype=wide))
    if numbers.is_complex():
        raise ImageError(f"{name} is a tensor of {numbers.dtype}; expected real numbers.")
    if numbers.dtype == torch.uint8 and int(numbers.max()) <= 1:  # a mask
        return numbers.float(), 1.0
    if numbers.is_floating_point() and numbers.itemsize == 1:  # which torch does not calculate with
        return numbers.float(), None
    if numbers.dtype == torch.uint8 or numbers.is_floating_point():
        return numbers, None
    return _scaled(numbers.to(torch.float64), name) if numbers.dtype != torch.bool else (numbers.float(), 1.0)


def _scaled(values: Tensor, name: str) -> tuple[Tensor, float]:
    """Bring integers to [0, 1]: of 8 bits if they fit, else of 16."""
    low, high = float(values.min()), float(values.max())
    scale = next((scale for scale in (1.0, 255.0, 65535.0) if high <= scale), None)
    if low < 0 or scale is None:
        raise ImageError(
            f"{name} holds integers from {low:.0f} to {high:.0f}, which are no picture's: expected [0, 255]."
        )
    return (values / scale).float(), scale


def _as_given(back: Tensor, array: Any, given: Any) -> Any:
    if isinstance(array, Tensor):
        made = back.to(array.dtype)
        return made if type(array) in (Tensor, torch.nn.Parameter) else made.as_subclass(type(array))
    plain = back.cpu().numpy().astype(array.dtype)
    if isinstance(array, np.ma.MaskedArray):
        return np.ma.MaskedArray(plain, mask=np.ma.nomask, fill_value=array.fill_value)
    return plain.tolist() if isinstance(given, (list, tuple)) else plain


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except (TypeError, ValueError, BufferError):
        return False
    return True


def ranges_of(pixels: Any, name: str, *, value_range: Range = (0, 1), sure: bool = True) -> list[Range]:
    """Return the ranges in which finished arrays and tensors may be meant, the likeliest first: all are looked at.

    What is redacted is written in the first. Of values that are nowhere below 0 only [0, 1] is looked at: in [-1, 1]
    they are the same picture at half its contrast. Values below 0 may be either, and so may anything of which (-1, 1)
    is not sure. Values up to 1.5 are clamped, as on a screen, and looked at from least to greatest too.

    Args:
        pixels: Floating point, or uint8, whose range is known.
        name: What messages call them.
        value_range: ``(0, 1)`` or ``(-1, 1)``, as far as it is known.
        sure: Whether (-1, 1) is what the values are known for.

    Raises:
        ImageError: They are no images in [0, 1] or [-1, 1]; latents, for example.
    """
    pixels = pixels.detach() if isinstance(pixels, Tensor) else pixels
    floating = pixels.is_floating_point() if isinstance(pixels, Tensor) else pixels.dtype.kind == "f"
    low, high = _extent_of(pixels) if floating else (0.0, 1.0)
    if high > 1.5 and value_range == (0, 1):
        raise ImageError(
            f"{name}: the host returned values from {low:.4g} to {high:.4g}, which cannot be checked; expected [0, 1]. "
            'Return pictures: of a diffusers pipeline, ask for output_type="pil".'
        )
    if value_range == (-1, 1):
        return [(-1, 1)] if sure and low < 0 else [(-1, 1), (0, 1)]
    if low >= 0:
        return [(0, 1)]
    return [(-1, 1), (0, 1)] if low < -0.05 else [(0, 1), (-1, 1)]


def _extent_of(pixels: Any) -> tuple[float, float]:
    """The least and the greatest of the finite values; what holds others is flagged whatever its range."""
    if not math.prod(pixels.shape):
        return 0.0, 1.0
    low, high = float(pixels.min()), float(pixels.max())
    if not math.isfinite(high - low):
        finite = pixels[torch.isfinite(pixels) if isinstance(pixels, Tensor) else np.isfinite(pixels)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, high
