"""Exported graphs on disk: written whole or not at all, and believed only after they were looked at."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "NSFW_GUARD_CACHE"
_BUILDING = "building-"
_ABANDONED_AFTER = 24 * 3600  # seconds; far longer than any export takes

Loaded = TypeVar("Loaded")


def cache_folder() -> Path:
    """Return where exported graphs are kept: below ``$NSFW_GUARD_CACHE``, ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        OSError: There is no home folder.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser() / "onnx"
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return Path(root) / "nsfw_guard" / "onnx"


def load_or_build(
    key: str, *, build: Callable[[Path], dict[str, Any]], load: Callable[[Path, dict[str, Any]], Loaded]
) -> Loaded:
    """Load the graph that the cache has under a key; if it has none, or one that ``load`` refuses, build it.

    Args:
        key: Names everything that the graph depends on.
        build: Writes a graph to a path, and returns what to record beside it. It has checked the graph: what comes back
            is kept.
        load: Loads a graph with its record. Any exception means that the file is not the one that was written.

    Returns:
        What ``load`` returned.

    Raises:
        CheckpointError: From ``build``; or the graph that it made cannot be read back.
    """
    try:
        return _load(cache_folder(), key, load)
    except OSError as error:  # not there, as a rule
        logger.debug("No exported graph in the cache: %s", error)
    except Exception as error:
        logger.warning("The exported graph in the cache cannot be trusted and is made again: %s", error)
    with _workplace() as (place, folder):
        graph = place / "graph.onnx"
        record = build(graph)
        record |= {"key": key, "sha256": _sha256(graph)}
        names = [_graph_name(key, record), _record_name(key)]  # a graph must be there before its record
        graph.rename(place / names[0])
        (place / names[1]).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        try:
            loaded = _load(place, key, load)
        except Exception as error:
            raise CheckpointError(f"The graph that was just exported cannot be loaded: {error}") from error
        if folder is not None:
            _publish(place, folder, key, names)
    return loaded


def _load(folder: Path, key: str, load: Callable[[Path, dict[str, Any]], Loaded]) -> Loaded:
    record = json.loads((folder / _record_name(key)).read_text(encoding="utf-8"))
    if record["key"] != key:
        raise ValueError(f"{folder / _record_name(key)} belongs to another graph, {record['key']}.")
    path = folder / _graph_name(key, record)
    if _sha256(path) != record["sha256"]:
        raise ValueError(f"{path} has changed since it was written.")
    return load(path, record)


def _graph_name(key: str, record: dict[str, Any]) -> str:
    # By content: a record never comes to stand beside the graph that another process wrote in the same moment.
    return f"{key}-{str(record['sha256'])[:16]}.onnx"


def _record_name(key: str) -> str:
    return f"{key}.json"


def _publish(place: Path, folder: Path, key: str, names: list[str]) -> None:
    """Move files to the cache, each of which appears there in one step, and remove the graphs that they replace."""
    try:
        for name in names:
            os.replace(place / name, folder / name)
        for old in folder.glob(f"{key}-*.onnx"):
            if old.name not in names:
                old.unlink()
    except OSError as error:
        logger.warning("The exported graph could not be kept in %s, or an older one not removed: %s", folder, error)


@contextlib.contextmanager
def _workplace() -> Iterator[tuple[Path, Path | None]]:
    """Make an empty folder to build in, and say where the result may be kept: nowhere if the cache cannot be written.

    The folder is inside the cache, so that a rename suffices; what a killed process left there is removed after a day.
    """
    folder: Path | None = None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        place = tempfile.mkdtemp(prefix=_BUILDING, dir=folder)
    except OSError as error:
        logger.warning(
            "The cache for exported graphs cannot be written (%s): this graph is exported again at the next start. "
            "Say where it may be kept with %s=FOLDER.",
            error,
            CACHE_VARIABLE,
        )
        folder, place = None, tempfile.mkdtemp(prefix=f"nsfw_guard-{_BUILDING}")
    try:
        if folder is not None:
            for left in folder.glob(f"{_BUILDING}*"):
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                        shutil.rmtree(left)
        yield Path(place), folder
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
