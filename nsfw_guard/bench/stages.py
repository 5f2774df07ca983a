"""Where a guarded call spends its time: convert, preprocess, forward, decide, redact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..guard import NsfwGuard
from ..images import ImageBatch, read_images
from ..preprocess import ViewBatch
from ..redact import redact_flagged
from .rounds import Timer
from .work import VALUE_RANGE

STAGES = ("convert", "preprocess", "forward", "decide", "redact")
Result = TypeVar("Result")


class StagedCall:
    """One guarded call, made with the core's own functions in the order of ``NsfwGuard.apply``, with a stop after each.

    Conversion is a part of loading the views. It is done once more by itself to be timed, and preprocessing is what
    loading takes beyond that.

    Attributes:
        flags: Of the last call.
    """

    def __init__(self, guard: NsfwGuard, images: Tensor, timer: Timer) -> None:
        self._guard = guard
        self._images = images
        self._timer = timer
        self.flags: list[bool] = []

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Make the call and return stage → seconds."""
        guard, classifier = self._guard, self._guard.classifier
        spent = dict.fromkeys(STAGES, 0.0)
        batch, seconds = self._timed(lambda: read_images(self._images, value_range=VALUE_RANGE))
        spent["convert"] += seconds
        views = ViewBatch(batch, classifier.preprocess, views=guard.views)
        probabilities: list[Tensor] = []
        extents: list[Tensor] = []
        counts: list[int] = []
        for start in range(0, len(batch.owners), guard.batch_size):
            part = (start, min(start + guard.batch_size, len(batch.owners)))
            converting = self._timed(partial(convert, batch, *part))[1]
            (inputs, extent, count), loading = self._timed(partial(views.load, *part))
            spent["convert"] += min(converting, loading)
            spent["preprocess"] += max(0.0, loading - converting)
            for some in inputs.split(guard.batch_size):
                scored, seconds = self._timed(partial(classifier.probabilities, some))
                spent["forward"] += seconds
                probabilities.append(scored)
            extents.append(extent)
            counts += count
        verdicts, spent["decide"] = self._timed(
            lambda: guard.policy.decide(classifier.to_scores(batch, probabilities, extents, counts))
        )
        _, spent["redact"] = self._timed(lambda: batch.replace(redact_flagged(batch, verdicts, guard.redaction)))
        self.flags = [verdict.flagged for verdict in verdicts]
        return spent

    def _timed(self, call: Callable[[], Result]) -> tuple[Result, float]:
        results: list[Result] = []
        seconds = self._timer.once(lambda: results.append(call()))
        return results[0], seconds


def convert(batch: ImageBatch, start: int, stop: int) -> None:
    """Look at the values of some frames, as loading their views does; what is left of conversion is in the resize."""
    for frames in batch.stored(start, stop):
        frames.extent()
