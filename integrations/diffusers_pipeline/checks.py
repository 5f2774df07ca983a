"""Looking at what a pipeline has made: images, and clips frame by frame in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsfw_guard.errors import ImageError
from nsfw_guard.guard import NsfwGuard, denormalize_flagged
from nsfw_guard.images import ImageBatch, read_images
from nsfw_guard.redact import FILLED_REASONS, redact_flagged
from nsfw_guard.verdict import Level, Scores, Verdict

from .record import Passed, Record, split, worst

# Frames that are classified or redacted at once: what is held beside the clip itself.
CHUNK = 16


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
        before: What was decided earlier in the call on what these images were made of, one verdict each.

    Returns:
        The images, of the same kind and range, the unflagged ones bit-identical; one entry for each.
    """
    guard, settings = record.attachment.guard, record.attachment.settings
    if record.aborted:
        verdicts = [early_verdict(guard) for _ in split(images)]
    else:
        verdicts = guard.policy.decide(_scores(images, record, value_range))
        if layers and _layered(images):
            # A layer is seen alone, on white and on black: neither its colours under full transparency nor a shape that
            # is only in its alpha may slip past.
            on_white = guard.policy.decide(_scores(images, record, value_range, alpha=True))
            on_black = guard.policy.decide(_scores(_over_black(images, value_range), record, (0, 1)))
            verdicts = [worst(list(seen)) for seen in zip(verdicts, on_white, on_black, strict=True)]
    if len(before) == len(verdicts):
        verdicts = [worst([one, other]) if one.flagged else other for one, other in zip(before, verdicts, strict=True)]
    elif any(verdict.flagged for verdict in before):
        verdicts = [worst([*before, verdict]) for verdict in verdicts]
    batch = _read(images, value_range)
    keep = settings.on_verdicts is not None
    passed = [
        Passed(verdict, original=next(batch.frames(index)).clone() if keep and verdict.flagged else None)
        for index, verdict in enumerate(verdicts)
    ]
    return _redacted(images, verdicts, guard, value_range, written_range, layers=layers), passed


def check_clip(
    clip: Any, record: Record, *, value_range: tuple[int, int], before: Sequence[Verdict] = ()
) -> tuple[Any, Passed]:
    """Check one clip: every n-th frame, and each frame next to a flagged one; redact runs of frames.

    Args:
        clip: A tensor ``[F, C, H, W]``, an array ``[F, H, W, C]``, or a list of PIL images.
        record: Of the call.
        value_range: ``(0, 1)`` or ``(-1, 1)``.
        before: What was decided earlier in the call; if anything was flagged, the whole clip is.

    Returns:
        The clip with as many frames as it had, the unredacted ones bit-identical; and its entry.
    """
    guard, settings = record.attachment.guard, record.attachment.settings
    count = len(clip)
    if not count:
        raise ImageError("The pipeline made a clip of no frames; expected at least 1.")
    if record.aborted:
        verdicts: list[Verdict | None] = [early_verdict(guard)] * count
    else:
        verdicts = _frame_verdicts(clip, record, value_range)
    looked_at = tuple(verdicts)
    seen = [verdict for verdict in verdicts if verdict is not None]
    flagged_before = [verdict for verdict in before if verdict.flagged]
    verdict = worst([*seen, *flagged_before])
    originals = None
    if verdict.flagged:
        if settings.on_verdicts is not None:
            flagged = [i for i, found in enumerate(verdicts) if found is not None and found.flagged]
            originals = torch.stack([next(_read(clip[i : i + 1], value_range).frames(0)).cpu() for i in flagged or [0]])
        whole = settings.video == "clip" or bool(flagged_before)
        redacted = set(range(count)) if whole else _runs(verdicts, settings.min_run)
        others = verdict if verdict.reason in FILLED_REASONS else replace(verdict, reason="clip")
        why = [found if found is not None and found.flagged else others for found in verdicts]
        clip = _redacted_frames(clip, {i: why[i] for i in redacted}, guard, value_range)
    return clip, Passed(verdict, frames=looked_at, original=originals)


def early_verdict(guard: NsfwGuard) -> Verdict:
    """The verdict on what an aborted generation left."""
    return Verdict(True, 1.0, guard.policy.threshold, Level.HIGH, {}, "early", model=guard.card.identity)


def _frame_verdicts(clip: Any, record: Record, value_range: tuple[int, int]) -> list[Verdict | None]:
    """One verdict per frame that was looked at.

    Every n-th frame and the last one first. The frames between a flagged one and an unflagged one are looked at one by
    one; those between two flagged ones need no look: they are redacted with them.
    """
    guard, every = record.attachment.guard, record.attachment.settings.every
    count = len(clip)
    indices = sorted({*range(0, count, every), count - 1})
    found = dict(zip(indices, _decide(clip, indices, record, value_range), strict=True))
    edges = [
        index
        for left, right in zip(indices, indices[1:], strict=False)
        if found[left].flagged != found[right].flagged
        for index in range(left + 1, right)
    ]
    found |= zip(edges, _decide(clip, edges, record, value_range), strict=True)
    if guard.policy.batch == "any" and any(verdict.flagged for verdict in found.values()):
        found = {i: v if v.flagged else replace(v, flagged=True, reason="batch") for i, v in found.items()}
    return [found.get(index) for index in range(count)]


def _decide(clip: Any, indices: list[int], record: Record, value_range: tuple[int, int]) -> list[Verdict]:
    guard = record.attachment.guard
    verdicts: list[Verdict] = []
    for _, frames in _chunks(clip, indices):
        verdicts += guard.policy.decide(_scores(frames, record, value_range))
    return verdicts


def _chunks(clip: Any, indices: list[int]) -> Iterator[tuple[list[int], Any]]:
    """Some frames of a clip at a time, with their indices."""
    for start in range(0, len(indices), CHUNK):
        some = indices[start : start + CHUNK]
        yield some, [clip[i] for i in some] if isinstance(clip, list) else clip[some]


def _runs(verdicts: list[Verdict | None], min_run: int) -> set[int]:
    """The frames to redact: no run of them, and no gap between two, is shorter than ``min_run``, so nothing flickers.

    A frame that was not looked at lies between two flagged ones, and goes with them, or between two others.
    """
    count = len(verdicts)
    runs: list[tuple[int, int]] = []
    for index, verdict in enumerate(verdicts):
        if verdict is None or not verdict.flagged:
            continue
        if runs and all(between is None for between in verdicts[runs[-1][1] : index]):
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    merged: list[tuple[int, int]] = []
    for start, stop in runs:
        lacking = max(0, min_run - (stop - start))
        start = max(0, min(start - lacking // 2, count - min_run))
        stop = min(count, max(stop, start + min_run))
        if merged and start - merged[-1][1] < min_run:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return {index for start, stop in merged for index in range(start, stop)}


def _redacted_frames(clip: Any, verdicts: dict[int, Verdict], guard: NsfwGuard, value_range: tuple[int, int]) -> Any:
    """A copy of the clip with some frames redacted, a few at a time."""
    if guard.redaction.kind == "none" or not verdicts:
        return clip
    copy = list(clip) if isinstance(clip, list) else clip.copy() if isinstance(clip, np.ndarray) else clip.clone()
    for some, frames in _chunks(clip, sorted(verdicts)):
        done = _redacted(frames, [verdicts[i] for i in some], guard, value_range)
        for index, frame in zip(some, done, strict=True):
            copy[index] = frame
    return copy


def _redacted(
    images: Any,
    verdicts: list[Verdict],
    guard: NsfwGuard,
    value_range: tuple[int, int],
    written_range: tuple[int, int] | None = None,
    *,
    layers: bool = True,
) -> Any:
    if guard.redaction.kind == "none":
        moved = written_range is not None and written_range != value_range
        return denormalize_flagged(images, [verdict.flagged for verdict in verdicts]) if moved else images
    batch = _read(images, value_range, written_range=written_range)
    redacted = redact_flagged(batch, verdicts, guard.redaction)
    done = batch.replace(redacted)
    if layers and _layered(images):
        for index in redacted:  # opaque, to cover what its alpha showed
            opaque = 255 if str(done.dtype).endswith("uint8") else 1
            done[(index, 3) if isinstance(done, Tensor) else (index, ..., 3)] = opaque
    return done


def _scores(images: Any, record: Record, value_range: tuple[int, int], *, alpha: bool = False) -> Scores:
    guard, device = record.attachment.guard, record.device
    if device is not None and device.type != "cpu":
        if isinstance(images, Tensor):
            images = images.to(device)  # the SDXL watermarker hands over a copy on the CPU
        else:
            guard._place(device)
    return guard.classify(_read(images, value_range, alpha=alpha))


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


def check_any(
    images: Any, record: Record, *, clips: bool, value_range: tuple[int, int], before: Sequence[Verdict] = ()
) -> tuple[Any, list[Passed]]:
    """Check finished output of any kind: what a pipeline returns without having handed it to the guard before.

    Args:
        images: PIL images, clips of them, arrays or tensors, one item or many.
        record: Of the call.
        clips: Whether a flat list of pictures, or a 4-D array, is one clip.
        value_range: Of arrays and tensors.
        before: What was decided earlier in the call.

    Returns:
        The same, redacted; one entry per item.

    Raises:
        ImageError: It is none of these.
    """

    def of_clips(items: Any) -> tuple[list[Any], list[Passed]]:
        checked = [check_clip(item, record, value_range=value_range, before=before) for item in items]
        return [clip for clip, _ in checked], [passed for _, passed in checked]

    if isinstance(images, Image.Image):
        (image,), passed = check_images([images], record, value_range=value_range, before=before)
        return image, passed
    if isinstance(images, (list, tuple)):
        kind: Callable[[Any], Any] = list if isinstance(images, list) else tuple
        if images and all(isinstance(item, (list, tuple)) for item in images):
            done, passed = of_clips([list(item) for item in images])
            return kind(done), passed
        if clips and images and all(isinstance(item, Image.Image) for item in images):
            clip, one = check_clip(list(images), record, value_range=value_range, before=before)
            return kind(clip), [one]
        if all(isinstance(item, Image.Image) for item in images):
            done, passed = check_images(list(images), record, value_range=value_range, before=before)
            return kind(done), passed
        parts = [check_any(item, record, clips=clips, value_range=value_range, before=before) for item in images]
        return kind(part for part, _ in parts), [entry for _, passed in parts for entry in passed]
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim in (3, 4, 5):
        value_range = _range_of(images, value_range)
        if images.ndim == 5:
            given = list(images)
            done, passed = of_clips(given)
            if all(one is other for one, other in zip(done, given, strict=True)):
                return images, passed
            return (torch.stack(done) if isinstance(images, Tensor) else np.stack(done)), passed
        if images.ndim == 4 and clips:
            clip, one = check_clip(images, record, value_range=value_range, before=before)
            return clip, [one]
        if images.ndim == 4:
            return check_images(images, record, value_range=value_range, before=before)
        if images.ndim == 3:
            done, passed = check_images(images[None], record, value_range=value_range, before=before)
            return (done[0] if passed[0].verdict.flagged else images), passed
    described = f"a {type(images).__name__}" + (f" of shape {tuple(images.shape)}" if hasattr(images, "shape") else "")
    raise ImageError(
        f"The pipeline returned {described}, which cannot be checked; expected images or clips as PIL, NumPy or "
        'tensors. Ask it for output_type="pil".'
    )


def _range_of(images: Any, value_range: tuple[int, int]) -> tuple[int, int]:
    """The range of finished arrays and tensors, of which nobody has said it: a guess that fails closed.

    Raises:
        ImageError: They are no images in [0, 1] or [-1, 1]; latents, for example.
    """
    channels = images.shape[-3] if isinstance(images, Tensor) else images.shape[-1]
    if channels not in (1, 3):
        raise ImageError(
            f"The pipeline returned a {type(images).__name__} of shape {tuple(images.shape)}: {channels} channels, "
            'which cannot be checked; expected images of 1 or 3. Ask it for output_type="pil".'
        )
    if not images.size if isinstance(images, np.ndarray) else not images.numel():
        return value_range
    floating = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
    low, high = float(images.min()), float(images.max())
    if floating and high > 1.5 and value_range == (0, 1):
        raise ImageError(
            f"The pipeline returned values from {low:.4g} to {high:.4g}, which cannot be checked; expected [0, 1]. "
            'Ask it for output_type="pil".'
        )
    return (-1, 1) if floating and low < -0.05 else value_range
