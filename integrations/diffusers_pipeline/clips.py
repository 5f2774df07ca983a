"""Looking at a clip, frame by frame in bounded memory, and redacting runs of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nsfw_guard.clips import decide_frames, frames_to_redact
from nsfw_guard.errors import ImageError
from nsfw_guard.redact import Redacted, Redaction, candidates, is_filled_unseen, most_detailed
from nsfw_guard.verdict import Verdict, worst

from .checks import Meaning, Range, decide, judge_of, originals_of
from .record import Passed, Record

# Frames that are classified or redacted at once: what is held beside the clip itself.
CHUNK = 16


def check_clip(
    clip: Any, record: Record, *, value_range: Range, also: tuple[Range, ...] = (), before: Sequence[Verdict] = ()
) -> tuple[Any, Passed]:
    """Check one clip: every n-th frame, and each frame next to a flagged one; redact runs of frames.

    Args:
        clip: A tensor ``[F, C, H, W]``, an array ``[F, H, W, C]``, or a list of PIL images.
        record: Of the call.
        value_range: ``(0, 1)`` or ``(-1, 1)``.
        also: Other ranges in which the values may be meant.
        before: What was decided earlier in the call; if anything was flagged, the whole clip is.

    Returns:
        The clip with as many frames as it had, the unredacted ones bit-identical; and its entry.
    """
    guard, settings = record.attachment.guard, record.attachment.settings
    meaning = Meaning(value_range, also)
    count = len(clip)
    if not count:
        raise ImageError("The pipeline made a clip of no frames; expected at least 1.")
    every = 1 if record.aborted else settings.every  # what was aborted costs no look
    verdicts = decide_frames(count, lambda indices: _decide(clip, indices, record, meaning), guard.policy, every=every)
    seen = [verdict for verdict in verdicts if verdict is not None]
    flagged_before = [verdict for verdict in before if verdict.flagged]
    verdict = worst([*seen, *flagged_before])
    originals = None
    if verdict.flagged:
        if settings.on_verdicts is not None:
            flagged = [i for i, found in enumerate(verdicts) if found is not None and found.flagged]
            shown = (originals_of(clip[i : i + 1], [0], meaning)[0].cpu() for i in flagged or [0])
            originals = torch.stack(list(shown))
        whole = settings.video == "clip" or bool(flagged_before)
        runs = [(0, count)] if whole else frames_to_redact(verdicts, min_run=settings.min_run)
        flagged_alone = [found if found is not None and found.flagged else None for found in verdicts]
        clip = _redacted(clip, runs, flagged_alone, verdict, record, meaning)
    return clip, Passed(verdict, frames=tuple(verdicts), original=originals)


def _decide(clip: Any, indices: list[int], record: Record, meaning: Meaning) -> list[Verdict]:
    chunks = _chunks(clip, indices)
    return [verdict for _, frames in chunks for verdict in decide(frames, record, meaning)]


def _chunks(clip: Any, indices: list[int]) -> Iterator[tuple[list[int], Any]]:
    """Some frames of a clip at a time, with their indices."""
    for start in range(0, len(indices), CHUNK):
        some = indices[start : start + CHUNK]
        yield some, [clip[i] for i in some] if isinstance(clip, list) else clip[some]


def _redacted(
    clip: Any,
    runs: list[tuple[int, int]],
    flagged: list[Verdict | None],
    verdict: Verdict,
    record: Record,
    meaning: Meaning,
) -> Any:
    """A copy of the clip with runs of frames redacted; ``flagged`` has the verdicts on those that are flagged."""
    redaction = record.attachment.guard.redaction
    if redaction.kind == "none":
        return clip
    filled = replace(redaction, kind="fill", image=None)
    copy = list(clip) if isinstance(clip, list) else clip.copy() if isinstance(clip, np.ndarray) else clip.clone()
    for run in runs:
        own = {index: flagged[index] for index in range(*run)}
        # Frames of a run that are not flagged themselves go with the worst.
        of_run = worst([found for found in own.values() if found is not None] or [verdict])
        alike: dict[Redaction, list[int]] = {}
        for index, found in own.items():
            reason = (of_run if found is None else found).reason
            # A frame without numbers needs no look, and one beside it does; of a shape that cannot be looked at, none.
            looked_at = filled.verify and found is None and reason != "too_long"
            how = replace(filled, verify=looked_at) if is_filled_unseen(reason, redaction) else redaction
            alike.setdefault(how, []).append(index)
        for how, indices in alike.items():
            _redact_alike(copy, clip, indices, how, record, meaning)
    return copy


def _redact_alike(
    copy: Any, clip: Any, indices: list[int], redaction: Redaction, record: Record, meaning: Meaning
) -> None:
    """Write redacted frames to the copy, all of them alike, so that nothing flickers: the most detailed that passes."""
    first = next(meaning.read(clip[indices[0] : indices[0] + 1]).frames(0))
    steps = candidates(redaction, *first.shape[-2:]) if redaction.verify else [redaction]
    judge = judge_of(record)

    def attempt(step: Redaction) -> bool:
        for some, frames in _chunks(clip, indices):
            batch = meaning.read(frames)
            done = batch.replace(Redacted(batch, dict.fromkeys(range(len(some)), step)))
            for index, frame in zip(some, done, strict=True):
                copy[index] = frame
            if step is not steps[-1] and not all(judge(meaning.of_redacted().read(done))):
                return False
        return True

    most_detailed(steps, attempt)
