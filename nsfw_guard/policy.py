"""From scores to verdicts. The one place where a score is compared with a threshold."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import SettingError
from .verdict import Level, Scores, Verdict

BATCH_RULES = ("each", "any")
# By how much what is shown instead of a flagged image stays below the thresholds, in logits: 0.45 where 0.5 is flagged.
# Another batch size or half precision moves a logit by less.
ROOM = 0.2


@dataclass(frozen=True)
class Policy:
    """When an image is flagged.

    An image is flagged when ``score >= threshold``, where the score is the sum of the probabilities of all labels at
    or above ``level``, or when any label named in ``per_label`` reaches its own threshold.

    Attributes:
        level: The least severe level that counts; a ``Level`` or its name.
        threshold: In [0, 1].
        per_label: Label name → threshold in [0, 1], in addition to the score.
        batch: ``"each"`` judges every image by itself; with ``"any"``, one flagged image flags its whole batch.

    Raises:
        SettingError: A threshold is not a number in [0, 1], or another value is not one of its choices.
    """

    level: Level = Level.MEDIUM
    threshold: float = 0.5
    per_label: Mapping[str, float] = field(default_factory=dict, hash=False)
    batch: str = "each"

    def __post_init__(self) -> None:
        # Frozen: the normalised values are written past the dataclass's own guard.
        object.__setattr__(self, "level", Level.parse(self.level))
        object.__setattr__(self, "threshold", _probability("threshold", self.threshold))
        if not isinstance(self.per_label, Mapping):
            raise SettingError(
                f'per_label is {self.per_label!r}; expected a mapping such as {{"nsfw": 0.3}}, label name → threshold.'
            )
        per_label = {
            str(label): _probability(f"per_label[{label!r}]", value) for label, value in self.per_label.items()
        }
        object.__setattr__(self, "per_label", per_label)
        if self.batch not in BATCH_RULES:
            raise SettingError(f'batch is {self.batch!r}; expected "each" or "any".')

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as plain values that ``json.dumps`` takes; ``Policy(**values)`` makes it again."""
        return {
            "level": self.level.value,
            "threshold": self.threshold,
            "per_label": dict(self.per_label),
            "batch": self.batch,
        }

    def validate_for(self, levels: Mapping[str, Level]) -> None:
        """Refuse label names that a model does not have, and a policy that nothing the model says could reach.

        Args:
            levels: Label name → how severe it is, of all labels of the model: ``ModelCard.levels``.

        Raises:
            SettingError: ``per_label`` names another label; or no label counts: none is of the policy's level or above
                it, and none above neutral is in ``per_label``.
        """
        unknown = [label for label in self.per_label if label not in levels]
        if unknown:
            raise SettingError(
                f"per_label names {unknown}, which the model does not have; its labels are {list(levels)}."
            )
        highest = max(levels.values())
        if highest < self.level and not any(levels[label] for label in self.per_label):
            severe = next(label for label, level in levels.items() if level is highest)
            table = ", ".join(f"{label!r} ({level})" for label, level in levels.items())
            raise SettingError(
                f"A policy of the level {self.level.value!r} could flag nothing: no label of the model is that severe. "
                f"The labels are {table}. Take a lower level, Policy(level=Level.{highest.name}), or a threshold for a "
                f"label, Policy(per_label={{{severe!r}: 0.5}}). In a card: [presets.balanced] with level = "
                f'"{highest}" and a threshold.'
            )

    def with_room(self) -> Policy:
        """Return a stricter policy: its thresholds are lower by ``ROOM`` in logits, and each image is by itself.

        What passes it passes this one too after rounding to 8 bits, or in another batch.
        """
        lower = {label: _lower(threshold) for label, threshold in self.per_label.items()}
        return Policy(level=self.level, threshold=_lower(self.threshold), per_label=lower)

    def decide(self, scores: Scores) -> list[Verdict]:
        """Return one verdict per image of ``scores``; no model and no pixel is needed.

        Raises:
            SettingError: The policy does not fit the model; see ``validate_for``.
        """
        self.validate_for({label: scores.card.levels[label] for label in scores.labels})
        verdicts = [
            self._judge(scores, views, problem)
            for views, problem in zip(scores.probabilities, scores.problems, strict=True)
        ]
        return one_flags_all(verdicts) if self.batch == "any" else verdicts

    def _judge(self, scores: Scores, views: tuple[tuple[float, ...], ...], problem: str | None) -> Verdict:
        model = scores.card.identity
        if problem is None and not all(math.isfinite(p) for view in views for p in view):
            problem = "non_finite"
        if problem is not None or not views:
            unscored = problem or "unscored"
            return Verdict(True, 1.0, self.threshold, Level.HIGH, {}, unscored, model=model, views=len(views))
        levels = [scores.card.levels[label] for label in scores.labels]
        tails = {level: [tail_score(view, levels, level) for view in views] for level in Level}
        deciding = max(range(len(views)), key=tails[self.level].__getitem__)
        score = tails[self.level][deciding]
        reason: str | None = "score" if score >= self.threshold else None
        if reason is None and (over := self._view_over_a_label_threshold(scores.labels, views)) is not None:
            reason, deciding = "label", over
        return Verdict(
            flagged=reason is not None,
            score=score,
            threshold=self.threshold,
            level=max(
                (level for level in Level if level and max(tails[level]) >= self.threshold), default=Level.NEUTRAL
            ),
            labels=dict(zip(scores.labels, views[deciding], strict=True)),
            reason=reason,
            model=model,
            views=len(views),
        )

    def _view_over_a_label_threshold(self, labels: tuple[str, ...], views: tuple[tuple[float, ...], ...]) -> int | None:
        for index, view in enumerate(views):
            probabilities = dict(zip(labels, view, strict=True))
            if any(probabilities[label] >= threshold for label, threshold in self.per_label.items()):
                return index
        return None


def one_flags_all(verdicts: list[Verdict]) -> list[Verdict]:
    """Return what ``batch="any"`` makes of the verdicts on one batch."""
    if not any(verdict.flagged for verdict in verdicts):
        return verdicts
    return [verdict if verdict.flagged else replace(verdict, flagged=True, reason="batch") for verdict in verdicts]


def tail_score(view: tuple[float, ...], levels: list[Level], at_least: Level) -> float:
    """Return the sum of the probabilities of the labels at or above a level, in [0, 1]."""
    total = math.fsum(p for p, level in zip(view, levels, strict=True) if level >= at_least)
    return min(max(total, 0.0), 1.0)


def _lower(threshold: float) -> float:
    return threshold / (threshold + (1 - threshold) * math.exp(ROOM))


def _probability(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:  # type: ignore[operator]
        raise SettingError(f"{name} is {value!r}; expected a number in [0, 1], such as 0.5.")
    return float(value)
