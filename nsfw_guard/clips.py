"""Clips: which frames to look at, and which to redact so that nothing flickers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import ImageError
from .images import read_images
from .policy import Policy, one_flags_all
from .redact import Judge, Redacted, Redaction, candidates, most_detailed
from .verdict import Verdict


def decide_frames(
    count: int, decide: Callable[[list[int]], list[Verdict]], policy: Policy, *, every: int = 1
) -> list[Verdict | None]:
    """Look at every n-th frame of a clip and at the last one; then, one by one, at those next to a flagged one.

    The frames between two flagged ones that were looked at need no look: they are redacted with them.

    Args:
        count: Of the frames, at least 1.
        decide: Returns one verdict for each of some frames, by index.
        policy: By which ``decide`` decides; with ``batch="any"``, one flagged frame flags all that were looked at.
        every: Frames from one look to the next, at least 1.

    Returns:
        One verdict per frame; ``None`` for those that were not looked at.
    """
    indices = sorted({*range(0, count, every), count - 1})
    found = dict(zip(indices, decide(indices), strict=True))
    edges = [
        index
        for left, right in zip(indices, indices[1:], strict=False)
        if found[left].flagged != found[right].flagged
        for index in range(left + 1, right)
    ]
    found |= zip(edges, decide(edges), strict=True)
    if policy.batch == "any":
        found = dict(zip(found, one_flags_all(list(found.values())), strict=True))
    return [found.get(index) for index in range(count)]


def frames_to_redact(verdicts: list[Verdict | None], *, min_run: int = 1) -> list[tuple[int, int]]:
    """Choose runs of frames such that none, and no gap between two, is shorter than ``min_run``.

    A frame that was not looked at lies between two flagged ones, and goes with them, or between two others.

    Args:
        verdicts: One per frame; ``None`` for those that were not looked at.
        min_run: In frames, at least 1; the whole clip if that is shorter.

    Returns:
        The runs in order, each from its first frame to the one after its last.
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
    return merged


def refuse_no_clip(frames: Any) -> None:
    """Refuse what is no clip, whether or not anything in it would be flagged.

    Raises:
        ImageError: It is no array ``[F, H, W, C]``.
    """
    shape = getattr(frames, "shape", None)
    if shape is None or len(shape) != 4:
        given = f"a {type(frames).__name__}" + (f" of the shape {tuple(shape)}" if shape is not None else "")
        raise ImageError(f"frames is {given}; expected an array [F, H, W, C].")


def redact_alike(clip: Any, flagged: list[int], redaction: Redaction, judge: Judge) -> Any:
    """Redact frames of a clip in a copy, all in one way: the most detailed that lets all of them pass.

    Args:
        clip: ``[F, H, W, C]``, an array; never written to.
        flagged: Which frames.
        redaction: How, at most.
        judge: Looks at what would come out.

    Returns:
        The clip, or a copy if anything is redacted.
    """
    if not flagged or redaction.kind == "none":
        return clip
    batch, shown = read_images(clip), clip

    def passes(step: Redaction) -> bool:
        nonlocal shown
        shown = batch.replace(Redacted(batch, dict.fromkeys(flagged, step)))
        return step is steps[-1] or all(judge(read_images(shown[flagged])))

    steps = candidates(redaction, *clip.shape[1:3]) if redaction.verify else [redaction]
    most_detailed(steps, passes)
    return shown
