"""What becomes of flagged images and frames: redacted, looked at again, and told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nsfw_guard.errors import ImageError
from nsfw_guard.images import read_images
from nsfw_guard.redact import FILLED_REASONS, Judge, Redacted, Redaction, candidates, most_detailed, redact_flagged
from nsfw_guard.verdict import Verdict

from .options import Action

# Frames of a video that are redacted and looked at together.
CHUNK = 16


@dataclass(frozen=True)
class Shown:
    """Images that go on.

    Attributes:
        images: ``[B, H, W, C]``: the very same if nothing is redacted.
        done: What became of each redacted image, by index.
        verified: Of those, the ones that were looked at again as they are.
    """

    images: Tensor
    done: Mapping[int, Redaction] = field(default_factory=dict)
    verified: frozenset[int] = frozenset()

    def told(self) -> dict[int, dict[str, Any]]:
        """Return what the report says of each redacted image."""
        return {index: told(step, verified=index in self.verified) for index, step in self.done.items()}


def told(step: Redaction, *, verified: bool) -> dict[str, Any]:
    """Return what the report says of one redacted image."""
    return {"redacted": in_words(step), "verified": verified}


def in_words(step: Redaction) -> str:
    """Return a redaction in words: ``blur, 8 cells``."""
    return f"{step.kind}, {step.cells} cells" if step.kind in ("blur", "pixelate") else step.kind


def redacted(
    images: Tensor, verdicts: list[Verdict], action: Action, judge: Judge, mask: Tensor | None = None
) -> Shown:
    """Redact what is flagged in a copy: opaque, and as detailed as it may be without being flagged again.

    Args:
        images: ``[B, H, W, C]``; never written to.
        verdicts: One per image.
        action: What to do.
        judge: Looks at what would be shown.
        mask: ``[H, W]`` or ``[B, H, W]``: redact only where it is 1. Anything between shows through in proportion. What
            is shown there is chosen as without a mask; the rest of the image is shown, and is flagged as it was.

    Returns:
        Images of the same shape, dtype and device, the unflagged ones bit-identical. True and False become float32 if
        anything is redacted.

    Raises:
        ImageError: A mask of another size or number, though it is needed.
    """
    if action.redaction.kind == "none" or not any(verdict.flagged for verdict in verdicts):
        return Shown(images)
    weights = _weights(mask, images)
    images = images.float() if images.dtype == torch.bool else images
    batch = read_images(images.movedim(-1, 1), clamp=True, stretch=True)
    chosen = redact_flagged(batch, verdicts, action.redaction, judge)
    shown = batch.replace(chosen).movedim(1, -1).contiguous()
    if weights is not None:
        for index in chosen:
            weight = weights[min(index, len(weights) - 1)].to(images.device)
            shown[index] = _mixed(weight, shown[index], images[index])
    seen = frozenset(index for index in chosen if verdicts[index].reason not in FILLED_REASONS)
    return Shown(shown, chosen.chosen, seen if weights is None else frozenset())


def redacted_runs(
    frames: Tensor, verdicts: list[Verdict | None], runs: list[tuple[int, int]], redaction: Redaction, judge: Judge
) -> tuple[Tensor, list[Redaction]]:
    """Redact runs of frames in a copy, each run in one way so that nothing flickers; every frame is looked at again.

    Args:
        frames: ``[F, H, W, C]``; never written to.
        verdicts: One per frame; ``None`` for those that were not looked at.
        runs: The frames to redact, from the first one of a run to the one after its last.
        redaction: How, at most.
        judge: Looks at what would be shown.

    Returns:
        The frames, and what each run became.
    """
    copy = frames.clone()
    steps = candidates(redaction, *frames.shape[1:3])
    black = steps[-1]

    def written(run: tuple[int, int], step: Redaction) -> bool:
        for start in range(run[0], run[1], CHUNK):
            some = slice(start, min(start + CHUNK, run[1]))
            batch = read_images(frames[some].movedim(-1, 1), clamp=True, stretch=True)
            chosen = {index: _step_for(verdict, step) for index, verdict in enumerate(verdicts[some])}
            copy[some] = batch.replace(Redacted(batch, chosen)).movedim(1, -1)
            if step is not black and not all(judge(read_images(copy[some].movedim(-1, 1), stretch=True))):
                return False
        return True

    return copy, [most_detailed(steps, lambda step, run=run: written(run, step)) for run in runs]  # type: ignore[misc]


def clamped(values: Tensor) -> Tensor:
    """Return a copy within [0, 1], or the very same if nothing is outside."""
    low, high = torch.aminmax(values)
    return values if bool((low >= 0) & (high <= 1)) else values.clamp(0, 1)  # NaN is not inside


def _step_for(verdict: Verdict | None, step: Redaction) -> Redaction:
    """What a frame of a run becomes: one without numbers has nothing to blur."""
    nothing = verdict is not None and verdict.reason in FILLED_REASONS and step.kind != "replace"
    return replace(step, kind="fill") if nothing else step


def _mixed(weight: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` where the weight ``[H, W]`` is 1, ``other`` where it is 0, mixed between."""
    weight = weight[..., None].float()
    mixed = (one.float() * weight + other.float() * (1 - weight)).to(other.dtype)
    # Not by arithmetic: 0 times NaN is NaN.
    return torch.where(weight >= 1, one, torch.where(weight <= 0, other, mixed))


def _weights(mask: Tensor | None, images: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise ImageError(f"The mask is a {type(mask).__name__}; expected a MASK.")
    weights = mask[None] if mask.ndim == 2 else mask
    if (
        weights.ndim != 3
        or tuple(weights.shape[1:]) != tuple(images.shape[1:3])
        or len(weights) not in (1, len(images))
    ):
        raise ImageError(
            f"The mask has the shape {tuple(mask.shape)}; expected [H, W] = {list(images.shape[1:3])}, one mask, or "
            f"one for each of the {len(images)} images."
        )
    return weights
