"""Looking at a clip, frame by frame in bounded memory, and redacting runs of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from nsfw_guard.clips import decide_frames, frames_to_redact
from nsfw_guard.errors import ImageError
from nsfw_guard.guard import NsfwGuard
from nsfw_guard.verdict import Verdict, worst

from .checks import decide, originals_of, redacted
from .record import Passed, Record

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
    every = 1 if record.aborted else settings.every  # what was aborted costs no look
    verdicts = decide_frames(
        count, lambda indices: _decide(clip, indices, record, value_range), guard.policy, every=every
    )
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
        runs = [(0, count)] if whole else frames_to_redact(verdicts, min_run=settings.min_run)
        # Frames of a run that are not flagged themselves go with the worst.
        why = [found if found is not None and found.flagged else verdict for found in verdicts]
        clip = _redacted_frames(clip, {i: why[i] for run in runs for i in range(*run)}, guard, value_range)
    return clip, Passed(verdict, frames=tuple(verdicts), original=originals)


def _decide(clip: Any, indices: list[int], record: Record, value_range: tuple[int, int]) -> list[Verdict]:
    chunks = _chunks(clip, indices)
    return [verdict for _, frames in chunks for verdict in decide(frames, record, value_range)]


def _chunks(clip: Any, indices: list[int]) -> Iterator[tuple[list[int], Any]]:
    """Some frames of a clip at a time, with their indices."""
    for start in range(0, len(indices), CHUNK):
        some = indices[start : start + CHUNK]
        yield some, [clip[i] for i in some] if isinstance(clip, list) else clip[some]


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
