"""Looking at a clip, frame by frame in bounded memory, and redacting runs of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nsfw_guard.errors import ImageError
from nsfw_guard.guard import NsfwGuard
from nsfw_guard.redact import FILLED_REASONS
from nsfw_guard.verdict import Verdict

from .checks import decide, originals_of, redacted
from .record import Passed, Record, worst

# Frames that are classified or redacted at once: what is held beside the clip itself.
CHUNK = 16


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
    verdicts = _frame_verdicts(clip, record, value_range)
    seen = [verdict for verdict in verdicts if verdict is not None]
    flagged_before = [verdict for verdict in before if verdict.flagged]
    verdict = worst([*seen, *flagged_before])
    originals = None
    if verdict.flagged:
        if settings.on_verdicts is not None:
            flagged = [i for i, found in enumerate(verdicts) if found is not None and found.flagged]
            shown = (originals_of(clip[i : i + 1], [0], value_range)[0].cpu() for i in flagged or [0])
            originals = torch.stack(list(shown))
        whole = settings.video == "clip" or bool(flagged_before)
        covered = set(range(count)) if whole else _runs(verdicts, settings.min_run)
        others = verdict if verdict.reason in FILLED_REASONS else replace(verdict, reason="clip")
        why = [found if found is not None and found.flagged else others for found in verdicts]
        clip = _redacted_frames(clip, {i: why[i] for i in covered}, guard, value_range)
    return clip, Passed(verdict, frames=tuple(verdicts), original=originals)


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
    chunks = _chunks(clip, indices)
    return [verdict for _, frames in chunks for verdict in decide(frames, record, value_range)]


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
        done = redacted(frames, [verdicts[i] for i in some], guard, value_range)
        for index, frame in zip(some, done, strict=True):
            copy[index] = frame
    return copy
