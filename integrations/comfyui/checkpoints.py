"""Classifier checkpoints in ComfyUI's ``models/nsfw_guard``: folders, or single files with their config beside them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import folder_paths

from nsfw_guard.cards import CARD_FILE, ModelCard
from nsfw_guard.checkpoint import INDEX, WEIGHTS, find_checkpoint
from nsfw_guard.errors import CheckpointError

FOLDER = "nsfw_guard"
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
    """Return the checkpoint that a node takes which was given none: the first one.

    Raises:
        CheckpointError: There is none; with where to put one, and how. The demo model is never taken by itself.
    """
    names = installed()
    if not names:
        folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
        raise CheckpointError(
            f"No NSFW classifier is installed, so nothing can be checked. Put one into {folder}, for example:\n"
            f"    nsfw-guard download freepik --to {folder / 'freepik'}\n"
            f"(or falconsai, marqo, adamcodd), then press R to refresh the nodes."
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
    folder = file.parent if _is_folder(file) else _as_folder(file)
    return find_checkpoint(folder)


def stamp(name: str) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a checkpoint is replaced, its config or its card: paths, times and sizes."""
    path = None if name == DEMO else folder_paths.get_full_path(FOLDER, name)
    if path is None:
        return ((name, 0, 0),)
    file = Path(path)
    beside = [choice.format(file.stem) for choices in _BESIDE.values() for choice in choices]
    shards = [entry.name for entry in file.parent.glob("*.safetensors")] if _is_folder(file) else [file.name]
    files = [file.parent / entry for entry in sorted({*shards, *beside, INDEX})]
    states = [(str(entry), entry.stat()) for entry in files if entry.is_file()]
    return tuple((entry, status.st_mtime_ns, status.st_size) for entry, status in states)


def default_stamp() -> tuple[tuple[str, int, int], ...] | None:
    """Return the stamp of the checkpoint that nodes take which were given none, for their ``fingerprint_inputs``."""
    names = installed()
    return stamp(names[0]) if names else None


def _is_folder(file: Path) -> bool:
    """Whether a file is that of a checkpoint folder, and not a checkpoint by itself."""
    return file.name == WEIGHTS or bool(_SHARD.search(file.name) and (file.parent / INDEX).is_file())


def _as_folder(file: Path) -> Path:
    """Lay a single file and what is beside it out as a checkpoint folder, in a temporary one, without a copy."""
    _STAGED.append(tempfile.TemporaryDirectory(prefix="nsfw_guard_"))
    folder = Path(_STAGED[-1].name) / file.stem
    folder.mkdir()
    for name, choices in _BESIDE.items():
        beside = next((p for p in (file.parent / choice.format(file.stem) for choice in choices) if p.is_file()), None)
        if beside is not None:
            shutil.copyfile(beside, folder / name)
        elif name == "config.json":
            raise CheckpointError(
                f"{file} has no config beside it. Put the checkpoint's config.json there as {file.stem}.json, or keep "
                f"each checkpoint in a folder of its own, as nsfw-guard download NAME --to FOLDER does."
            )
    try:
        os.symlink(file.resolve(), folder / WEIGHTS)
    except OSError:  # Windows, without the right to make links
        try:
            os.link(file, folder / WEIGHTS)
        except OSError:
            shutil.copyfile(file, folder / WEIGHTS)
    return folder
