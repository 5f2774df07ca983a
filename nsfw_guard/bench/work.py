"""The work that everything is given: decoded images, and guards that flag exactly so many of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cards import CARDS, ModelCard
from ..checkpoint import find_checkpoint
from ..guard import NsfwGuard
from ..policy import Policy
from ..weights import WEIGHTS
from .checkpoints import SAVERS
from .settings import INT8, Workload

VALUE_RANGE = (-1, 1)


class Source(NamedTuple):
    """A checkpoint to measure with.

    Attributes:
        name: As it was asked for.
        folder: Where it is.
        card: Its card, preprocessing included.
        random: Whether its weights are random numbers at the card's architecture.
    """

    name: str
    folder: Path
    card: ModelCard
    random: bool


def find_source(model: str, *, weights: str, cache: Path) -> Source:
    """Find a checkpoint, or write one with random weights at the architecture of a card.

    Args:
        model: A card, a folder or a Hub id. Folders and Hub ids are taken as they are.
        weights: ``"random"``: cards stand for their architecture only; ``"real"``: for their checkpoint.
        cache: Where random checkpoints are written, and found again.

    Raises:
        SettingError: No such card.
        CheckpointError: A checkpoint that is not there.
    """
    if weights == "random" and model in SAVERS:
        folder = cache / model
        if not (folder / WEIGHTS).is_file():
            SAVERS[model](folder)
        return Source(model, folder, find_checkpoint(folder, card=CARDS.get(model))[1], random=True)
    folder, card = find_checkpoint(model)
    return Source(model if model in CARDS else folder.name, folder, card, random=False)


def make_images(workload: Workload, device: torch.device, *, seed: int = 0) -> Tensor:
    """Return a batch as a VAE would decode it: ``[B, 3, H, W]``, float32, in [-1, 1]: patches of colour and noise."""
    generator = torch.Generator().manual_seed(seed)
    # Each image has its own brightness and contrast, so that even random weights tell them apart.
    patches = torch.rand(workload.batch, 3, 8, 8, generator=generator)
    contrast = torch.rand(workload.batch, 1, 1, 1, generator=generator) * 0.8 + 0.2
    middle = torch.rand(workload.batch, 3, 1, 1, generator=generator)
    size = (workload.height, workload.width)
    images = F.interpolate(middle + contrast * (patches - 0.5), size=size, mode="bilinear", align_corners=False)
    noise = torch.randn(3, *size, generator=generator)
    return images.add_(0.03 * noise).mul_(2).sub_(1).clamp_(-1, 1).to(device)


def load_guard(source: Source, device: torch.device, dtype: str, *, redaction: str, runtime: str = "auto") -> NsfwGuard:
    """Load a checkpoint as any user would; ``"onnx-int8"`` is the runtime ``"onnx"`` with that dtype."""
    if runtime == INT8:
        runtime, dtype = "onnx", "int8"
    return NsfwGuard(source.folder, card=source.card, device=device, dtype=dtype, redaction=redaction, runtime=runtime)


def policy_that_flags(guard: NsfwGuard, images: Tensor, wanted: int) -> Policy:
    """Return the guard's policy with a threshold between the scores, so that so many of these images are flagged.

    Images that score alike cannot be told apart; how many are flagged in the end must be counted.
    """
    level = guard.policy.level
    scores = Policy(level=level).decide(guard.classify(images, value_range=VALUE_RANGE))
    ranked = sorted((verdict.score for verdict in scores), reverse=True)
    above = ranked[wanted - 1] if wanted else 1.0
    below = ranked[wanted] if wanted < len(ranked) else 0.0
    return Policy(level=level, threshold=(above + below) / 2)


@contextlib.contextmanager
def checkpoints_in(cache: Path | None) -> Iterator[Path]:
    """Yield the folder for checkpoints with random weights: the one that was asked for, or a temporary one."""
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="nsfw-guard-bench-") as folder:
        yield Path(folder)
