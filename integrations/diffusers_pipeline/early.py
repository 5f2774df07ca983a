"""Stopping a generation that is going to be flagged: a look at what it is turning into, every few steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from nsfw_guard.errors import SettingError
from nsfw_guard.images import read_images

from .preview import ADVICE, is_own, packs_its_own_way, predicted_original, preview_of

if TYPE_CHECKING:
    from .record import Record


_STEP = ("model_output", "timestep", "sample")


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
            SettingError: The class takes no ``callback_on_step_end``, has no ``interrupt``, no scheduler to ask, or
                latents of which only a function of the user's own can make a preview.
        """
        name = type(pipe).__name__
        if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
            raise SettingError(
                f"{name} cannot be stopped early: it takes no callback_on_step_end. Attach without early=."
            )
        if not hasattr(type(pipe), "interrupt"):
            raise SettingError(f"{name} cannot be stopped early: it has no interrupt. Attach without early=.")
        scheduler = getattr(pipe, "scheduler", None)
        if not (hasattr(scheduler, "sigmas") or hasattr(scheduler, "alphas_cumprod")):
            raise SettingError(
                f"{name} cannot be stopped early: what its {type(scheduler).__name__} predicts is not known. "
                "Attach without early=."
            )
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
    """
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except TypeError:
        yield args, kwargs  # the call itself will say what is wrong with them
        return
    watch = _Watch(pipe, record, early, bound.arguments)
    bound.arguments["callback_on_step_end"] = watch.beside(bound.arguments.get("callback_on_step_end"))
    scheduler, step, own = pipe.scheduler, pipe.scheduler.step, vars(pipe.scheduler).get("step")
    order = _order_of(scheduler)

    @functools.wraps(step)  # pipelines ask for its parameters
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        given: dict[str, Any] = {**dict(zip(order, args, strict=False)), **kwargs}
        known: dict[str, Any] = {name: given.get(name) for name in _STEP}
        watch.predicted = predicted_original(scheduler, **known, result=result)
        return result

    # On the object and for this call only: a scheduler keeps the state of one generation, so no two calls share it.
    scheduler.step = noting
    try:
        yield bound.args, bound.kwargs
    finally:
        if own is None:
            vars(scheduler).pop("step", None)
        else:
            scheduler.step = own


def _order_of(scheduler: Any) -> tuple[str, ...]:
    """The parameters of a scheduler's step in their order, which not all have alike; the usual if it hides them."""
    for cls in type(scheduler).__mro__:
        if "step" in vars(cls):
            names = tuple(inspect.signature(vars(cls)["step"]).parameters)[1:]
            if set(_STEP) <= set(names):
                return names
    return _STEP


class _Watch:
    """One generation under way.

    Attributes:
        predicted: The finished latents, as the last step predicted them.
    """

    predicted: Tensor | None = None

    def __init__(self, pipe: Any, record: Record, early: EarlyExit, arguments: dict[str, Any]) -> None:
        self._pipe, self._record, self._early, self._arguments = pipe, record, early, arguments
        guard = record.attachment.guard
        threshold = early.threshold if early.threshold is not None else (guard.policy.threshold + 1) / 2
        self._policy = replace(guard.policy, threshold=threshold, per_label={}, batch="each")
        self._policy.validate_for(guard.card.levels)  # by its labels' own thresholds alone, nothing would ever stop

    def beside(self, callback: Any) -> Any:
        """A callback that calls the caller's own first."""
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            return MultiPipelineCallbacks([callback, _Callback(self)])

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if callback is not None:
                tensors = callback(pipe, step, timestep, tensors)
            self.after_step(step)
            return tensors

        return after_step

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Look, if it is time to, and stop if every item is beyond doubt."""
        total = getattr(self._pipe, "num_timesteps", None) or len(self._pipe.scheduler.timesteps)
        first = max(0, round(self._early.after * total) - 1)
        last = step >= total - 1
        if self.predicted is None or self._record.aborted or last or step < first or (step - first) % self._early.every:
            return
        if not bool(self.predicted.isfinite().all()):
            return  # the full check flags what comes of it
        attachment = self._record.attachment
        picture = preview_of(self._pipe, self.predicted, self._early.preview, attachment, self._arguments)
        seen = read_images(picture, value_range=(-1, 1), clamp=True, alpha=False)
        verdicts = self._policy.decide(attachment.guard.classify(seen))
        if len(verdicts) != len(self.predicted):
            raise SettingError(
                f"preview gave {len(verdicts)} images for {len(self.predicted)} latents; expected one for each."
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

    def __call__(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> dict[str, Any]:
        self._watch.after_step(step_index)
        return dict(callback_kwargs)

    callback_fn = __call__
