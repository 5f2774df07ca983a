"""Stopping a generation that is going to be flagged: a look at what it is turning into, every few steps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from nsfw_guard.errors import SettingError
from nsfw_guard.images import read_images

from . import table
from .preview import ADVICE, is_own, packs_its_own_way, predicted_original, predicts, preview_of
from .steps import hearing

if TYPE_CHECKING:
    from .record import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlyExit:
    """When to stop a generation early, and what to look at.

    At the end of a step, the scheduler's prediction of the finished latents is decoded to a small preview (of a video,
    its first frame). When every item of the batch scores ``threshold`` or more on it, the remaining steps are skipped,
    and what there is so far counts as flagged, with the reason ``"early"``, and is filled. Whatever is not stopped gets
    the full check.

    Attributes:
        every: Steps between two looks, at least 1.
        after: The share of the steps before the first look, in [0, 1]; earlier predictions show little.
        threshold: In [0, 1]; ``None`` is halfway from the policy's threshold to 1, so that what is stopped is beyond
            doubt.
        preview: How latents become a picture: ``"vae"``, the pipeline's own VAE at low resolution; ``"rgb"``, a linear
            map from latents to colours, fitted to that VAE at the first look and nearly free afterwards; a tiny VAE
            (``AutoencoderTiny``); or a function of the pipeline and the predicted latents, which returns
            ``[B, 3, H, W]`` in [-1, 1].

    Raises:
        SettingError: A value is out of its range.
    """

    every: int = 5
    after: float = 0.4
    threshold: float | None = None
    preview: Any = "vae"

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise SettingError(f"every is {self.every!r}; expected a whole number of steps, at least 1.")
        for name in ("after", "threshold"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 <= value <= 1) and not (name == "threshold" and value is None):
                raise SettingError(f"{name} is {value!r}; expected a number in [0, 1].")
        if self.preview not in ("vae", "rgb") and not callable(getattr(self.preview, "decode", self.preview)):
            raise SettingError(
                f'preview is {self.preview!r}; expected "vae", "rgb", a tiny VAE, or a function of the pipeline and '
                "the predicted latents."
            )

    def validate_for(self, pipe: Any) -> None:
        """Refuse pipelines that cannot be stopped.

        Raises:
            SettingError: The class takes no ``callback_on_step_end``, has no ``interrupt`` or never asks for it, has no
                scheduler to ask, or latents of which only a function of the user's own can make a preview.
        """
        name = type(pipe).__name__
        scheduler = getattr(pipe, "scheduler", None)
        reason = None
        if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
            reason = "it takes no callback_on_step_end"
        elif not hasattr(type(pipe), "interrupt"):
            reason = "it has no interrupt"
        elif table.never_interrupted(type(pipe)):
            reason = "it never asks whether it was interrupted"
        elif table.steps_copies(type(pipe)):
            reason = "it denoises with copies of its scheduler, one for each frame"
        elif not predicts(scheduler):
            reason = f"what its {type(scheduler).__name__} predicts is not known"
        if reason is not None:
            raise SettingError(f"{name} cannot be stopped early: {reason}. Attach without early=.")
        if not is_own(self.preview) and packs_its_own_way(pipe):
            raise SettingError(
                f"{name} cannot be stopped early by preview={self.preview!r}: how it packs its latents is not known. "
                f"{ADVICE}"
            )


@contextmanager
def watching(
    pipe: Any, call: Any, record: Record, early: EarlyExit, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Look at a generation while it runs.

    Yields:
        The arguments of the call, with a callback of ours beside the caller's own.

    Raises:
        SettingError: The pipeline cannot be stopped any more: it has another scheduler now.
    """
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except TypeError:
        yield args, kwargs  # the call itself will say what is wrong with them
        return
    early.validate_for(pipe)
    with ExitStack() as stack:
        watch = _Watch(pipe, record, early, bound.arguments, stack)
        bound.arguments["callback_on_step_end"] = watch.beside(bound.arguments.get("callback_on_step_end"))
        yield bound.args, bound.kwargs


class _Watch:
    """One generation under way.

    Attributes:
        predicted: The finished latents, as the step that was just taken predicts them.
    """

    predicted: Tensor | None = None

    def __init__(
        self, pipe: Any, record: Record, early: EarlyExit, arguments: dict[str, Any], until_the_end: ExitStack
    ) -> None:
        self._pipe, self._record, self._early, self._arguments = pipe, record, early, arguments
        self._until_the_end = until_the_end
        guard = record.attachment.guard
        threshold = early.threshold if early.threshold is not None else (guard.policy.threshold + 1) / 2
        self._policy = replace(guard.policy, threshold=threshold, per_label={}, batch="each")
        self._policy.validate_for(guard.card.levels)  # by its labels' own thresholds alone, nothing would ever stop
        self._heard = False
        self._follow()

    def beside(self, callback: Any) -> Any:
        """A callback that calls the caller's own first, and answers what that one does."""
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            return MultiPipelineCallbacks([callback, _Callback(self)])

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
            # Without one, nothing: some pipelines hand over other latents than those that they go on with.
            answer = callback(pipe, step, timestep, tensors) if callback is not None else {}
            self.after_step(step)
            return answer

        return after_step

    def _follow(self) -> None:
        """Hear the steps of the scheduler that the pipeline has now: it may exchange it under way."""
        self._scheduler = self._pipe.scheduler
        self._until_the_end.enter_context(hearing(self._scheduler, self._record, self._note))

    def _note(self, scheduler: Any, given: dict[str, Any], result: Any) -> None:
        if scheduler is self._scheduler:
            self.predicted = predicted_original(scheduler, given, result)
            self._heard = True

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Look, if it is time to, and stop if every item is beyond doubt."""
        predicted, self.predicted = self.predicted, None
        if self._pipe.scheduler is not self._scheduler:
            self._follow()
        elif predicted is None and not self._heard:
            self._heard = True  # says it once
            logger.warning(
                "%s does not step its own scheduler: it is not stopped early. What it returns is looked at as ever.",
                type(self._pipe).__name__,
            )
        total = getattr(self._pipe, "num_timesteps", None) or len(self._pipe.scheduler.timesteps)
        first = max(0, round(self._early.after * total) - 1)
        last = step >= total - 1
        if predicted is None or self._record.aborted or last or step < first or (step - first) % self._early.every:
            return
        if not bool(predicted.isfinite().all()):
            return  # the full check flags what comes of it
        attachment = self._record.attachment
        picture = preview_of(self._pipe, predicted, self._early.preview, attachment, self._arguments)
        seen = read_images(picture, value_range=(-1, 1), clamp=True, alpha=False)
        verdicts = self._policy.decide(attachment.guard.classify(seen))
        if len(verdicts) != len(predicted):
            raise SettingError(
                f"preview gave {len(verdicts)} images for {len(predicted)} latents; expected one for each."
            )
        # A preview that overflows says nothing about the image.
        if all(verdict.flagged and verdict.reason != "non_finite" for verdict in verdicts):
            self._record.aborted = True
            self._pipe._interrupt = True


class _Callback(PipelineCallback):
    """A watch as one of diffusers' own callbacks, to stand beside those."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__(cutoff_step_ratio=1.0)
        self._watch = watch

    @property
    def tensor_inputs(self) -> list[str]:
        return []

    def __call__(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> Any:
        self._watch.after_step(step_index)
        return callback_kwargs

    callback_fn = __call__
