"""Rows: what is written down about one file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

# Label columns are named after the label with this before it, so that no label can be taken for another column.
LABEL_PREFIX = "p_"
SCHEMA_VERSION = 1
INTEGERS = ("size", "width", "height", "frames", "frame", "views")
NUMBERS = ("mtime", "score", "threshold", "decode_ms")


@dataclass(frozen=True)
class Row:
    """What is known of one file.

    ``flagged`` is ``None`` if ``error`` says why it could not be looked at; what was seen of a broken file before it
    broke can flag it all the same.

    Attributes:
        path: See ``Entry``.
        sha256: Of the content, in hex; ``None`` if it could not be read.
        size: In bytes.
        mtime: Seconds since 1970, if the source has it.
        etag: What else tells versions apart, if the source has it.
        flagged: Whether it is flagged by ``policy``.
        score: In [0, 1]; the greatest over all frames and views.
        threshold: Of the policy, in [0, 1].
        level: ``"neutral"``, ``"low"``, ``"medium"`` or ``"high"``.
        reason: Why it is flagged; see ``Verdict``.
        labels: Label → probability in [0, 1], of the view that decided. One column each, ``p_<label>``.
        kind: ``"image"``, ``"animation"`` or ``"video"``.
        width: Of the first frame, in pixels, upright.
        height: Of the first frame, in pixels, upright.
        frames: How many frames were looked at.
        frame: The index of the one that decided, from 0, in the file.
        views: How many views were looked at.
        model: ``id@revision``, or ``id@sha256:…`` of the weights.
        preprocessing: What else a score depends on.
        policy: ``Policy.to_dict`` as JSON.
        evidence: Where there are several views, those of them on which any policy's decision rests, as JSON:
            ``[[frame, [probability, …]], …]``, in the order of the labels.
        decode_ms: How long reading, hashing and decoding took, in milliseconds; 0 for a duplicate.
        scanned: When, UTC, ISO 8601.
        error: Why there is no score.
        warning: What of it could not be looked at, and why, where the rest was.
    """

    path: str
    sha256: str | None = None
    size: int | None = None
    mtime: float | None = None
    etag: str | None = None
    flagged: bool | None = None
    score: float | None = None
    threshold: float | None = None
    level: str | None = None
    reason: str | None = None
    labels: dict[str, float] = field(default_factory=dict)
    kind: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    frame: int | None = None
    views: int | None = None
    model: str = ""
    preprocessing: str = ""
    policy: str = ""
    evidence: str | None = None
    decode_ms: float = 0.0
    scanned: str = ""
    error: str | None = None
    warning: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the columns: the fields in order, with one column per label where ``labels`` is."""
        record: dict[str, Any] = {}
        for item in fields(self):
            if item.name == "labels":
                record.update((LABEL_PREFIX + label, value) for label, value in self.labels.items())
            else:
                record[item.name] = getattr(self, item.name)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Row:
        """Return the row of what ``to_record`` gave; label columns without a value are another model's."""
        names = {item.name for item in fields(cls)} - {"labels"}
        labels = {
            name[len(LABEL_PREFIX) :]: value
            for name, value in record.items()
            if name.startswith(LABEL_PREFIX) and value is not None
        }
        return cls(**{name: record[name] for name in names if name in record}, labels=labels)

    @property
    def looked_at(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """The views that any policy can decide on: the index of the frame, and a probability for each label."""
        if self.evidence is not None:
            return tuple((frame, tuple(view)) for frame, view in json.loads(self.evidence))
        return ((self.frame or 0, tuple(self.labels.values())),) if self.labels else ()
