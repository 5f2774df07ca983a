"""Where checkpoints are: cards, local folders, the Hub. Safetensors only; nothing from a repository is executed."""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cards import CARD_FILE, CARDS, DEFAULT_CARD, PACKAGE, ModelCard
from .errors import CheckpointError, GuardError, SettingError, one_line
from .files import write_new
from .preprocess import PreprocessSpec
from .weights import INDEX as INDEX  # handed on
from .weights import WEIGHTS as WEIGHTS
from .weights import find_weights

logger = logging.getLogger(__name__)

# NsfwGuard.save_pretrained writes the guard's settings, and its card with the tables of a card file, under this name
# into config.json, which is what hosts fetch and copy; earlier versions wrote the two files.
SAVED = "nsfw_guard"
SAVED_FILE = "nsfw_guard.json"
SAVED_PICTURE = "replacement.png"
_PATTERNS = [
    "config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index*.json",
    CARD_FILE, SAVED_FILE, SAVED_PICTURE,
]  # fmt: skip
# A name that starts with a dot is the path of a folder.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMMIT = re.compile("[0-9a-f]{40}")


def find_checkpoint(
    model: str | Path | ModelCard | None = None,
    *,
    card: str | ModelCard | None = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    local_files_only: bool = False,
) -> tuple[Path, ModelCard]:
    """Find a checkpoint's folder, downloading it if it is on the Hub only, and the card that goes with it.

    Args:
        model: A card or its name, a Hub id (``org/name``), or a local folder; ``None`` is the default card. A name that
            is pinned, by its card or ``revision``, never means a folder; another Hub id that is a folder too is an
            error.
        card: The card of a folder or Hub id, where it does not follow from the label names.
        revision: A Hub revision instead of the card's own.
        variant: Of the weights; see ``find_weights``.
        subfolder: Where in the folder or repository the checkpoint is, as in that of a pipeline.
        local_files_only: Never ask the Hub.

    Returns:
        The folder, checked to hold a config and safetensors, and the card, with its preprocessing filled in.

    Raises:
        SettingError: No such card, label names that no card maps, a revision of a local folder, or a name that is both
            a Hub id and a folder.
        CheckpointError: Not found, not reachable, no safetensors, or files that cannot be read.
    """
    if isinstance(card, str):
        card = CARDS.get(card)
    for name, value, kinds, expected in (
        ("model", model, (str, Path, ModelCard), "a card, its name, a Hub id (org/name), or a folder"),
        ("card", card, ModelCard, "a ModelCard, or the name of one"),
        ("subfolder", subfolder, str, 'the name of a folder, such as "safety_checker"'),
    ):
        if value is not None and (not isinstance(value, kinds) or (name == "model" and value == "")):
            raise SettingError(f"{name} is {value!r}; expected {expected}.")
    if model is None:
        model = DEFAULT_CARD
    if isinstance(model, str) and "/" not in model and "\\" not in model and model in CARDS:
        model = CARDS.get(model)
    wanted = revision
    if isinstance(model, ModelCard):
        wanted = revision or model.revision
        card, model = card or model, model.repo
        if not model:
            raise CheckpointError(
                f"The card {card.name!r} does not say where its checkpoint is. Give it a repo, a Hub id or a folder, "
                f"or pass the folder: NsfwGuard(folder, card={card.name!r})."
            )
    folder = _local_folder(model, pinned=wanted is not None)
    if folder is not None and revision is not None:
        raise SettingError(f"revision is {revision!r}, and {folder} is a local folder; a revision goes with a Hub id.")
    repo = ""
    if folder is None:
        repo = str(model)
        if not _HUB_ID.fullmatch(repo):
            CARDS.get(repo)  # raises, and names the cards
        known = CARDS.for_repo(repo)
        card, repo = card or known, known.repo if known else repo
        for one in (card, known):
            if wanted is None and one is not None and one.repo in ("", repo):  # not a card that another one lends
                wanted = one.revision
        folder = _from_hub(repo, wanted, known, local_files_only, variant=variant, subfolder=subfolder)
    elif subfolder:
        folder /= subfolder
    check_folder(folder, variant)
    config = read_config(folder)
    labels = labels_of(config, folder)
    if card is None:
        name, source = (repo, repo) if repo else (folder.name, str(folder))
        card = _card_beside(folder) or ModelCard.from_labels(labels, name=name, source=source)
    if repo:
        # What was fetched, whatever a card says. The Hub's cache names a folder after the commit; a branch says less.
        commit = next((part for part in reversed(folder.parts) if _COMMIT.fullmatch(part)), wanted)
        if (card.repo, card.revision) != (repo, commit):
            card = replace(card, repo=repo, revision=commit)
    if card.preprocess is None:
        card = replace(card, preprocess=_spec_of(folder, config))
    return folder, card


def check_folder(folder: Path, variant: str | None = None) -> None:
    """Refuse a folder that holds no config, or no weights as safetensors.

    Raises:
        CheckpointError: With what is missing; see ``find_weights``.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json.")
    find_weights(folder, variant)


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json``.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds a {type(config).__name__}; expected an object.")
    return config


def labels_of(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the label names in the order of the outputs: timm's ``label_names`` or transformers' ``id2label``.

    Raises:
        CheckpointError: The config has neither, or indices that are not 0, 1, 2, …
    """
    names = config.get("label_names")
    if names is None and isinstance(config.get("id2label"), dict):
        by_index = {int(index): name for index, name in config["id2label"].items() if str(index).isdecimal()}
        if sorted(by_index) == list(range(len(config["id2label"]))):
            names = [by_index[index] for index in range(len(by_index))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{folder / 'config.json'} does not name the labels, so no score could be trusted. Expected "
            '"id2label": {"0": "normal", "1": "nsfw"} or, of timm, "label_names": ["normal", "nsfw"].'
        )
    if len(set(names)) != len(names):
        raise CheckpointError(f"{folder / 'config.json'} has a label twice: {names}.")
    return tuple(names)


def download(model: str | ModelCard, *, to: str | Path | None = None, revision: str | None = None) -> Path:
    """Fetch a checkpoint from the Hub ahead of time.

    Args:
        model: A card, its name, or a Hub id.
        to: A folder to copy it to, with a card file, so that ``NsfwGuard(to)`` needs no network; otherwise the Hub's
            cache.
        revision: Instead of the card's own.

    Returns:
        The folder.

    Raises:
        SettingError: No such card.
        CheckpointError: The Hub has no such checkpoint or cannot be reached, or the card's model is not on the Hub.
    """
    card = model if isinstance(model, ModelCard) else CARDS.get(model) if "/" not in model else CARDS.for_repo(model)
    repo = card.repo if card is not None else str(model)
    if not _HUB_ID.fullmatch(repo):
        raise CheckpointError(f"There is nothing to download for {model!r}: it is not on the Hub ({repo}).")
    folder = _from_hub(repo, revision or (card.revision if card else None), card, False, to=to)
    check_folder(folder)
    if to is not None and card is not None:
        with suppress(FileExistsError):  # somebody's own card stays
            write_new(folder / CARD_FILE, f'card = "{card.name}"\n'.encode())
    return folder


def _local_folder(model: str | Path, *, pinned: bool) -> Path | None:
    """Return the folder that is meant; ``None``: a repository on the Hub is, or nothing.

    Raises:
        SettingError: The name is that of a folder and has the form of a Hub id.
        CheckpointError: It can only be a folder, and is none.
    """
    text = str(model)
    if text.startswith(PACKAGE):
        return Path(__file__).parent / text.removeprefix(PACKAGE)
    path = Path(model).expanduser()
    if isinstance(model, str) and _HUB_ID.fullmatch(text):
        # What lies in the working directory must not be taken for what is pinned.
        known = CARDS.for_repo(text)
        if pinned or (known is not None and known.revision is not None):
            return None
        if os.path.isdir(path):
            raise SettingError(
                f"{text!r} is a folder here, and has the form of a Hub id. For the folder, write {'./' + text!r}; for "
                'the repository on the Hub, give its revision: a commit, or revision="main".'
            )
    if os.path.isdir(path):  # which says of any name whether it is one, too long ones included
        return path
    if os.path.isfile(path):
        raise CheckpointError(f"{path} is a file; expected the folder with config.json and {WEIGHTS}.")
    if isinstance(model, Path) or path.is_absolute() or text.startswith((".", "~")):
        raise CheckpointError(f"There is no folder {path}; expected a folder with config.json and {WEIGHTS}.")
    return None


def _from_hub(
    repo: str,
    revision: str | None,
    card: ModelCard | None,
    local_files_only: bool,
    *,
    to: str | Path | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Path:
    from huggingface_hub import constants, snapshot_download

    inside = f"{subfolder.strip('/')}/" if subfolder else ""
    options: dict[str, Any] = {"revision": revision, "allow_patterns": [inside + pattern for pattern in _PATTERNS]}
    if to is None:
        try:
            # Without asking the Hub: a full commit cannot have changed.
            folder = Path(snapshot_download(repo, local_files_only=True, **options)) / inside
            check_folder(folder, variant)
            return folder
        except Exception as error:  # not there, or not in full
            logger.debug("%s is not in the cache: %s", repo, error)
    try:
        if local_files_only:
            raise CheckpointError("local_files_only=True")
        return Path(snapshot_download(repo, local_dir=to, **options)) / inside
    except Exception as error:
        name = card.name if card else repo
        here = f"\nA folder is not meant by that name; write {'./' + repo!r}." if Path(repo).is_dir() else ""
        raise CheckpointError(
            f"The checkpoint {repo} (revision {revision or 'main'}) is not on this machine and could not be fetched.\n"
            f"Looked in the Hugging Face cache, {constants.HF_HUB_CACHE}, and then on the Hub: {one_line(error, 300)}\n"
            "Two ways on:\n"
            f"  1. with a network, and HF_HUB_OFFLINE unset: nsfw-guard download {name}\n"
            f"  2. on another machine: nsfw-guard download {name} --to FOLDER; "
            f"copy FOLDER here and use NsfwGuard('./FOLDER'){here}"
        ) from error


def _card_beside(folder: Path) -> ModelCard | None:
    if (folder / CARD_FILE).is_file():
        return ModelCard.from_toml(folder / CARD_FILE)
    saved = read_saved(folder)
    return None if saved is None else ModelCard.from_dict(saved["card"], source=str(folder))


def read_saved(folder: Path) -> dict[str, Any] | None:
    """Return what ``NsfwGuard.save_pretrained`` wrote: the tables ``card`` and ``guard``; ``None`` if it wrote nothing.

    Raises:
        CheckpointError: There is something else under its name.
    """
    where, saved = f'"{SAVED}" in {folder / "config.json"}', read_config(folder).get(SAVED)
    if saved is None and (folder / SAVED_FILE).is_file():
        where, saved = str(folder / SAVED_FILE), _read_json(folder / SAVED_FILE)
    elif saved is None:
        return None
    if not isinstance(saved, dict) or not all(isinstance(saved.get(table), dict) for table in ("card", "guard")):
        raise CheckpointError(f"{where} was not written by NsfwGuard.save_pretrained.")
    return saved


def _spec_of(folder: Path, config: dict[str, Any]) -> PreprocessSpec:
    """Read the preprocessing out of the checkpoint's own files."""
    try:
        return _timm_spec(config) if "pretrained_cfg" in config else _processor_spec(folder)
    except GuardError as error:
        raise CheckpointError(f"The preprocessing of {folder} is not supported: {error}") from error
    except Exception as error:
        raise CheckpointError(
            f"The preprocessing of {folder} cannot be read: {error}\nSay it in a card: ModelCard(..., "
            "preprocess=PreprocessSpec(size=224, resize='squash', interpolation='bilinear', mean=..., std=...))"
        ) from error


def _timm_spec(config: dict[str, Any]) -> PreprocessSpec:
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=config["pretrained_cfg"], verbose=False)
    modes = {"squash": "squash", "center": "crop"}
    if data["crop_mode"] not in modes:
        raise CheckpointError(f"crop_mode is {data['crop_mode']!r}; expected one of {list(modes)}.")
    return PreprocessSpec(
        size=_square(data["input_size"][1:]),
        resize=modes[data["crop_mode"]],
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
        crop_pct=data["crop_pct"],
        source="pretrained_cfg in config.json",
    )


def _processor_spec(folder: Path) -> PreprocessSpec:
    from transformers import AutoImageProcessor

    # The class knows the defaults of the keys that the file leaves out.
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    resample = {2: "bilinear", 3: "bicubic"}.get(int(processor.get("resample", -1)))
    if resample is None:
        raise CheckpointError(f"resample is {processor.get('resample')!r}; expected 2 (bilinear) or 3 (bicubic).")
    if not processor.get("do_resize") or abs(processor.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise CheckpointError("it does not resize, or rescales by another factor than 1/255.")
    size = processor["size"]
    shortest = size.get("shortest_edge")
    crop = _square(processor["crop_size"].values()) if processor.get("do_center_crop") else None
    if shortest is not None and crop is None:
        raise CheckpointError("it resizes the shortest edge without a centre crop.")
    scaled = shortest if shortest is not None else _square([size["height"], size["width"]])
    normalize = processor.get("do_normalize")
    return PreprocessSpec(
        size=crop or scaled,
        resize="crop" if shortest is not None else "squash",
        interpolation=resample,
        mean=tuple(processor["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=tuple(processor["image_std"]) if normalize else (1.0, 1.0, 1.0),
        crop_pct=(crop or scaled) / scaled,
        source="preprocessor_config.json",
    )


def _square(sides: Any) -> int:
    lengths = [int(side) for side in sides]
    if len(set(lengths)) != 1:
        raise CheckpointError(f"the model input is {lengths}; expected a square.")
    return lengths[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
