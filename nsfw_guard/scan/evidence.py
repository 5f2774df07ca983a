"""From the scores of frames to the row of a file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from ..cards import ModelCard
from ..policy import Policy, tail_score
from ..verdict import Level, Scores
from .row import Row

View = tuple[float, ...]


@dataclass
class Evidence:
    """Of all views of all frames of a file, those on which any policy's decision rests.

    So memory does not grow with a clip. They are, for each level and each label, the first view with the greatest
    score. ``Policy.decide`` gives the same on them as on all views.

    Attributes:
        frames: How many frames were added, however many looks at each.
        views: How many views.
        problem: Why a frame could not be scored; see ``Scores``.
    """

    frames: int = 0
    views: int = 0
    problem: str | None = None
    _last: int | None = None
    # By what they are the best of: a level, a label, which may have the name of a level, or a problem.
    _best: dict[tuple[str, str], tuple[float, tuple[int, int], View]] = field(default_factory=dict)

    def add(self, scores: Scores, image: int, frame: int) -> None:
        """Add one image of some scores, as a frame with its index in the file."""
        if frame != self._last:  # the looks at one frame come one after the other
            self.frames += 1
            self._last = frame
        self.problem = self.problem or scores.problems[image]
        levels = [scores.card.levels[label] for label in scores.labels]
        for view in scores.probabilities[image]:
            self.views += 1
            if not all(map(math.isfinite, view)):
                self._best.setdefault(("problem", "non_finite"), (math.nan, (frame, self.views), view))
                continue
            values = {("level", level.value): tail_score(view, levels, level) for level in Level if level}
            values.update((("label", label), p) for label, p in zip(scores.labels, view, strict=True))
            for key, value in values.items():
                if key not in self._best or value > self._best[key][0]:
                    self._best[key] = (value, (frame, self.views), view)

    def looked_at(self) -> tuple[tuple[int, View], ...]:
        """Return them in order: the index of the frame, and a probability for each label."""
        places = dict(sorted((place, view) for _, place, view in self._best.values()))
        return tuple((frame, view) for (frame, _), view in places.items())


class Decider:
    """Makes rows of scores, and decides rows again.

    Args:
        card: Of the model.
        labels: Of the model.
        policy: By which files are flagged, each by itself.
        model: For the rows.
        preprocessing: For the rows.

    Raises:
        SettingError: The policy does not fit the model.
    """

    def __init__(
        self, card: ModelCard, labels: tuple[str, ...], policy: Policy, *, model: str, preprocessing: str
    ) -> None:
        self.card, self.labels = card, labels
        self.policy = replace(policy, batch="each")
        policy.validate_for(card.levels)
        self.model, self.preprocessing = model, preprocessing
        self._policy = json.dumps(self.policy.to_dict(), sort_keys=True)

    def row(self, path: str, evidence: Evidence, *, error: str | None = None, **known: object) -> Row:
        """Return the row of a file: decided, or with its error.

        Args:
            path: The file's.
            evidence: Of all its frames.
            error: Why there is none.
            known: What else the row holds.
        """
        row = Row(path, model=self.model, preprocessing=self.preprocessing, scanned=now(), **known)  # type: ignore[arg-type]
        failed = replace(row, error=error or "holds no frame", policy=self._policy)
        if not evidence.frames:
            return failed
        looked_at = evidence.looked_at()
        single = len(looked_at) == 1 and evidence.problem is None
        row = replace(
            row, frames=evidence.frames, views=evidence.views, evidence=None if single else json.dumps(looked_at)
        )
        decided = self._decide(replace(row, error=error), looked_at, evidence.problem)
        # What was seen of a broken file can condemn it, and cannot clear it.
        return decided if error is None or decided.flagged else failed

    def again(self, row: Row) -> Row:
        """Return a row as this policy decides it, without the model."""
        if row.policy == self._policy or row.error is not None:
            return row
        looked_at = row.looked_at
        if row.evidence is None:  # columns may have come in another order
            looked_at = ((row.frame or 0, tuple(row.labels[label] for label in self.labels)),)
        problem = row.reason if row.reason in ("non_finite", "too_long") else None
        return self._decide(row, looked_at, problem)

    def _decide(self, row: Row, looked_at: tuple[tuple[int, View], ...], problem: str | None) -> Row:
        views = tuple(view for _, view in looked_at)
        verdict = self.policy.decide(Scores(self.card, self.labels, (views,), (problem,)))[0]
        deciding = tuple(verdict.labels.values())
        return replace(
            row,
            flagged=verdict.flagged,
            score=verdict.score,
            threshold=verdict.threshold,
            level=verdict.level.value,
            reason=verdict.reason,
            labels=dict(verdict.labels),
            frame=next((frame for frame, view in looked_at if view == deciding), None),
            policy=self._policy,
        )


def now() -> str:
    """Return the time, UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
