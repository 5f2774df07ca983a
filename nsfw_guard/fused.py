"""Preprocessing on a GPU in two kernels: each pixel is read once, converted, clamped, resized and measured on the way.

The same arithmetic as ``preprocess``, which is the reference and what runs where there is no Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .images.frames import Frames
from .preprocess import PreprocessSpec, View, place_of_crop, resize_order


@triton.jit(do_not_specialize=["channels", "lines", "taken", "outputs", "first", "taps"])  # type: ignore[untyped-decorator]
def _resize_axis(  # type: ignore[no-untyped-def]
    source,
    target,
    ends,
    channels,
    lines,
    taken,
    outputs,
    first,
    scale,
    support,
    taps,
    source_frame,
    source_channel,
    source_line,
    source_step,
    target_frame,
    target_channel,
    target_line,
    target_step,
    shift,
    gain,
    gain_r,
    gain_g,
    gain_b,
    bias_r,
    bias_g,
    bias_b,
    VERTICAL: tl.constexpr,
    CUBIC: tl.constexpr,
    ENDS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Resize one axis to 8-bit levels, antialiased; then one multiplication and addition per channel.

    Blocks are ``[A, B]``, B along the rows of the picture, so that neighbouring threads read neighbouring pixels.
    """
    plane = tl.program_id(2)
    frame, channel = (plane // channels).to(tl.int64), plane % channels
    a = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    if VERTICAL:
        output, line = a[:, None], b[None, :]
    else:
        output, line = b[None, :], a[:, None]
    inside = (output < outputs) & (line < lines)
    center = scale * ((first + output).to(tl.float32) + 0.5)
    low = tl.maximum((center - support + 0.5).to(tl.int32), 0)
    high = tl.minimum((center + support + 0.5).to(tl.int32), taken)
    shrink = tl.maximum(scale, 1.0)
    at = source + frame * source_frame + channel * source_channel + line * source_line
    total = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
    level = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
    least = tl.full([BLOCK_A, BLOCK_B], float("inf"), tl.float32)
    most = tl.full([BLOCK_A, BLOCK_B], float("-inf"), tl.float32)
    for tap in range(taps):
        index = low + tap
        used = inside & (index < high)
        value = tl.load(at + index * source_step, mask=used, other=0).to(tl.float32)
        if ENDS:
            least = tl.where(used, tl.minimum(least, value, propagate_nan=tl.PropagateNan.ALL), least)
            most = tl.where(used, tl.maximum(most, value, propagate_nan=tl.PropagateNan.ALL), most)
        away = tl.abs((index.to(tl.float32) - center + 0.5) / shrink)
        if CUBIC:  # Keys' kernel with a = -0.5, as in Pillow
            near = (1.5 * away - 2.5) * away * away + 1
            far = ((-0.5 * away + 2.5) * away - 4) * away + 2
            weight = tl.where(away < 1, near, tl.where(away < 2, far, 0.0))
        else:
            weight = tl.maximum(1 - away, 0.0)
        weight = tl.where(used, weight, 0.0)
        value = (value + shift) * gain
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        value = tl.minimum(value, 255.0, propagate_nan=tl.PropagateNan.ALL)
        level += weight * tl.where(used, value, 0.0)
        total += weight
    level = level / tl.where(inside, total, 1.0)
    level = tl.minimum(
        tl.maximum(level, 0.0, propagate_nan=tl.PropagateNan.ALL), 255.0, propagate_nan=tl.PropagateNan.ALL
    )
    rounded = tl.floor(level + 0.5)
    level = tl.where(tl.abs(level - rounded) > 0.499, level, rounded)
    scaled = level * tl.where(channel == 0, gain_r, tl.where(channel == 1, gain_g, gain_b))
    scaled += tl.where(channel == 0, bias_r, tl.where(channel == 1, bias_g, bias_b))
    to = target + frame * target_frame + channel * target_channel + line * target_line + output * target_step
    tl.store(to, scaled, mask=inside)
    if ENDS:
        bad = tl.sum(tl.sum(((least != least) | (most != most)).to(tl.int32), 1), 0)
        nothing = tl.where(bad > 0, float("nan"), 0.0)
        block = (plane * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
        tl.store(ends + 2 * block, tl.min(tl.min(tl.where(least != least, 0.0, least), 1), 0) + nothing)
        tl.store(ends + 2 * block + 1, tl.max(tl.max(tl.where(most != most, 0.0, most), 1), 0) + nothing)


def model_input(frames: Frames, view: View, spec: PreprocessSpec) -> tuple[Tensor, Tensor | None] | None:
    """Cut a view out of frames, resize and normalise it.

    Args:
        frames: ``N`` frames of one size, on a GPU.
        view: Which part.
        spec: The model's preprocessing.

    Returns:
        What ``preprocess.model_input`` returns; and the frames' extents if all of their pixels were read for it, or
        ``None``. ``None`` in place of both where only one axis or none is to be resized.
    """
    data = frames.data.resolve_neg()[..., view.top : view.top + view.height, view.left : view.left + view.width]
    rows, columns, top, left = place_of_crop(view, spec)
    order = resize_order(view.height, view.width, rows, columns)
    if len(order) != 2:
        return None
    # Only what is neither cut off before the resize nor after it is read in full.
    whole = (view.height, view.width) == frames.data.shape[-2:] and (rows, columns) == (spec.size, spec.size)
    measured = whole and frames.measured is None and data.dtype != torch.uint8
    height_first = order[0][0] != view.height
    cubic = spec.interpolation == "bicubic"
    axes = [(True, rows, top), (False, columns, left)]
    first, second = axes if height_first else axes[::-1]
    unchanged = (1.0,) * 3, (0.0,) * 3
    levels, ends = _pass(data, *first, spec.size, cubic, frames.shift, 255 / frames.scale, unchanged, ends=measured)
    normal = tuple(1 / (255 * std) for std in spec.std), tuple(-m / s for m, s in zip(spec.mean, spec.std, strict=True))
    result, _ = _pass(levels.expand(-1, 3, -1, -1), *second, spec.size, cubic, 0, 1.0, normal, ends=False)
    extent = None
    if ends is not None:
        low, high = ends.view(len(data), -1, 2).unbind(-1)
        extent = (torch.stack((low.amin(dim=1), high.amax(dim=1)), dim=1) + frames.shift) / frames.scale
    return result, extent


def _pass(
    data: Tensor,
    vertical: bool,
    scaled: int,
    first: int,
    outputs: int,
    cubic: bool,
    shift: int,
    gain: float,
    normal: tuple[tuple[float, ...], tuple[float, ...]],
    *,
    ends: bool,
) -> tuple[Tensor, Tensor | None]:
    """Resize one axis to ``scaled``, of which ``outputs`` from ``first`` on are made; and the ends of each block."""
    frames, channels, height, width = data.shape
    taken, lines = (height, width) if vertical else (width, height)
    shape = (outputs, width) if vertical else (height, outputs)
    target = torch.empty((frames, channels, *shape), dtype=torch.float32, device=data.device)
    scale = taken / scaled
    support = (2 if cubic else 1) * max(scale, 1.0)
    blocks: tuple[int, int] = (4, 64) if vertical else (8, 32)
    grid = (triton.cdiv(shape[0], blocks[0]), triton.cdiv(shape[1], blocks[1]), frames * channels)
    found = (
        torch.empty((frames * channels, grid[0] * grid[1], 2), dtype=torch.float32, device=data.device)
        if ends
        else target
    )
    along, across = (-2, -1) if vertical else (-1, -2)
    kernel: Any = _resize_axis
    with torch.cuda.device(data.device) if data.is_cuda else torch.no_grad():
        kernel[grid](
            data,
            target,
            found,
            channels,
            lines,
            taken,
            outputs,
            first,
            scale,
            support,
            int(2 * support) + 2,
            data.stride(0),
            data.stride(1),
            data.stride(across),
            data.stride(along),
            target.stride(0),
            target.stride(1),
            target.stride(across),
            target.stride(along),
            float(shift),
            gain,
            *normal[0],
            *normal[1],
            VERTICAL=vertical,
            CUBIC=cubic,
            ENDS=ends,
            BLOCK_A=blocks[0],
            BLOCK_B=blocks[1],
        )
    return target, found if ends else None
