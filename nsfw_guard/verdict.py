"""What the guard found and what was decided: Level, Scores, Verdict, GuardResult."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import SettingError

if TYPE_CHECKING:
    from .cards import ModelCard


class Level(str, enum.Enum):
    """How severe a label is: ``NEUTRAL < LOW < MEDIUM < HIGH``.

    A level is written as its lower-case name, by ``json.dumps``, ``dataclasses.asdict`` and pydantic too. It compares
    and counts as a number from 0 to 3.
    """

    severity: int

    NEUTRAL = "neutral"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    def __new__(cls, name: str) -> Level:
        """Make one, more severe than those before it."""
        level = str.__new__(cls, name)
        level._value_ = name
        level.severity = len(cls.__members__)
        return level

    @classmethod
    def _missing_(cls, value: object) -> Level | None:
        return next((level for level in cls if isinstance(value, int) and level.severity == value), None)

    # Text would compare by the alphabet.
    def __lt__(self, other: object) -> bool:
        return self.severity < _severity(other)

    def __le__(self, other: object) -> bool:
        return self.severity <= _severity(other)

    def __gt__(self, other: object) -> bool:
        return self.severity > _severity(other)

    def __ge__(self, other: object) -> bool:
        return self.severity >= _severity(other)

    def __eq__(self, other: object) -> bool:
        return self.severity == other if isinstance(other, int) else str.__eq__(self, other)

    __hash__ = str.__hash__

    def __bool__(self) -> bool:
        return self.severity > 0

    def __index__(self) -> int:
        return self.severity

    def __sub__(self, other: object) -> int:
        return self.severity - _severity(other)

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def parse(cls, value: Level | str) -> Level:
        """Return the level for a ``Level`` or its name in any case.

        Raises:
            SettingError: There is no such level.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        names = ", ".join(repr(name.lower()) for name in cls.__members__)
        raise SettingError(f"level is {value!r}; expected a Level or one of {names}.")


def _severity(value: object) -> int:
    """Return the number of a level, of its name, or the number itself."""
    return value if isinstance(value, int) else Level.parse(value).severity  # type: ignore[arg-type]


class _NoTruth:
    """A result whose truth value is an error, so that ``if verdict:`` cannot compile into a wrong decision."""

    def __bool__(self) -> NoReturn:
        name = type(self).__name__
        hint = "len(scores)" if name == "Scores" else f"{'result' if name == 'GuardResult' else 'verdict'}.flagged"
        raise TypeError(f"The truth value of a {name} is ambiguous; write {hint}.")


@dataclass(frozen=True)
class Scores(_NoTruth):
    """Label probabilities of a batch: everything that a decision needs, without the model or the pixels.

    Attributes:
        card: The card of the model that was asked.
        labels: The model's label names, in the order of its outputs.
        probabilities: Per image, per view, one probability in [0, 1] for each label (softmax in float32).
        problems: Per image ``None``, or why it could not be scored: ``"non_finite"`` or ``"too_long"``.
    """

    card: ModelCard
    labels: tuple[str, ...]
    probabilities: tuple[tuple[tuple[float, ...], ...], ...]
    problems: tuple[str | None, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.probabilities)


@dataclass(frozen=True)
class Verdict(_NoTruth):
    """The decision on one image.

    Attributes:
        flagged: Whether the image must not be shown as it is.
        score: The score that was compared with the threshold, in [0, 1]; the maximum over the views. 1.0 for an image
            that could not be scored (see ``reason``), so that a comparison of one's own fails closed too.
        threshold: The threshold of the policy, in [0, 1].
        level: The most severe level whose own tail score reaches the threshold; ``HIGH`` if there is no score.
        labels: Label name → probability, of the view that decided. Empty if there is no score.
        reason: Why it was flagged: ``"score"``, ``"label"`` (a threshold of ``Policy.per_label``), ``"batch"``
            (another image of the batch, with ``Policy(batch="any")``), ``"non_finite"``, ``"too_long"``, ``"early"``;
            ``None`` if it was not.
        model: The model that was asked, as ``id@revision``.
        views: How many views of the image the model was shown.
    """

    flagged: bool
    score: float
    threshold: float
    level: Level
    labels: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    model: str = ""
    views: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values that ``json.dumps`` takes; the level is its lower-case name."""
        return {
            "flagged": self.flagged,
            "score": self.score,
            "threshold": self.threshold,
            "level": self.level.value,
            "labels": dict(self.labels),
            "reason": self.reason,
            "model": self.model,
            "views": self.views,
        }


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict that a whole goes by: flagged before unflagged, then the highest score."""
    return max(verdicts, key=lambda verdict: (verdict.flagged, verdict.score))


@dataclass(frozen=True)
class GuardResult(_NoTruth):
    """Images that may be shown, and the verdict on each.

    Attributes:
        images: What the caller handed in, of the same type, shape, dtype, device and range, with the flagged ones
            redacted and the others bit-identical.
        verdicts: One verdict per image, in order.
    """

    images: Any
    verdicts: list[Verdict]

    @property
    def flags(self) -> list[bool]:
        """One plain bool per image: whether it was flagged."""
        return [verdict.flagged for verdict in self.verdicts]

    @property
    def flagged(self) -> bool:
        """Whether any image was flagged."""
        return any(self.flags)
