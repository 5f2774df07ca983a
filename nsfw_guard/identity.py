"""Which weights a verdict is from, so that it can be told later whether they are still the same."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .guard import NsfwGuard


def model_identity(guard: NsfwGuard) -> str:
    """Return the model as ``id@revision`` where it came from the Hub; else as ``id@sha256:…`` of its weights.

    A commit cannot change; the weights in a folder can, whatever revision the card beside them names, and so can a
    branch.
    """
    card, folder = guard.card, guard.classifier.folder
    # The Hub's cache names the folder of a snapshot after its commit.
    if folder is None or (card.revision and card.revision == folder.name):
        return card.identity
    return f"{card.identity}@sha256:{weights_sha256(guard)[:16]}"


def weights_sha256(guard: NsfwGuard) -> str:
    """Return the SHA-256, in hex, of the checkpoint's safetensors files, in the order of their names.

    Raises:
        OSError: The checkpoint is not there any more.
    """
    folder = guard.classifier.folder
    if folder is None:
        raise FileNotFoundError("The guard was made of a network in memory; there is no checkpoint to hash.")
    files = sorted(folder.glob("*.safetensors"))
    return _sha256(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()
