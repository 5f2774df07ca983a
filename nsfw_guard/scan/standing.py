"""What the verdicts in a folder were made by: a scan that goes on there judges by the same, unless told otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cards import CARDS, PACKAGE
from ..errors import SettingError
from ..identity import model_identity
from ..policy import Policy
from .parts import FORMATS, part_files, read_manifest

if TYPE_CHECKING:
    from ..guard import NsfwGuard
    from .evidence import Decider

# The parts of ``ScanSettings.preprocessing`` that can be chosen.
_CHOSEN = re.compile(r"-(\w+)-(exact|dct2)-every(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Standing:
    """What the verdicts in a folder were made by; ``None``: it does not say.

    Attributes:
        identity: Of the model; see ``model_identity``.
        model: What to give ``NsfwGuard`` for it: a card's name or a folder.
        policy: By which files were flagged.
        views: Of the guard.
        exact: See ``ScanSettings``.
        every: See ``ScanSettings``.
        form: Of the rows, as ``run_scan`` takes it.
    """

    identity: str
    model: str | None = None
    policy: Policy | None = None
    views: str | None = None
    exact: bool | None = None
    every: int | None = None
    form: str | None = None


def standing(out: Path) -> Standing | None:
    """Return what the verdicts in a folder were made by; ``None``: there are none.

    Raises:
        SettingError: What a scan wrote there is damaged, or of another version.
    """
    manifest = read_manifest(out, missing_ok=True)
    if not manifest or not part_files(out):
        return None
    identity = str(manifest.get("model") or "")
    model = manifest.get("loads")
    if model is None:  # an earlier version does not say
        known = (card.name for card in CARDS if identity.partition("@sha256:")[0] == card.identity)
        model = next(known, None)
    chosen = _CHOSEN.search(str(manifest.get("preprocessing")))
    views, decoding, every = chosen.groups() if chosen else (None, None, None)
    return Standing(
        identity,
        model=None if model is None else str(model),
        policy=_policy(manifest.get("policy")),
        views=views,
        exact=None if decoding is None else decoding == "exact",
        every=None if every is None else int(every),
        form=manifest["format"] if manifest.get("format") in (*FORMATS, "csv") else None,
    )


def loads(guard: NsfwGuard) -> str | None:
    """Return what ``NsfwGuard`` is to be given for the same model; ``None``: it was made of a network in memory."""
    card, folder = guard.card, guard.classifier.folder
    packaged = card.repo.startswith(PACKAGE) and folder is not None and folder.is_relative_to(Path(__file__).parents[1])
    known = card.name in CARDS and CARDS.get(card.name).identity == card.identity
    if known and (packaged or model_identity(guard) == card.identity):
        return card.name
    return None if folder is None else os.path.abspath(folder)


def same_as(decider: Decider, out: Path) -> Callable[[dict[str, Any]], None]:
    """Return what refuses the manifest of verdicts that were made by something else than a scan decides by now."""

    def check(manifest: dict[str, Any]) -> None:
        policy = _policy(manifest.get("policy"))
        pairs = (
            ("model", manifest.get("model"), decider.model),
            ("preprocessing", manifest.get("preprocessing"), decider.preprocessing),
            ("policy", manifest.get("policy") if policy is None else policy.to_dict(), decider.policy.to_dict()),
        )
        changed = {name: (was, now) for name, was, now in pairs if was != now}
        other = [f"{name} {was} (now {now})" for name, (was, now) in changed.items()]
        if (
            list(changed) == ["preprocessing"]
            and len({str(one).rpartition("-")[0] for one in changed.popitem()[1]}) == 1
        ):
            raise SettingError(
                f"{out} holds verdicts by another {other[0]}: another version of nsfw_guard made them, or another card "
                "of the model. Add --rejudge (rejudge=True) to look at everything in it anew, or name another folder."
            )
        if other:
            raise SettingError(
                f"{out} holds verdicts by another {'; another '.join(other)}. What was reviewed would be judged "
                "otherwise. Leave out --model, --policy, --threshold, --views, --exact and --every to go on as before, "
                "add --rejudge (rejudge=True) to judge everything in it anew, or name another folder."
            )

    return check


def _policy(values: Any) -> Policy | None:
    try:
        return Policy(**values)
    except (TypeError, ValueError):
        return None
