"""What a guard is set to, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .placement import Placement, execution_device
from .preprocess import kernels
from .settings import redaction_values

if TYPE_CHECKING:
    from .guard import NsfwGuard


def described(guard: NsfwGuard, placement: Placement) -> dict[str, Any]:
    """Return the guard's settings, where its weights are, and how they are run; see ``NsfwGuard.describe``."""
    classifier, weights = guard.classifier, next(guard.parameters())
    device, dtype = execution_device(guard), classifier.dtype
    path, why = classifier.forward_path.describe(classifier.body, device, dtype)
    return {
        "model": classifier.scored_as.identity,
        "labels": {label: guard.card.levels[label].name.lower() for label in classifier.labels},
        "policy": guard.policy.to_dict(),
        "redaction": redaction_values(guard.redaction),
        "views": guard.views,
        "batch_size": guard.batch_size,
        "runtime": classifier.forward_path.runtime,
        "pinned": placement.pinned(),
        "device": str(weights.device),
        "dtype": str(weights.dtype),
        "preprocess": kernels(device)[1],
        "forward": {"path": path, "why": why},
        **(classifier.onnx.describe() if classifier.onnx else {}),
    }
