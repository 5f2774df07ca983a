"""Frames as their owner stores them, converted as late as can be: what is shrunk anyway need not be converted first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Frames(NamedTuple):
    """Frames of one size.

    ``(data + shift) / scale`` is in [0, 1], but for values that are to be clamped or refused.

    Attributes:
        data: ``[N, 1, H, W]`` gray or ``[N, 3, H, W]`` RGB, float32, float16, bfloat16 or uint8; never
            written to.
        shift: See above.
        scale: See above.
        full: Height and width of what they are a smaller drawing of, whose views they have; ``None``: their own.
        measured: What the extent is of, ``[N, C, H, W]`` in the same units, where the data are only some of
            the channels or composed of them; ``None``: the data.
    """

    data: Tensor
    shift: int = 0
    scale: int = 1
    measured: Tensor | None = None
    full: tuple[int, ...] | None = None

    def pixels(self) -> Tensor:
        """Convert them: ``[N, 3, H, W]``, float32, in [0, 1], clamped."""
        values = self.data.to(torch.float32)
        if values is self.data and (self.shift, self.scale) == (0, 1):
            values = values.clamp(0, 1)
        else:
            values = values.add(self.shift) if values is self.data else values.add_(self.shift)
            values = values.div_(self.scale).clamp_(0, 1)
        return values.expand(-1, 3, -1, -1)

    def extent(self) -> Tensor:
        """Return the least and the greatest value of each, converted but not clamped: ``[N, 2]``, float32.

        Non-finite if the frame holds such a value.
        """
        if self.data.dtype == torch.uint8:
            return torch.arange(2, dtype=torch.float32, device=self.data.device).expand(len(self.data), 2)
        ends = _ends(self.data if self.measured is None else self.measured).to(torch.float32)
        return (ends + self.shift) / self.scale


def _ends(data: Tensor) -> Tensor:
    """Least and greatest value of each frame ``[N, 2]``; NaN if there is one."""
    if data.device.type == "cpu":
        # A reduction to a scalar runs on all threads; one along a dimension has no more of them than frames.
        return torch.stack([torch.stack(torch.aminmax(frame)) for frame in data])
    return torch.stack(data.flatten(1).aminmax(dim=1), dim=1)
