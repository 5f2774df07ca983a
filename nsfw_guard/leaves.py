"""Looking at one leaf of a walk, whatever it is, in every way in which it may be pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .encoded import Check, begins_like_a_picture, look_at_bytes, look_at_text
from .errors import ImageError
from .layouts import as_array, layouts


def look_at(value: Any, check: Check, name: str) -> Any:
    """Look at a leaf of ``walk``.

    Args:
        value: A PIL picture or a list of some, an array or tensor, a list of numbers, encoded bytes, or text.
        check: Looks at a list of pictures, a tensor ``[…, C, H, W]``, a list of tensors ``[3, H, W]``, or an
            ``ImageBatch``. It returns the same object if nothing is to be redacted, and otherwise the same with what is
            flagged redacted (of a batch, a list).
        name: What messages call the leaf.

    Returns:
        The same object; or one of the same kind with what is flagged redacted. A picture that was encoded comes back
        as PNG, and a film that was, as a picture of its first flagged frame.

    Raises:
        ImageError: It cannot be looked at.
    """
    if isinstance(value, Image.Image):
        pictures = [value]
        return value if (done := check(pictures)) is pictures else done[0]
    if isinstance(value, str):
        return look_at_text(value, check, name)
    if isinstance(value, PurePath):
        look_at_text(str(value), check, name)
        return value
    if isinstance(value, io.BytesIO):
        data = value.getvalue()
        return value if (done := look_at_bytes(data, check, name)) is data else io.BytesIO(done)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _look_at_bytes_of(value, bytes(value), type(value), check, name)
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float, list, tuple, np.generic)):
        return check(value)
    if isinstance(value, (list, tuple)) and isinstance(_innermost(value), Image.Image):
        return check(value)
    return _look_at_array(value, check, name)


def _look_at_array(value: Any, check: Check, name: str) -> Any:
    ways, redacted = layouts(value, name), False
    if not ways:
        return _look_at_row(value, check, name)
    for index in range(len(ways)):
        way = ways[index]
        done = check(way.pixels)
        if done is way.pixels:
            continue
        if redacted:  # in two ways at once: black is flagged in none
            return way.restore(torch.zeros_like(way.pixels))
        value, redacted = way.restore(done), True
        ways = layouts(value, name)
        again = ways[index].pixels
        if not torch.equal(again, done) and check(again) is not again:  # rounded to integers it is flagged still
            return way.restore(torch.zeros_like(way.pixels))
    return value


def _look_at_row(value: Any, check: Check, name: str) -> Any:
    """Look at what is no picture by its shape: the bytes of a file may be."""
    array = as_array(value, name)
    data = _bytes_in(array)
    if data is None or not begins_like_a_picture(data):
        shape = tuple(array.shape)
        count = (shape[-3] if isinstance(array, Tensor) else shape[-1]) if len(shape) > 3 else 0
        raise ImageError(
            f"{name} is a {type(value).__name__} of shape {shape}{f' ({count} channels)' if count else ''} and "
            f"{array.dtype}, which cannot be looked at; expected pictures as PIL, NumPy or tensors, of 8x8 or more and "
            "of 1 to 4 channels. What is no picture has to be left out of what is returned."
        )
    restore: Callable[[bytes], Any] = list
    if not isinstance(value, (list, tuple)):
        restore = lambda done: _as_kind(np.frombuffer(done, np.uint8).copy(), array)  # noqa: E731
    return _look_at_bytes_of(value, data, restore, check, name)


def _look_at_bytes_of(value: Any, data: bytes, restore: Callable[[bytes], Any], check: Check, name: str) -> Any:
    done = look_at_bytes(data, check, name)
    return value if done is data else restore(done)


def _bytes_in(array: Any) -> bytes | None:
    """The bytes that a row of integers is; ``None`` if it is none."""
    if max(array.shape, default=0) != np.prod(array.shape):
        return None
    if isinstance(array, Tensor):
        if array.is_floating_point() or array.is_complex():
            return None
        array = array.detach().cpu().numpy()
    if array.dtype.kind not in "ui" or not array.size or array.min() < 0 or array.max() > 255:
        return None
    return bytes(array.ravel().astype(np.uint8))


def _as_kind(row: np.ndarray[Any, Any], like: Any) -> Any:
    return torch.from_numpy(row).to(like) if isinstance(like, Tensor) else row.astype(like.dtype)


def _innermost(value: Any) -> Any:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value
