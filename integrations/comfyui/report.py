"""What was decided, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Verdict

_NOT_REDACTED = {"redacted": None, "verified": None}
# Lines on a node: more than that hide the graph.
_LINES = 8


def as_json(
    verdicts: list[Verdict],
    policy: Policy,
    action: str,
    told: Mapping[int, dict[str, Any]] | None = None,
    *,
    indices: Sequence[int] | None = None,
    **more: Any,
) -> str:
    """Return one JSON object: whether anything is flagged, what was asked, and one verdict per image.

    Args:
        verdicts: One per image.
        policy: By which it was decided.
        action: What was to be done.
        told: What became of the redacted ones, by index; see ``redaction.Shown.told``.
        indices: Of the images that the verdicts are about; ``None`` for all, in order.
        more: Further entries.
    """
    numbered = _numbered(verdicts, indices)
    return json.dumps(
        {
            "flagged": any(verdict.flagged for verdict in verdicts),
            "flagged_indices": [index for index, verdict in numbered.items() if verdict.flagged],
            "action": action,
            "policy": policy.to_dict(),
            **more,
            "verdicts": [
                {"index": index, **as_dict(verdict, (told or {}).get(index))} for index, verdict in numbered.items()
            ],
        },
        indent=1,
    )


def as_dict(verdict: Verdict, told: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a verdict and what became of its image as plain values."""
    return {**verdict.to_dict(), **(told or _NOT_REDACTED)}


def as_text(
    verdicts: list[Verdict],
    action: str,
    told: Mapping[int, dict[str, Any]] | None = None,
    *,
    checkpoint: str | None = None,
    indices: Sequence[int] | None = None,
    total: int | None = None,
    noun: str = "image",
    most: int = _LINES,
) -> str:
    """Return a few lines for the node: how many are flagged, the scores, what became of them, and who decided.

    Args:
        verdicts: One per image.
        action: What was to be done.
        told: As for ``as_json``.
        checkpoint: Whose scores they are.
        indices: As for ``as_json``.
        total: How many images there are, if not all were looked at.
        noun: What an image is called.
        most: Images that get a line.
    """
    numbered = _numbered(verdicts, indices)
    flagged = sum(verdict.flagged for verdict in verdicts)
    total = len(verdicts) if total is None else total
    count = f"{total} {noun}{'s' if total != 1 else ''}"
    if total != len(verdicts):
        count += f", {len(verdicts)} looked at"
    lines = [f"{count}: none flagged" if not flagged else f"{count}: {flagged} FLAGGED, {action}"]
    # The worst, and of equals the first; in the order of the batch.
    worst = sorted(numbered, key=lambda index: (not numbered[index].flagged, -numbered[index].score))
    for index in sorted(worst[:most]):
        verdict = numbered[index]
        sign = ">=" if verdict.score >= verdict.threshold else "<"
        why = "" if verdict.reason in (None, "score") else f"  ({verdict.reason})"
        mark = "FLAGGED" if verdict.flagged else "ok"
        lines.append(f"{index}: {mark}  {verdict.score:.2f} {sign} {verdict.threshold:.2f}{why}{_became(told, index)}")
    if len(verdicts) > most:
        lines.append(f"... and {len(verdicts) - most} more")
    return "\n".join([*lines, *([f"classifier: {checkpoint}"] if checkpoint else [])])


def _numbered(verdicts: list[Verdict], indices: Sequence[int] | None) -> dict[int, Verdict]:
    return dict(zip(range(len(verdicts)) if indices is None else indices, verdicts, strict=True))


def _became(told: Mapping[int, dict[str, Any]] | None, index: int) -> str:
    if not told or index not in told:
        return ""
    return f"  {told[index]['redacted']}{'' if told[index]['verified'] else ', not verified'}"


def as_ui(text: str, report: str) -> dict[str, tuple[str, ...]]:
    """Return what ``web/js/verdict.js`` draws on the node and ``/history`` keeps; always the same keys."""
    return {"text": (text,), "nsfw_guard": (report,)}


def as_mask(verdicts: list[Verdict], images: Tensor) -> Tensor:
    """Return ``[B, H, W]``: 1 all over each flagged image."""
    flags = torch.tensor([float(verdict.flagged) for verdict in verdicts], device=images.device)
    return flags[:, None, None].expand(-1, *images.shape[1:3]).clone()
