"""What tests of pipelines ask of outputs and verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from nsfw_guard import Policy, Redaction, Verdict

EVERYBODY = Policy(threshold=0.0)
NOBODY = Policy(threshold=1.0)
# For tests that know beforehand what becomes of a flagged image; random weights flag what they like.
UNVERIFIED = Redaction(verify=False)


def scores_of(verdicts: list[Verdict]) -> list[float]:
    """The scores alone."""
    return [verdict.score for verdict in verdicts]


def between(verdicts: list[Verdict]) -> Policy:
    """A policy that flags some of these images and not the others."""
    scores = sorted(scores_of(verdicts))
    low, high = max(zip(scores, scores[1:], strict=False), key=lambda pair: pair[1] - pair[0])
    assert high - low > 1e-3, "the tiny models must tell these images apart"
    return Policy(threshold=(low + high) / 2)


def identical(one: Any, other: Any) -> bool:
    """Bit-identical, and of the same kind; of lists, each entry."""
    if isinstance(one, list):
        return len(one) == len(other) and all(identical(a, b) for a, b in zip(one, other, strict=True))
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return np.array_equal(np.asarray(one), np.asarray(other))


def pixels(image: Any) -> torch.Tensor:
    """An image that a pipeline returned, as [3, H, W] in its range: PIL images in [0, 1]."""
    if isinstance(image, Image.Image):
        image = np.asarray(image).astype(np.float32) / 255
    return torch.from_numpy(image).movedim(-1, 0) if isinstance(image, np.ndarray) else image.float()
