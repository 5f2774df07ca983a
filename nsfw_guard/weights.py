"""Which files of a checkpoint folder hold its weights. Safetensors only: what pickles hold is not read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from .errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
# As transformers and diffusers name them: model.fp16.safetensors, model.fp16-00001-of-00002.safetensors with
# model.safetensors.index.fp16.json.
_FILE = re.compile(r"model(?:\.(?P<variant>[^.]+))?\.safetensors(?P<index>\.index(?:\.(?P<of>[^.]+))?\.json)?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


class Weights(NamedTuple):
    """The weights of a folder.

    Attributes:
        file: The safetensors file, or the index of several.
        variant: Which of several that the folder has, such as ``"fp16"``; ``None``: those without a name.
    """

    file: Path
    variant: str | None

    @property
    def files(self) -> list[Path]:
        """All safetensors files, sorted by their names.

        Raises:
            CheckpointError: The index cannot be read.
        """
        if self.file.suffix != ".json":
            return [self.file]
        try:
            names = set(json.loads(self.file.read_text(encoding="utf-8"))["weight_map"].values())
        except Exception as error:
            raise CheckpointError(f"{self.file} is no index of safetensors files: {error}") from error
        return [self.file.parent / name for name in sorted(names)]


def find_weights(folder: Path, variant: str | None = None) -> Weights:
    """Return the weights of a folder: those of the variant, else those without a name, else the only ones.

    Args:
        folder: With a ``config.json``.
        variant: As diffusers and transformers call it, such as ``"fp16"``.

    Raises:
        CheckpointError: With what is missing, and how to convert a pickle.
    """
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob("model*")):  # an index comes after the one file that it would stand for
        match = _FILE.fullmatch(path.name)
        if match and not _SHARD.search(match["variant"] or "") and path.is_file():
            found.setdefault(match["of"] if match["index"] else match["variant"], path)
    if variant in found or (variant is None and len(found) == 1):
        chosen = variant if variant in found else next(iter(found))
        weights = Weights(found[chosen], chosen)
        missing = [file.name for file in weights.files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks the shards {missing} that its {weights.file.name} names.")
        return weights
    if found:
        names = sorted(name for name in found if name)
        if not names:
            raise CheckpointError(f"{folder} has no weights of the variant {variant!r}; leave variant out.")
        wanted = "no weights without a variant's name" if variant is None else f"no weights of the variant {variant!r}"
        raise CheckpointError(
            f"{folder} has {wanted}; it has the variants {names}: NsfwGuard(…, variant={names[0]!r})."
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights only as {', '.join(pickles)}, and unpickling can run any code. "
            f"Expected {WEIGHTS}. If you trust the file, convert it on a machine that may be lost:\n"
            '    python -c "from transformers import AutoModelForImageClassification as M; '
            f"M.from_pretrained(r'{folder}', use_safetensors=False).save_pretrained(r'{folder}')\""
        )
    raise CheckpointError(
        f"{folder} has no weights as {WEIGHTS}. Pickles (.bin, .pt) are neither downloaded nor read: a repository that "
        "has only those must be converted by somebody who trusts it."
    )
