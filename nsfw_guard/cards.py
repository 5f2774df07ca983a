"""Model cards: what is known of a checkpoint, as data. The built-in ones are the TOML files in ``model_cards/``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import SettingError
from .policy import Policy
from .preprocess import PreprocessSpec
from .verdict import Level

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)

DEFAULT_CARD = "freepik"
CARD_FILE = "nsfw_guard.toml"
PACKAGE = "package:"

# What the template of a card has where somebody must say how severe a label is.
UNKNOWN = "?"
# Label names that need no card, by ``_words``. "anime", "anime picture" and "drawings" are the safe drawing classes of
# the five-class models, whose unsafe ones are "hentai" and "hentai picture"; "sensual" is "enticing or sensual" there.
VOCABULARY: Mapping[str, Level] = {
    **dict.fromkeys(
        ["normal", "sfw", "safe", "neutral", "safe content", "normal or safe", "drawings", "anime", "anime picture"],
        Level.NEUTRAL,
    ),
    **dict.fromkeys(["low", "suggestive", "sexy", "sensual", "enticing or sensual", "questionable"], Level.LOW),
    "medium": Level.MEDIUM,
    **dict.fromkeys(
        ["nsfw", "unsafe", "unsafe content", "porn", "pornography", "hentai", "hentai picture", "explicit", "high"],
        Level.HIGH,
    ),
}


@dataclass(frozen=True)
class Preset:
    """A policy's numbers for one model, with where they come from."""

    threshold: float
    level: Level = Level.MEDIUM
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", Level.parse(self.level))

    def policy(self) -> Policy:
        """Return the policy with these numbers."""
        return Policy(level=self.level, threshold=self.threshold)


@dataclass(frozen=True)
class Figure:
    """A published measurement of a model, quoted with its source."""

    metric: str
    value: float
    data: str
    source: str


_TEXT: tuple[Any, str] = (str, "text")
# A threshold of 0.5 on a two-label softmax is its argmax; nothing better is known of a model without a card. Of all
# presets, this one may be on a card whose labels cannot reach it: such a model needs a policy by numbers.
_ARGMAX = Preset(0.5, Level.MEDIUM, "argmax")


@dataclass(frozen=True)
class ModelCard:
    """What the guard must know of a checkpoint.

    Attributes:
        name: How the card is called, ``NsfwGuard(name)``.
        levels: Label name → how severe it is. Every label of the checkpoint must be here, and nothing else.
        repo: Where the checkpoint is: a Hub id (``org/name``), a local folder, or ``package:`` and a folder in this
            package.
        revision: The Hub commit, in full, so that the weights cannot change under a deployment.
        license: Licence of the weights.
        architecture: For people.
        preprocess: How the model wants its pictures; ``None`` reads it from the checkpoint's own files.
        presets: Preset name → threshold, level and source; ``balanced`` is the default policy.
        figures: Published measurements.
        note: When to take it, and what to know.

    Raises:
        SettingError: No label, a label whose level is none or still to be said, or a preset that no label can reach.
    """

    name: str
    levels: Mapping[str, Level] = field(hash=False)
    repo: str = ""
    revision: str | None = None
    license: str = ""
    architecture: str = ""
    preprocess: PreprocessSpec | None = None
    presets: Mapping[str, Preset] = field(default_factory=lambda: {"balanced": _ARGMAX}, hash=False)
    figures: tuple[Figure, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        self._check_kinds()
        if not isinstance(self.levels, Mapping) or not self.levels:
            raise SettingError(
                f"The card {self.name!r} has levels={self.levels!r}; expected label name → level, such as "
                '{"normal": "neutral", "nsfw": "high"}.'
            )
        if unsaid := [label for label, level in self.levels.items() if level == UNKNOWN]:
            raise SettingError(
                f'The card {self.name!r} does not say yet how severe {unsaid} are: write "neutral", "low", '
                f'"medium" or "high" for each {UNKNOWN!r}.'
            )
        levels = {str(label): Level.parse(level) for label, level in self.levels.items()}
        object.__setattr__(self, "levels", levels)
        if not any(levels.values()):
            raise SettingError(
                f"The card {self.name!r} has only neutral labels, {list(levels)}: it could flag nothing."
            )
        if not isinstance(self.presets, Mapping):
            raise SettingError(f"The card {self.name!r} has presets={self.presets!r}; expected name → Preset.")
        for name, preset in self.presets.items():
            if not isinstance(preset, Preset) or not isinstance(name, str):
                raise SettingError(f"The preset {name!r} of the card {self.name!r} is {preset!r}; expected a Preset.")
            policy = preset.policy()
            try:
                if preset != _ARGMAX:
                    policy.validate_for(levels)
            except SettingError as error:
                raise SettingError(f"The preset {name!r} of the card {self.name!r}: {error}") from error

    def _check_kinds(self) -> None:
        kinds: dict[str, tuple[Any, str]] = dict.fromkeys(("name", "repo", "license", "architecture", "note"), _TEXT)
        kinds["revision"] = (str | None, "a commit, as text")
        kinds["preprocess"] = (PreprocessSpec | None, "a PreprocessSpec")
        for name, (kind, expected) in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (name == "name" and not value):
                raise SettingError(f"A card has {name}={value!r}; expected {expected}.")
        if not isinstance(self.figures, tuple) or not all(isinstance(one, Figure) for one in self.figures):
            raise SettingError(f"The card {self.name!r} has figures={self.figures!r}; expected a tuple of Figure.")

    @property
    def identity(self) -> str:
        """The model as ``id@revision``; its name where it has no repository of its own."""
        repo = self.name if self.repo.startswith(PACKAGE) else self.repo or self.name
        return f"{repo}@{self.revision}" if self.revision else repo

    def policy(self, preset: str = "balanced") -> Policy:
        """Return the policy of a preset of this card.

        Raises:
            SettingError: The card has no such preset, or no label can reach it.
        """
        if preset not in self.presets:
            raise SettingError(
                f"policy is {preset!r}; the card {self.name!r} has the presets {sorted(self.presets)}. "
                "For numbers of your own: Policy(level=..., threshold=...)."
            )
        policy = self.presets[preset].policy()
        policy.validate_for(self.levels)
        return policy

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values, the same tables that a card file has."""
        table = asdict(self)
        table["levels"] = {label: level.value for label, level in self.levels.items()}
        table["presets"] = {
            name: {"threshold": preset.threshold, "level": preset.level.value, "source": preset.source}
            for name, preset in self.presets.items()
        }
        table["figures"] = [asdict(figure) for figure in self.figures]
        return {key: value for key, value in table.items() if value not in (None, "", [])}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, name: str = "card", source: str = "the card") -> ModelCard:
        """Return the card that ``to_dict`` or a TOML file wrote down.

        Args:
            table: The card's tables.
            name: The name to use where the table has none.
            source: Where the table comes from, for error messages.

        Raises:
            SettingError: A key is unknown, missing or has a value of the wrong kind.
        """
        table = dict(table)
        try:
            table.setdefault("name", name)
            if "preprocess" in table:
                table["preprocess"] = PreprocessSpec(**table["preprocess"])
            if "presets" in table:
                table["presets"] = {key: Preset(**preset) for key, preset in table["presets"].items()}
            if "figures" in table:
                table["figures"] = tuple(Figure(**figure) for figure in table["figures"])
            return cls(**table)
        except (TypeError, AttributeError, ValueError) as error:
            raise SettingError(f"{source} cannot be read: {error}") from error

    @classmethod
    def from_toml(cls, path: str | Path) -> ModelCard:
        """Read a card from a TOML file; one without a ``repo`` is about the folder that it lies in.

        A file that says only ``card = "falconsai"`` stands for that built-in card.

        Raises:
            SettingError: The file is not TOML, or not a card.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SettingError(f"{path} is not valid TOML: {error}") from error
        if set(table) == {"card"}:
            return CARDS.get(table["card"])
        return cls.from_dict(table, name=path.parent.name if path.name == CARD_FILE else path.stem, source=str(path))

    @classmethod
    def from_labels(cls, labels: tuple[str, ...], *, name: str, source: str) -> ModelCard:
        """Return a card for a checkpoint that has none, from the built-in vocabulary of label names.

        Raises:
            SettingError: A label is not in the vocabulary, or none of them is above neutral.
        """
        known = {label: VOCABULARY.get(_words(label)) for label in labels}
        if unknown := [label for label, level in known.items() if level is None]:
            said = {
                json.dumps(label, ensure_ascii=False): UNKNOWN if level is None else level
                for label, level in known.items()
            }
            example = ", ".join(f'{label}: "{level}"' for label, level in said.items())
            hint = f'   # {UNKNOWN} is "neutral", "low", "medium" or "high"'
            table = "\n".join(f'{label} = "{level}"{hint if level == UNKNOWN else ""}' for label, level in said.items())
            raise SettingError(
                f"{source} has the labels {list(labels)}, and it is not known how severe {unknown} are. Say it, "
                f"in Python:\n    NsfwGuard(..., card=ModelCard(name={name!r}, levels={{{example}}}))\n"
                f"or in a file {CARD_FILE} beside the weights:\n[levels]\n{table}"
            )
        return cls(name=name, levels=known)  # type: ignore[arg-type]  # none is None here


def _words(label: str) -> str:
    """Return a label's name as the vocabulary has it: in lower case, with single spaces between the words."""
    return " ".join(label.casefold().replace("_", " ").replace("-", " ").split())


def policy_for(card: ModelCard, policy: str | Policy | None) -> Policy:
    """Return the policy that a setting means for a model.

    Args:
        card: Of the model.
        policy: A preset of the card, a ``Policy``, or ``None`` for ``"balanced"``.

    Raises:
        SettingError: It is none of these, or does not fit the model.
    """
    if policy is None or isinstance(policy, str):
        preset = "balanced" if policy is None else policy
        found = card.policy(preset)
        if preset != "balanced" and card.presets.get("balanced") and found == card.presets["balanced"].policy():
            logger.warning(
                "The preset %r of the card %r is the same as %r: nobody has published other numbers for the model. "
                "For numbers of your own: Policy(level=..., threshold=...).",
                preset,
                card.name,
                "balanced",
            )
        return found
    if not isinstance(policy, Policy):
        raise SettingError(
            f"policy is {policy!r}; expected a Policy or one of the card's presets: {sorted(card.presets)}."
        )
    policy.validate_for(card.levels)
    return policy


class CardRegistry:
    """Cards by name. A name is registered once; a failed ``register`` changes nothing."""

    def __init__(self, cards: tuple[ModelCard, ...] = ()) -> None:
        self._cards: dict[str, ModelCard] = {}
        for card in cards:
            self.register(card)

    def register(self, card: ModelCard) -> ModelCard:
        """Add a card and return it.

        Raises:
            SettingError: It is no card, or its name is taken.
        """
        if not isinstance(card, ModelCard):
            raise SettingError(f"Expected a ModelCard, got {type(card).__name__}.")
        if card.name in self._cards:
            raise SettingError(f"There is a card {card.name!r} already; give yours another name.")
        self._cards[card.name] = card
        return card

    def get(self, name: str) -> ModelCard:
        """Return the card of a name.

        Raises:
            SettingError: There is none.
        """
        if not isinstance(name, str) or name not in self._cards:
            raise SettingError(
                f"There is no model card {name!r}. Cards: {', '.join(sorted(self._cards))}. "
                'A Hub id has the form "org/name"; a local folder must exist.'
            )
        return self._cards[name]

    def for_repo(self, repo: str) -> ModelCard | None:
        """Return the card about a Hub id, in any case, if there is one."""
        return next((card for card in self if card.repo.casefold() == repo.casefold()), None)

    def __contains__(self, name: object) -> bool:
        """Whether there is a card of that name."""
        return name in self._cards

    def __iter__(self) -> Iterator[ModelCard]:
        """Iterate over the cards in the order of registration."""
        return iter(tuple(self._cards.values()))


def _builtin() -> CardRegistry:
    folder = Path(__file__).parent / "model_cards"
    order = [DEFAULT_CARD, "falconsai", "marqo", "adamcodd", "demo"]
    return CardRegistry(tuple(ModelCard.from_toml(folder / f"{name}.toml") for name in order))


CARDS = _builtin()
