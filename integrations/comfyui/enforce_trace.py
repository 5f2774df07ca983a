"""What a redaction of the operator leaves behind: a line in the server's log, one in the audit log, and its report."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from pathlib import Path
from typing import Any

from nsfw_guard.audit import AuditLog
from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Verdict

from . import report

logger = logging.getLogger(__name__)

_OPEN: dict[Path, AuditLog] = {}
_LOCK = threading.Lock()


def audit_log(folder: Path) -> AuditLog:
    """Return the audit log of this process, opened once.

    Raises:
        AuditError: Another process writes to it, or it is not intact.
        OSError: It cannot be opened.
    """
    with _LOCK:
        if folder not in _OPEN:
            folder.mkdir(parents=True, exist_ok=True)
            _OPEN[folder] = AuditLog(folder / "audit-comfyui.jsonl")
            if len(_OPEN) == 1:
                atexit.register(close)
        return _OPEN[folder]


def close() -> None:
    """Close the logs."""
    with _LOCK:
        while _OPEN:
            _OPEN.popitem()[1].close()


def leave(
    verdicts: list[Verdict],
    told: dict[int, dict[str, Any]],
    policy: Policy,
    action: str,
    *,
    where: str,
    audit: Path | None,
) -> dict[str, tuple[str, ...]]:
    """Tell the server's log, and the audit log if there is one, what was flagged and what became of it.

    Args:
        verdicts: On all that was looked at.
        told: What became of the flagged ones, by index.
        policy: By which it was decided.
        action: What was to be done.
        where: Which guard, as the prompt names it.
        audit: The folder of the audit log.

    Returns:
        What ``/history`` keeps of it.

    Raises:
        AuditError: The log cannot be written: nothing goes on without a trace.
        OSError: Likewise.
    """
    flagged = [(index, verdict) for index, verdict in enumerate(verdicts) if verdict.flagged]
    worst = max(verdict.score for _, verdict in flagged)
    done = sorted({told[index]["redacted"] for index, _ in flagged if index in told}) or [action]
    logger.warning(
        "%s: %d of %d flagged (highest score %.2f): %s.", where, len(flagged), len(verdicts), worst, ", ".join(done)
    )
    if audit is not None:
        records = (
            {
                "event": "redacted",
                "where": where,
                "index": index,
                "action": action,
                **report.as_dict(verdict, told.get(index)),
                "process": os.getpid(),
            }
            for index, verdict in flagged
        )
        audit_log(audit).append(*records)
    text = report.as_text(verdicts, action, told)
    return report.as_ui(text, report.as_json(verdicts, policy, action, told, by="the operator of this server"))
