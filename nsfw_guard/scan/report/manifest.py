"""What ``scan.json`` says about a scan as a whole. All of it but the version may be missing."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import parts


@dataclass(frozen=True)
class Manifest:
    """A scan as a whole; what its file does not say is empty.

    Attributes:
        created: When it was begun, UTC, ISO 8601.
        model: ``id@revision``, or ``id@sha256:…`` of the weights.
        preprocessing: What else a score depends on.
        policy: ``Policy.to_dict``.
        labels: Of the model, in the order of its outputs.
        sources: What was asked to be scanned.
        summary: What the scanner counted when it had finished; ``None`` if it has not.
    """

    created: str = ""
    model: str = ""
    preprocessing: str = ""
    policy: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    summary: dict[str, Any] | None = None

    @property
    def threshold(self) -> float | None:
        """The policy's threshold, in [0, 1]."""
        return probability(self.policy.get("threshold"))

    @property
    def identity(self) -> str:
        """What tells this scan from others, in hex: a page about it that is written again keeps its decisions."""
        what = json.dumps([self.created, self.model, self.policy, list(self.sources)], sort_keys=True, default=str)
        return hashlib.sha256(what.encode()).hexdigest()[:16]


def read_manifest(out: Path) -> Manifest:
    """Read what a scan says about itself.

    Raises:
        SettingError: There is no scan, its manifest is damaged, or it is of another version.
    """
    values = parts.read_manifest(out)
    summary, policy = values.get("summary"), values.get("policy")
    return Manifest(
        created=_text(values.get("created")),
        model=_text(values.get("model")),
        preprocessing=_text(values.get("preprocessing")),
        policy=policy if isinstance(policy, dict) else {},
        labels=_texts(values.get("labels")),
        sources=_texts(values.get("sources")),
        summary=summary if isinstance(summary, dict) else None,
    )


def finite(value: Any) -> float | None:
    """Return a number if it is one that JSON can hold; else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def probability(value: Any) -> float | None:
    """Return a number in [0, 1] if it is one; else ``None``."""
    number = finite(value)
    return number if number is not None and 0 <= number <= 1 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, (list, tuple)) else ()
