"""Looking at the images that a pipeline has made, on the decoded tensor or as whatever it hands over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsfw_guard.guard import NsfwGuard
from nsfw_guard.images import ImageBatch, read_images
from nsfw_guard.redact import denormalize_flagged, redact_flagged
from nsfw_guard.verdict import Level, Verdict, worst

from .record import Passed, Record, split


def check_images(
    images: Any,
    record: Record,
    *,
    value_range: tuple[int, int],
    written_range: tuple[int, int] | None = None,
    layers: bool = True,
    before: Sequence[Verdict] = (),
) -> tuple[Any, list[Passed]]:
    """Check a batch of images, and redact what is flagged in a copy.

    Args:
        images: A tensor ``[B, C, H, W]``, an array ``[B, H, W, C]``, or a list of PIL images; values outside the range
            are clamped for the check.
        record: Of the call; says whose guard, and whether the generation was aborted.
        value_range: ``(0, 1)`` or ``(-1, 1)``.
        written_range: The range of flagged images in the result, if it is another.
        layers: Whether a fourth channel is the alpha of a layer; otherwise it is depth.
        before: What was decided earlier in the call on what these images were made of: one verdict each, or of any
            number, and then each goes with the worst.

    Returns:
        The images, of the same kind and range, the unflagged ones bit-identical; one entry for each.
    """
    verdicts = decide(images, record, value_range, layers=layers)
    if len(before) != len(verdicts):
        before = [worst(before)] * len(verdicts) if before else verdicts
    verdicts = [worst([one, other]) if one.flagged else other for one, other in zip(before, verdicts, strict=True)]
    attachment = record.attachment
    wanted = [i for i, verdict in enumerate(verdicts) if verdict.flagged and attachment.settings.on_verdicts]
    originals = dict(zip(wanted, originals_of(images, wanted, value_range), strict=True))
    passed = [Passed(verdict, original=originals.get(i)) for i, verdict in enumerate(verdicts)]
    return redacted(images, verdicts, attachment.guard, value_range, written_range, layers=layers), passed


def decide(images: Any, record: Record, value_range: tuple[int, int], *, layers: bool = True) -> list[Verdict]:
    """Return one verdict per image, and touch none; what an aborted generation has left is flagged unseen."""
    guard, device = record.attachment.guard, record.device
    if record.aborted:
        early = Verdict(True, 1.0, guard.policy.threshold, Level.HIGH, {}, "early", model=guard.card.identity)
        return [early for _ in split(images)]
    if device is not None and device.type != "cpu":
        if isinstance(images, Tensor):
            images = images.to(device)  # the SDXL watermarker hands over a copy on the CPU
        else:
            guard._place(device)
    looks = [_read(images, value_range)]
    if layers and _layered(images):
        # A layer is seen alone, on white and on black: neither its colours under full transparency nor a shape that is
        # only in its alpha may slip past.
        looks += [_read(images, value_range, alpha=True), _read(_over_black(images, value_range), (0, 1))]
    decided = [guard.policy.decide(guard.classify(look)) for look in looks]
    return [worst(seen) for seen in zip(*decided, strict=True)]


def originals_of(images: Any, indices: list[int], value_range: tuple[int, int]) -> list[Tensor]:
    """Copies of some images as they are, each ``[3, H, W]`` in [0, 1]."""
    batch = _read(images, value_range)
    return [next(batch.frames(index)) for index in indices]


def redacted(
    images: Any,
    verdicts: list[Verdict],
    guard: NsfwGuard,
    value_range: tuple[int, int],
    written_range: tuple[int, int] | None = None,
    *,
    layers: bool = True,
) -> Any:
    """Return the images with what is flagged redacted, the others bit-identical; the same object if nothing changes."""
    if guard.redaction.kind == "none":
        moved = written_range is not None and written_range != value_range
        return denormalize_flagged(images, [verdict.flagged for verdict in verdicts]) if moved else images
    batch = _read(images, value_range, written_range=written_range)
    pixels = redact_flagged(batch, verdicts, guard.redaction)
    done = batch.replace(pixels)
    if layers and _layered(images):
        for index in pixels:  # opaque, to cover what its alpha showed
            done[(index, 3) if isinstance(done, Tensor) else (index, ..., 3)] = 1
    return done


def _over_black(images: Any, value_range: tuple[int, int]) -> Tensor:
    """Layers ``[B, 4, H, W]`` or ``[B, H, W, 4]`` on black, ``[B, 3, H, W]`` in [0, 1]."""
    layers = images if isinstance(images, Tensor) else torch.from_numpy(images).movedim(-1, 1)
    layers = layers.float() if value_range == (0, 1) else layers.float() / 2 + 0.5
    return layers[:, :3] * layers[:, 3:].clamp(0, 1)


def _layered(images: Any) -> bool:
    """Whether images have an alpha channel: layers to be laid over one another."""
    if isinstance(images, Tensor):
        return images.shape[-3] == 4
    return isinstance(images, np.ndarray) and images.shape[-1] == 4


def _read(
    images: Any, value_range: tuple[int, int], *, alpha: bool = False, written_range: tuple[int, int] | None = None
) -> ImageBatch:
    return read_images(images, value_range=value_range, clamp=True, alpha=alpha, written_range=written_range)
