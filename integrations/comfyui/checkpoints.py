"""Classifier checkpoints in ComfyUI's ``models/nsfw_guard``: folders, or single files with their config beside them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths

from nsfw_guard.cards import CARD_FILE, ModelCard
from nsfw_guard.checkpoint import INDEX, WEIGHTS, find_checkpoint
from nsfw_guard.errors import CheckpointError, GuardError, SettingError

logger = logging.getLogger(__name__)

FOLDER = "nsfw_guard"
# The environment variable that names the checkpoint of nodes without a classifier linked to them.
MODEL = "NSFW_GUARD_MODEL"
DEMO = "demo (drawn shapes; no NSFW model)"
_LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.safetensors$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
# Beside a single file NAME.safetensors: the name that a checkpoint folder gives it → the names it may have here.
_BESIDE = {
    "config.json": ("{}.json", "config.json"),
    "preprocessor_config.json": ("{}.preprocessor_config.json", "preprocessor_config.json"),
    CARD_FILE: ("{}.toml", CARD_FILE),
}
# Folders made for single files, until the process ends.
_STAGED: list[tempfile.TemporaryDirectory[str]] = []


def register_folder() -> None:
    """Tell ComfyUI of the folder; entries of extra_model_paths.yaml stay."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    if FOLDER in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(FOLDER, default)
        paths, _ = folder_paths.folder_names_and_paths[FOLDER]
        folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})
    else:
        folder_paths.folder_names_and_paths[FOLDER] = ([default], {".safetensors"})
    with suppress(OSError):  # a read-only installation, whose checkpoints are elsewhere
        os.makedirs(default, exist_ok=True)


def installed() -> list[str]:
    """Return the checkpoints that are there, by their files' paths in the folder, sorted."""
    return sorted(name for name in folder_paths.get_filename_list(FOLDER) if not _LATER_SHARD.search(name))


def default() -> str:
    """Return the checkpoint of a node without a classifier: the one that ``NSFW_GUARD_MODEL`` names, or the only one.

    With several and none named there is no default: a folder that is added must not change who decides in every graph.
    The demo model is never taken unless it is named.

    Raises:
        CheckpointError: None is installed, or several; with what to do.
        SettingError: ``NSFW_GUARD_MODEL`` names one that is not there.
    """
    names, named = installed(), os.environ.get(MODEL)
    if named:
        if named not in (*names, DEMO):
            raise SettingError(f"{MODEL} is {named!r}; expected one of {[*names, DEMO]}.")
        return named
    if not names:
        logger.warning("No NSFW classifier is installed in %s.", folder_paths.get_folder_paths(FOLDER))
        raise CheckpointError(
            f"No NSFW classifier is installed, so nothing can be checked. Put one into ComfyUI's models/{FOLDER}. "
            f"In ComfyUI's folder, type for example:\n"
            f"    nsfw-guard download freepik --to models/{FOLDER}/freepik\n"
            f"(or falconsai, marqo, adamcodd), then press R to refresh the nodes."
        )
    if len(names) > 1:
        raise CheckpointError(
            f"{len(names)} NSFW classifiers are installed, and none of them is named: {', '.join(names)}. Link Load "
            f"NSFW Classifier to the node's classifier input, or start ComfyUI with {MODEL}={names[0]}"
        )
    return names[0]


def find(name: str) -> tuple[Path, ModelCard]:
    """Find a checkpoint's folder and its card.

    Args:
        name: One of ``installed()``, or ``DEMO``.

    Raises:
        CheckpointError: It is not there any more, or its files cannot be read.
        SettingError: Labels that no card maps.
    """
    if name == DEMO:
        return find_checkpoint("demo")
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise CheckpointError(
            f"{name!r} is not in ComfyUI's models/{FOLDER} any more; there is: {installed() or 'nothing'}. "
            "Press R to refresh the nodes, and choose another."
        )
    file = Path(path)
    folder = file.parent if _is_folder(file) else _as_folder(file, name)
    with naming(name, folder):
        return find_checkpoint(folder)


@contextmanager
def naming(name: str, folder: Path) -> Iterator[None]:
    """Let errors name the user's own files below models/nsfw_guard, and no folder of the server.

    Args:
        name: A checkpoint, one of ``installed()``.
        folder: As ``find`` has returned it.
    """
    try:
        yield
    except GuardError as error:
        told = str(error)
        for path, shown in _shown_names(name, folder).items():
            told = told.replace(path, shown)
        raise type(error)(told) from error


def stamp(name: str) -> str:
    """Return what changes when a checkpoint is replaced, its config or its card.

    A hash of paths, times and sizes: ComfyUI writes it into the pictures that it saves.
    """
    path = None if name == DEMO else folder_paths.get_full_path(FOLDER, name)
    states: list[tuple[str, int, int]] = []
    if path is not None:
        file = Path(path)
        beside = [choice.format(file.stem) for choices in _BESIDE.values() for choice in choices]
        shards = [entry.name for entry in file.parent.glob("*.safetensors")] if _is_folder(file) else [file.name]
        files = [file.parent / entry for entry in sorted({*shards, *beside, INDEX})]
        found = [(str(entry), entry.stat()) for entry in files if entry.is_file()]
        states = [(entry, status.st_mtime_ns, status.st_size) for entry, status in found]
    return hashlib.sha256(repr((name, states)).encode()).hexdigest()[:32]


def default_stamp() -> str | None:
    """Return the stamp of the checkpoint of nodes without a classifier, for their ``fingerprint_inputs``."""
    try:
        return stamp(default())
    except GuardError:
        return None  # the node itself will say it


def _is_folder(file: Path) -> bool:
    """Whether a file is that of a checkpoint folder, and not a checkpoint by itself."""
    return file.name == WEIGHTS or bool(_SHARD.search(file.name) and (file.parent / INDEX).is_file())


def _beside(file: Path, name: str) -> Path | None:
    """What lies beside a single file for ``name`` of a checkpoint folder."""
    choices = (file.parent / choice.format(file.stem) for choice in _BESIDE[name])
    return next((path for path in choices if path.is_file()), None)


def _as_folder(file: Path, name: str) -> Path:
    """Lay a single file and what is beside it out as a checkpoint folder, in a temporary one, without a copy."""
    if _beside(file, "config.json") is None:
        raise CheckpointError(
            f"models/{FOLDER}/{name} has no config beside it. Put the checkpoint's config.json there as "
            f"{file.stem}.json, or keep each checkpoint in a folder of its own, as nsfw-guard download NAME --to "
            "FOLDER does."
        )
    _STAGED.append(tempfile.TemporaryDirectory(prefix="nsfw_guard_"))
    folder = Path(_STAGED[-1].name) / file.stem
    folder.mkdir()
    for entry in _BESIDE:
        beside = _beside(file, entry)
        if beside is not None:
            shutil.copyfile(beside, folder / entry)
    try:
        os.symlink(file.resolve(), folder / WEIGHTS)
    except OSError:  # Windows, without the right to make links
        try:
            os.link(file, folder / WEIGHTS)
        except OSError:
            shutil.copyfile(file, folder / WEIGHTS)
    return folder


def _shown_names(name: str, folder: Path) -> dict[str, str]:
    """What errors may say → what they say to the user, the longer paths first."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        return {}
    file, shown = Path(path), Path(FOLDER, name)
    if _is_folder(file):
        below = f"models/{shown.parent.as_posix()}"
        return {str(folder): below, str(folder.resolve()): below}
    names = {str(folder / WEIGHTS): shown.name, str(file.resolve()): shown.name, str(file): shown.name}
    for entry, choices in _BESIDE.items():
        beside = _beside(file, entry)
        names[str(folder / entry)] = beside.name if beside else choices[0].format(file.stem)
    paths = {path: f"models/{(shown.parent / entry).as_posix()}" for path, entry in names.items()}
    # A card that is not there yet is asked for by its name alone.
    return {**paths, str(folder): f"models/{shown.as_posix()}", CARD_FILE: names[str(folder / CARD_FILE)]}
