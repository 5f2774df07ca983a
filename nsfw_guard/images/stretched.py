"""What numbers hold beside what they show: values outside of the range, and pictures so faint that nobody sees them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# What spans less than this part of the range hardly shows, and comes back from what keeps more than 8 bits.
_FAINT = 1 / 8
# Of each side: the values that a picture mostly has are found in so many of its pixels.
_SAMPLED = 64


def stretches(values: Tensor, outside: Tensor | None = None) -> list[Tensor]:
    """Stretch frames so that they span the range.

    From the least to the greatest value; and, where that is less than half as much, each channel from where most of its
    pixels begin: a few bright pixels, or a tint, hide no faint picture.

    Args:
        values: ``[N, C, H, W]``, float32.
        outside: Whether each frame leaves the range, and is stretched therefore; ``None``: the faint ones are.

    Returns:
        None, one or two tensors of the same shape; frames that need no stretching are in them as they are.
    """
    steps = (math.ceil(side / _SAMPLED) for side in values.shape[2:])
    sampled = values[:, :, :: next(steps), :: next(steps)].flatten(2).sort(dim=2).values
    few = sampled.shape[2] // 100
    most_low, most_high = sampled[:, :, few], sampled[:, :, -1 - few]
    if outside is None and bool(((most_high - most_low).amax(1) >= _FAINT).all()):
        return []  # what is so for a part is so for the whole
    low, high = values.amin((2, 3)), values.amax((2, 3))
    flat = (most_high <= most_low).all(1, keepdim=True)
    most_low, most_high = torch.where(flat, low, most_low), torch.where(flat, high, most_high)
    whole = high.amax(1) - low.amin(1)
    most = (most_high - most_low).amax(1)
    found = []
    for start, span, asked in ((low.amin(1, keepdim=True), whole, True), (most_low, most, most < whole / 2)):
        wanted = (span < _FAINT if outside is None else outside) & asked & (span > 0) & span.isfinite()
        if bool(wanted.any()):
            at = wanted[:, None, None, None]
            found.append(torch.where(at, (values - start[:, :, None, None]) / span[:, None, None, None], values))
    return found
