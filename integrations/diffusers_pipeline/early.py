"""Stopping a generation that is going to be flagged: a look at what it is turning into, every few steps."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from nsfw_guard.errors import SettingError
from nsfw_guard.images import read_images

if TYPE_CHECKING:
    from .record import Record

# The short side to which latents are reduced before the pipeline's own VAE decodes them: 256 pixels, for most VAEs.
_PREVIEW = 32


@dataclass(frozen=True)
class EarlyExit:
    """When to stop a generation early, and what to look at.

    At the end of a step, the scheduler's prediction of the finished latents is decoded to a small preview. When every
    item of the batch scores ``threshold`` or more on it, the remaining steps are skipped, and what there is so far
    counts as flagged, with the reason ``"early"``, and is filled. Whatever is not stopped gets the full check.

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
            SettingError: The class takes no ``callback_on_step_end``, has no ``interrupt``, or no scheduler to ask.
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

    @functools.wraps(step)  # pipelines ask for its parameters
    def noting(model_output: Any, timestep: Any, sample: Any, *args: Any, **more: Any) -> Any:
        result = step(model_output, timestep, sample, *args, **more)
        watch.predicted = predicted_original(scheduler, model_output, timestep, sample, result)
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


def predicted_original(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, result: Any) -> Tensor:
    """The finished sample that a scheduler's step predicts, of the shape of ``sample``.

    Args:
        scheduler: After its step.
        model_output: What the step was given: noise, velocity or sample, after guidance.
        timestep: What the step was given.
        sample: What the step was given.
        result: What it returned.

    Raises:
        SettingError: The scheduler is of no known family.
    """
    name = type(scheduler).__name__
    unknown = SettingError(f"What a {name} predicts is not known: it cannot be stopped early. Attach without early=.")
    if not isinstance(sample, Tensor) or not isinstance(model_output, Tensor):
        raise unknown
    # DDIM, DDPM, Euler, Euler ancestral, LCM and others return it beside the next sample.
    values = list(result.values()) if isinstance(result, dict) else list(result)
    beside = len(values) > 1 and not name.startswith("TCD")  # that one returns a noised sample there
    if beside and isinstance(values[1], Tensor) and values[1].shape == sample.shape:
        return values[1]
    # DPM-Solver++, UniPC and SA-Solver keep it, converted, for their next steps.
    kept = getattr(scheduler, "model_outputs", None)
    if kept and isinstance(kept[-1], Tensor) and _keeps_original(scheduler.config):
        original: Tensor = kept[-1]
        return original
    # Flow matching: the sample lies on a line from the original to noise, and the model predicts its direction.
    flow = scheduler.config.get("prediction_type") == "flow_prediction"
    if ("FlowMatch" in name or flow) and scheduler.step_index is not None:
        sigma = scheduler.sigmas[max(scheduler.step_index - 1, 0)].to(sample.device, torch.float32)
        line: Tensor = sample.float() - sigma * model_output.float()
        return line.to(sample.dtype)
    kind = scheduler.config.get("prediction_type")
    if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "v_prediction", "sample"):
        raise unknown
    alpha = scheduler.alphas_cumprod[int(timestep)].to(sample.device, torch.float32)
    x, y = sample.float(), model_output.float()
    if kind == "epsilon":
        y = (x - (1 - alpha).sqrt() * y) / alpha.sqrt()
    elif kind == "v_prediction":
        y = alpha.sqrt() * x - (1 - alpha).sqrt() * y
    return y.to(sample.dtype)


def _keeps_original(config: Any) -> bool:
    algorithm = config.get("algorithm_type", "")
    return bool(config.get("predict_x0", False)) or algorithm.endswith("++") or algorithm == "data_prediction"


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
        seen = read_images(self._preview(self.predicted), value_range=(-1, 1), clamp=True, alpha=False)
        verdicts = self._policy.decide(self._record.attachment.guard.classify(seen))
        # A preview that overflows says nothing about the image.
        if all(verdict.flagged and verdict.reason != "non_finite" for verdict in verdicts):
            self._record.aborted = True
            self._pipe._interrupt = True

    def _preview(self, predicted: Tensor) -> Any:
        """``[B, 3, H, W]`` in [-1, 1], not clamped."""
        preview, vae = self._early.preview, getattr(self._pipe, "vae", None)
        if callable(preview) and not hasattr(preview, "decode"):
            return preview(self._pipe, predicted)
        if vae is None and predicted.ndim == 4 and predicted.shape[1] == 3:
            return predicted  # a pipeline in pixel space
        latents = self._unpacked(predicted)
        if hasattr(preview, "decode"):
            image = preview.decode(latents.to(preview.device, preview.dtype), return_dict=False)[0]
            return image[:, :, 0] if image.ndim == 5 else image
        short = min(latents.shape[-2:])
        if short > _PREVIEW:
            size = [max(1, round(side * _PREVIEW / short)) for side in latents.shape[-2:]]
            flat = latents.movedim(2, 1).flatten(0, 1) if latents.ndim == 5 else latents
            flat = F.interpolate(flat.float(), size=size, mode="area").to(latents.dtype)
            latents = flat.unflatten(0, (len(latents), -1)).movedim(1, 2) if latents.ndim == 5 else flat
        if preview == "vae":
            return self._decode(vae, latents)
        if self._record.attachment.to_rgb is None:
            image = self._decode(vae, latents)
            self._record.attachment.to_rgb = _fit(latents, image)
            return image
        return torch.einsum("bchw,cd->bdhw", _with_ones(latents), self._record.attachment.to_rgb.to(latents.device))

    def _unpacked(self, latents: Tensor) -> Tensor:
        """Latents as the VAE knows them, ``[B, C, h, w]`` or, for video, one latent frame, ``[B, C, 1, h, w]``."""
        pipe = self._pipe
        channels = getattr(getattr(pipe.vae, "config", None), "latent_channels", None) or getattr(
            getattr(pipe.vae, "config", None), "z_dim", None
        )
        unpack = getattr(pipe, "_unpack_latents", None)
        wanted = ["latents", "height", "width", "vae_scale_factor"]
        if latents.ndim == 3 and unpack is not None and list(inspect.signature(unpack).parameters) == wanted:
            rows, columns = _grid(latents.shape[1], self._arguments.get("height"), self._arguments.get("width"))
            scale = pipe.vae_scale_factor
            latents = unpack(latents, rows * 2 * scale, columns * 2 * scale, scale)
        if latents.ndim == 5 and channels is not None and latents.shape[1] == channels:
            return latents[:, :, :1]
        if latents.ndim == 4 and (channels is None or latents.shape[1] == channels):
            return latents
        raise SettingError(
            f"The latents of {type(pipe).__name__}, of shape {tuple(latents.shape)}, are in a form that EarlyExit "
            "cannot decode; pass preview=, a function of the pipeline and the latents: [B, 3, H, W] in [-1, 1]."
        )

    @staticmethod
    def _decode(vae: Any, latents: Tensor) -> Any:
        """Undo the scaling that the VAE's config states, and decode."""
        config = vae.config
        if latents.ndim == 5 and not any(weights.ndim == 5 for weights in vae.parameters()):
            latents = latents[:, :, 0]  # frames of a VAE for images
        mean, std = config.get("latents_mean"), config.get("latents_std")
        latents = latents.to(vae.dtype)
        if mean is not None and std is not None:
            shape = (1, -1, *[1] * (latents.ndim - 2))
            mean = torch.tensor(mean, device=latents.device, dtype=latents.dtype).view(shape)
            std = torch.tensor(std, device=latents.device, dtype=latents.dtype).view(shape)
            latents = latents * std / (config.get("scaling_factor") or 1.0) + mean
        else:
            latents = latents / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
        dtype = vae.dtype
        if dtype == torch.float16 and config.get("force_upcast"):  # it overflows; as its own pipelines do
            vae.to(torch.float32)
            image = vae.decode(latents.float(), return_dict=False)[0]
            vae.to(dtype)
        else:
            image = vae.decode(latents, return_dict=False)[0]
        return image[:, :, 0] if image.ndim == 5 else image


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


def _grid(tokens: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Rows and columns of packed latents: of all that multiply to their number, those of the nearest aspect ratio."""
    aspect = math.log(height / width) if height and width else 0.0
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - aspect))


def _with_ones(latents: Tensor) -> Tensor:
    flat = latents[:, :, 0] if latents.ndim == 5 else latents
    return torch.cat([flat.float(), torch.ones_like(flat[:, :1], dtype=torch.float32)], dim=1)


def _fit(latents: Tensor, image: Tensor) -> Tensor:
    """The linear map ``[C + 1, 3]`` from latents, with a constant, to colours that comes nearest to a decoded image."""
    x = _with_ones(latents)
    y = F.interpolate(image.float(), size=x.shape[-2:], mode="area")
    x, y = x.movedim(1, -1).flatten(0, -2), y.movedim(1, -1).flatten(0, -2)
    solution: Tensor = torch.linalg.lstsq(x, y).solution
    return solution
