"""What was decided, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Verdict

# Lines on a node: more than that hide the graph.
_LINES = 8


def as_json(verdicts: list[Verdict], policy: Policy, action: str, **more: Any) -> str:
    """Return one JSON object: whether anything is flagged, what was asked, and one verdict per image."""
    return json.dumps(
        {
            "flagged": any(verdict.flagged for verdict in verdicts),
            "flagged_indices": [index for index, verdict in enumerate(verdicts) if verdict.flagged],
            "action": action,
            "policy": policy.to_dict(),
            **more,
            "verdicts": [{"index": index, **verdict.to_dict()} for index, verdict in enumerate(verdicts)],
        },
        indent=1,
    )


def as_text(verdicts: list[Verdict], action: str, *, noun: str = "image", most: int = _LINES) -> str:
    """Return a few lines for the node: how many are flagged, and the scores."""
    flagged = sum(verdict.flagged for verdict in verdicts)
    count = f"{len(verdicts)} {noun}{'s' if len(verdicts) != 1 else ''}"
    lines = [f"{count}: none flagged" if not flagged else f"{count}: {flagged} FLAGGED, {action}"]
    # The worst, and of equals the first; in the order of the batch.
    worst = sorted(range(len(verdicts)), key=lambda i: (not verdicts[i].flagged, -verdicts[i].score))
    for index in sorted(worst[:most]):
        verdict = verdicts[index]
        sign = ">=" if verdict.score >= verdict.threshold else "<"
        why = "" if verdict.reason in (None, "score") else f"  ({verdict.reason})"
        mark = "FLAGGED" if verdict.flagged else "ok"
        lines.append(f"{index}: {mark}  {verdict.score:.2f} {sign} {verdict.threshold:.2f}{why}")
    if len(verdicts) > most:
        lines.append(f"... and {len(verdicts) - most} more")
    return "\n".join(lines)


def as_ui(text: str, report: str) -> dict[str, tuple[str, ...]]:
    """Return what ``web/js/verdict.js`` draws on the node and ``/history`` keeps; always the same keys."""
    return {"text": (text,), "nsfw_guard": (report,)}


def as_mask(verdicts: list[Verdict], images: Tensor) -> Tensor:
    """Return ``[B, H, W]``: 1 all over each flagged image."""
    flags = torch.tensor([float(verdict.flagged) for verdict in verdicts], device=images.device)
    return flags[:, None, None].expand(-1, *images.shape[1:3]).clone()
