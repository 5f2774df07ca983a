"""Looking at the images that a pipeline has made, on the decoded tensor or as whatever it hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from nsfw_guard.images import ImageBatch, read_images
from nsfw_guard.redact import Judge, denormalize_flagged, redact_flagged
from nsfw_guard.verdict import Level, Verdict, worst

from .record import Passed, Record, split

Range = tuple[int, int]


@dataclass(frozen=True)
class Meaning:
    """What the numbers of images mean; those outside the range are clamped for the check.

    Attributes:
        span: ``(0, 1)`` or ``(-1, 1)``.
        also: Other ranges in which they may be meant: each is looked at, and the worst counts.
        written: The range of redacted images, if it is another.
        layers: Whether a fourth channel is the alpha of a layer; otherwise it is depth.
    """

    span: Range
    also: tuple[Range, ...] = ()
    written: Range | None = None
    layers: bool = True

    def read(self, images: Any) -> ImageBatch:
        """See images through the core's contract."""
        # Whoever denormalises [-1, 1] clamps it, too. Everything else is handed on with the values that it has.
        unclamped = self.span == (0, 1) or bool(self.also)
        return read_images(
            images,
            value_range=self.span,
            also=self.also,
            clamp=True,
            stretch=unclamped,
            alpha=self.layers and _channels(images) <= 4,
            written_range=self.written,
        )

    def of_redacted(self) -> Meaning:
        """What the numbers of redacted images mean."""
        return replace(self, span=self.written or self.span)


def check_images(
    images: Any,
    record: Record,
    *,
    value_range: Range,
    also: tuple[Range, ...] = (),
    written_range: Range | None = None,
    layers: bool = True,
    before: Sequence[Verdict] = (),
) -> tuple[Any, list[Passed]]:
    """Check a batch of images, and redact what is flagged in a copy.

    Args:
        images: A tensor ``[B, C, H, W]``, an array ``[B, H, W, C]``, or a list of PIL images; values outside the range
            are clamped for the check.
        record: Of the call; says whose guard, and whether the generation was aborted.
        value_range: ``(0, 1)`` or ``(-1, 1)``.
        also: Other ranges in which the values may be meant.
        written_range: The range of flagged images in the result, if it is another.
        layers: Whether a fourth channel is the alpha of a layer; otherwise it is depth.
        before: What was decided earlier in the call on what these images were made of: one verdict each, or of any
            number, and then each goes with the worst.

    Returns:
        The images, of the same kind and range, the unflagged ones bit-identical; one entry for each.
    """
    meaning = Meaning(value_range, also, written_range, layers)
    verdicts = decide(images, record, meaning)
    if len(before) != len(verdicts):
        before = [worst(before)] * len(verdicts) if before else verdicts
    verdicts = [worst([one, other]) if one.flagged else other for one, other in zip(before, verdicts, strict=True)]
    wanted = [i for i, verdict in enumerate(verdicts) if verdict.flagged and record.attachment.settings.on_verdicts]
    originals = dict(zip(wanted, originals_of(images, wanted, meaning), strict=True))
    passed = [Passed(verdict, original=originals.get(i)) for i, verdict in enumerate(verdicts)]
    return redacted(images, verdicts, record, meaning), passed


def decide(images: Any, record: Record, meaning: Meaning) -> list[Verdict]:
    """Return one verdict per image, and touch none; what an aborted generation has left is flagged unseen."""
    guard, device = record.attachment.guard, record.device
    if record.aborted:
        model = guard.classifier.scored_as.identity
        early = Verdict(True, 1.0, guard.policy.threshold, Level.HIGH, {}, "early", model=model)
        return [early for _ in split(images)]
    if device is not None and device.type != "cpu":
        if isinstance(images, Tensor):
            images = images.to(device)  # the SDXL watermarker hands over a copy on the CPU
        else:
            guard._place(device)
    return guard.policy.decide(guard.classify(meaning.read(images)))


def judge_of(record: Record) -> Judge:
    """Return what looks at redacted images before they leave: the guard of a call, where its pipeline computes."""
    guard, device = record.attachment.guard, record.device

    def judge(batch: ImageBatch) -> list[bool]:
        if device is not None and device.type != "cpu":
            batch.device = device  # the weights stay where they are, whatever is on the CPU
        return guard.passes(batch)

    return judge


def originals_of(images: Any, indices: list[int], meaning: Meaning) -> list[Tensor]:
    """Copies of some images as they are, each ``[3, H, W]`` in [0, 1]: their colours, whatever their alpha hides."""
    batch = replace(meaning, layers=False).read(images)
    return [next(batch.frames(index)) for index in indices]


def redacted(images: Any, verdicts: list[Verdict], record: Record, meaning: Meaning) -> Any:
    """Return the images with what is flagged redacted, the others bit-identical; the same object if nothing changes."""
    redaction = record.attachment.guard.redaction
    if redaction.kind == "none":
        moved = meaning.of_redacted() != meaning
        return denormalize_flagged(images, [verdict.flagged for verdict in verdicts]) if moved else images
    batch = meaning.read(images)
    return batch.replace(redact_flagged(batch, verdicts, redaction, judge_of(record)))


def within_range(images: Any) -> bool:
    """Whether all values are in [0, 1]. Others wrap around when a host takes them to 8 bits."""
    return bool((images >= 0).all() and (images <= 1).all())


def _channels(images: Any) -> int:
    """How many channels a batch of arrays has; 0 for pictures."""
    if isinstance(images, Tensor):
        return int(images.shape[-3])
    return int(images.shape[-1]) if isinstance(images, np.ndarray) else 0
