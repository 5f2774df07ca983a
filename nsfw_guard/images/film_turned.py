"""How players turn and mirror the frames of a film."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

# A square that is turned by an eighth has twice its area.
_LARGEST = 4


def as_displayed(frame: Any, array: Array) -> list[Array]:
    """Return a frame ``[H, W, 3]`` as players show it, first; where these differ, in each way.

    Quarter turns and mirrors are exact. By other matrices some players draw it; others take the nearest of these, or
    show it as it is stored.

    A film's display matrix maps the place ``(x, y)`` to ``(a x + c y, b x + d y)``.
    """
    told = _matrix(frame)
    if told is None:  # an older PyAV, which knows quarter turns at most
        return [np.rot90(array, round(getattr(frame, "rotation", 0) / 90) % 4)]
    a, b, c, d = told
    upright = abs(a) + abs(d) >= abs(b) + abs(c)
    right, down = (a, d) if upright else (c, b)
    shown = array if upright else array.swapaxes(0, 1)
    shown = shown[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    others = (b, c) if upright else (a, d)
    exact = not any(others) and abs(right) == abs(down)
    return [shown] if exact else [shown, array, *_drawn(array, np.array([[a, c], [b, d]], np.float64))]


def _drawn(array: Array, matrix: Array) -> list[Array]:
    """Return a frame drawn through a matrix, on black; nothing if that is flat or far larger than the frame."""
    area = abs(np.linalg.det(matrix))
    if not area:
        return []
    matrix = matrix / np.sqrt(area)
    height, width = array.shape[:2]
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height]])
    left_top = corners.min(axis=1)
    size = np.ceil(corners.max(axis=1) - left_top).astype(int)
    if size.prod() > _LARGEST * width * height:
        return []
    back = np.linalg.inv(matrix)
    how = np.column_stack([back, back @ left_top]).ravel()
    drawn = Image.fromarray(np.ascontiguousarray(array)).transform(
        (int(size[0]), int(size[1])), Image.Transform.AFFINE, tuple(how), Image.Resampling.BILINEAR
    )
    return [np.array(drawn)]


def _matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Return a, b, c and d of a frame's display matrix, without a matrix those that change nothing."""
    data = getattr(frame, "side_data", None)
    if data is None:
        return None
    from av.sidedata.sidedata import Type

    found = data.get(Type.DISPLAYMATRIX)
    if found is None:
        return (1, 0, 0, 1) if not getattr(frame, "rotation", 0) else None
    a, b, _, c, d = struct.unpack("=5i", bytes(found)[:20])
    return a, b, c, d
