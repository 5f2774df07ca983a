"""Whether two guards are the same one, loaded twice: a notebook's cell that is run again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nsfw_guard.guard import NsfwGuard
from nsfw_guard.identity import model_identity


def is_same(one: NsfwGuard, other: NsfwGuard) -> bool:
    """Tell whether two guards have the same model, revision, weights and settings.

    Guards of classes of a user's own are never the same: what else they decide by is not known.
    """
    if one is other:
        return True
    return type(one) is type(other) is NsfwGuard and _settings(one) == _settings(other) and _same_weights(one, other)


def _settings(guard: NsfwGuard) -> tuple[Any, ...]:
    described, onnx = guard.describe(), guard.classifier.onnx
    return (
        guard.card,
        guard.policy,
        guard.redaction,
        guard.views,
        guard.batch_size,
        described["pinned"],  # device and dtype, if they were given
        described["runtime"],
        onnx and onnx.precision,
    )


def _same_weights(one: NsfwGuard, other: NsfwGuard) -> bool:
    """Compare what is in memory: a folder may have been written to since the first was loaded."""
    these, those = one.state_dict(), other.state_dict()
    if any(tensor.is_meta for tensor in (*these.values(), *those.values())):  # offloaded: they are elsewhere
        return one.classifier.folder is not None and model_identity(one) == model_identity(other)
    return these.keys() == those.keys() and all(_equal(tensor, those[name]) for name, tensor in these.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare in the coarser of two dtypes: one of them may have been cast by its pipeline."""
    if one.shape != other.shape:
        return False
    other = other.to(one.device)
    if one.dtype != other.dtype:
        coarser = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        one, other = one.to(coarser), other.to(coarser)
    return torch.equal(one, other)
