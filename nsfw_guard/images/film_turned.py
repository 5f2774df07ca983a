"""How players turn and mirror the frames of a film."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def as_displayed(frame: Any, array: Array) -> list[Array]:
    """Return a frame ``[H, W, 3]`` as players show it; if that is neither upright nor mirrored, as stored, too.

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
    return [shown] if exact else [shown, array]


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
