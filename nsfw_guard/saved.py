"""A guard as a folder: its network as an ordinary checkpoint, and its settings in ``config.json``."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cards import CARDS
from .checkpoint import SAVED, read_config, read_saved
from .errors import CheckpointError, SettingError
from .files import write_whole
from .placement import Placement
from .policy import Policy
from .redact import Redaction
from .settings import DEFAULTS, redaction_values

if TYPE_CHECKING:
    from .guard import NsfwGuard

logger = logging.getLogger(__name__)

_PNG = "data:image/png;base64,"


def save_guard(
    folder: Path,
    guard: NsfwGuard,
    placement: Placement,
    *,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a guard.

    All is in the files that hosts take along when they fetch or copy a component: the weights, and ``config.json``,
    with the replacement picture within it.

    Args:
        folder: Made if it is not there.
        guard: What to write.
        placement: Of its weights.
        variant: Put into the names of the weights' files.
        max_shard_size: Of one file, such as ``"2GB"``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limit = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    classifier = guard.classifier
    with classifier.turns.shared(lambda: None):  # not in the middle of a cast: weights of two dtypes load nowhere
        classifier.network.save_pretrained(folder, variant=variant, **limit)
    settings = {
        "policy": guard.policy.to_dict(),
        "redaction": _to_dict(guard.redaction),
        "views": guard.views,
        "batch_size": guard.batch_size,
        "dtype": classifier.onnx.precision if classifier.onnx else str(placement.dtype or "auto"),
        "runtime": classifier.forward_path.runtime,
    }
    config = {**read_config(folder), SAVED: {"card": guard.card.to_dict(), "guard": settings}}
    write_whole(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def saved_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a guard was saved with, as ``NsfwGuard`` takes them; none if none was saved there.

    Raises:
        CheckpointError: They cannot be read.
    """
    saved = read_saved(folder)
    if saved is None:
        return {}
    try:
        settings = _table("guard", saved["guard"], DEFAULTS)
        settings["policy"] = Policy(**_table("policy", settings["policy"], Policy().to_dict()))
        redaction = _table("redaction", settings["redaction"], redaction_values(Redaction()), {"image"})
        settings["redaction"] = _redaction(redaction, folder)
    except (TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"The settings of the guard in {folder} cannot be read: {error}") from error
    return settings


def meant_by_host(model: Any, *, subfolder: str | None = None, revision: str | None = None) -> Any:
    """Return the folder of a saved guard for its path as text, which looks like a Hub id if it is relative.

    So do hosts name the components of a pipeline. Anything else is returned as it is; a name that is pinned, by its
    card or a revision, never means a folder.
    """
    if isinstance(model, str) and revision is None and CARDS.for_repo(model) is None:
        folder = Path(model, subfolder or "")
        if (folder / "config.json").is_file() and read_saved(folder) is not None:
            return Path(model)
    return model


@lru_cache(maxsize=1)
def say_safetensors_only() -> None:
    """Log, once, that a guard is never saved as a pickle."""
    logger.warning("A guard is saved as safetensors: safe_serialization=False does not apply to it.")


def _to_dict(redaction: Redaction) -> dict[str, Any]:
    values = redaction_values(redaction)
    if redaction.image is None:
        return values
    file = io.BytesIO()
    redaction.image.save(file, "PNG")
    return {**values, "image": _PNG + base64.b64encode(file.getvalue()).decode("ascii")}


def _table(
    name: str, values: Any, expected: Iterable[str], optional: frozenset[str] | set[str] = frozenset()
) -> dict[str, Any]:
    """Return a table that says everything: what it left out, or called otherwise, would be the default in silence.

    Raises:
        SettingError: It does not, or says something else.
    """
    if not isinstance(values, dict):
        raise SettingError(f"{name} is {values!r}; expected an object.")
    known = set(expected)
    if missing := sorted(known - values.keys()):
        raise SettingError(f"{name} does not say {missing}, which NsfwGuard.save_pretrained writes.")
    if unknown := sorted(values.keys() - known - optional):
        raise SettingError(f"{name} has {unknown}, which no guard of this version has; it has {sorted(known)}.")
    return dict(values)


def _redaction(values: dict[str, Any], folder: Path) -> Redaction:
    image = values.get("image")
    if isinstance(image, str):
        if image.startswith(_PNG):
            values["image"] = base64.b64decode(image.removeprefix(_PNG), validate=True)
        elif Path(image).name != image:
            raise SettingError(f"the replacement is {image[:80]!r}; expected a file of the folder.")
        else:
            values["image"] = folder / image
    return Redaction(**values)
