"""A look ahead: the finished latents that a step of the scheduler predicts, and a small picture of them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsfw_guard.errors import SettingError

from . import table
from .settings import Attachment

# The short side to which latents are reduced before the pipeline's own VAE decodes them: 256 pixels, for most VAEs.
_SHORT_SIDE = 32
# The parameters of the one way to unpack latents that many classes share.
_UNPACK = ["latents", "height", "width", "vae_scale_factor"]
# Schedulers with sigmas whose models predict nothing that leads to the finished sample in one line.
_NOT_KNOWN = ("CMStochasticIterativeScheduler", "MiniMaxH3Scheduler", "PiflowScheduler")
# Parts of the names of those whose models predict the direction from the original to noise.
_FLOW = ("FlowMatch", "FlowMap", "LTXEulerAncestralRF", "HeliosDMD")

ADVICE = "Pass preview=, a function of the pipeline and the predicted latents: [B, 3, H, W] in [-1, 1]."


def predicts(scheduler: Any) -> bool:
    """Whether it is known what a scheduler predicts, as far as its kind tells."""
    named = any(base.__name__ in _NOT_KNOWN for base in type(scheduler).__mro__)
    return not named and (hasattr(scheduler, "sigmas") or hasattr(scheduler, "alphas_cumprod"))


def predicted_original(scheduler: Any, given: dict[str, Any], result: Any) -> Tensor:
    """The finished sample that a scheduler's step predicts, of the shape of the sample.

    Args:
        scheduler: After its step.
        given: What the step was given, by name: ``model_output`` (noise, velocity or sample, after guidance),
            ``timestep``, ``sample`` and, where the tokens have times of their own, ``per_token_timesteps``.
        result: What it returned.

    Raises:
        SettingError: The scheduler is of no known family.
    """
    name = type(scheduler).__name__
    model_output, sample = given["model_output"], given["sample"]
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
    flow = scheduler.config.get("prediction_type") == "flow_prediction" or any(kind in name for kind in _FLOW)
    times = given.get("per_token_timesteps")
    if flow and times is not None:  # then the direction is the other one: FlowMatchEulerDiscreteScheduler.step
        sigma = (times / scheduler.config.num_train_timesteps).to(sample.device, torch.float32)[..., None]
        line: Tensor = sample.float() + sigma * model_output.float()
        return line.to(sample.dtype)
    if flow and scheduler.step_index is not None:
        sigma = scheduler.sigmas[max(scheduler.step_index - 1, 0)].to(sample.device, torch.float32)
        line = sample.float() - sigma * model_output.float()
        return line.to(sample.dtype)
    kind = scheduler.config.get("prediction_type")
    if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "v_prediction", "sample"):
        raise unknown
    alpha = scheduler.alphas_cumprod[int(given["timestep"])].to(sample.device, torch.float32)
    x, y = sample.float(), model_output.float()
    if kind == "epsilon":
        y = (x - (1 - alpha).sqrt() * y) / alpha.sqrt()
    elif kind == "v_prediction":
        y = alpha.sqrt() * x - (1 - alpha).sqrt() * y
    return y.to(sample.dtype)


def _keeps_original(config: Any) -> bool:
    algorithm = config.get("algorithm_type", "")
    return bool(config.get("predict_x0", False)) or algorithm.endswith("++") or algorithm == "data_prediction"


def is_own(preview: Any) -> bool:
    """Whether a preview is a function of the user's own."""
    return callable(preview) and not hasattr(preview, "decode")


def packs_its_own_way(pipe: Any) -> bool:
    """Whether a pipeline packs its latents, and not as most of those do that pack them."""
    if table.has_latents_of_its_own(type(pipe)):
        return True
    unpack = getattr(pipe, "_unpack_latents", None)
    if unpack is None:
        return hasattr(pipe, "_unpack_latents_with_ids")
    return list(inspect.signature(unpack).parameters) != _UNPACK


def preview_of(pipe: Any, predicted: Tensor, preview: Any, attachment: Attachment, arguments: dict[str, Any]) -> Any:
    """A small picture of predicted latents; of a video, of its first frame.

    Args:
        pipe: The pipeline.
        predicted: In the form in which the pipeline denoises them.
        preview: As ``EarlyExit`` takes it.
        attachment: Keeps the map from latents to colours.
        arguments: Of the call: its height and width, if it was given them.

    Returns:
        ``[B, 3, H, W]`` in [-1, 1], not clamped.

    Raises:
        SettingError: Latents in a form that is not known.
    """
    if is_own(preview):
        return preview(pipe, predicted)
    vae = getattr(pipe, "vae", None)
    if vae is None and predicted.ndim == 4 and predicted.shape[1] == 3:
        return predicted  # a pipeline in pixel space
    latents = _unpacked(pipe, predicted, arguments)
    if hasattr(preview, "decode"):
        return _first_frame(preview.decode(latents.to(preview.device, preview.dtype), return_dict=False)[0])
    latents = _reduced(latents)
    if preview == "vae":
        return _decode(vae, latents)
    if attachment.to_rgb is None:
        image = _decode(vae, latents)
        attachment.to_rgb = _fit(latents, image)
        return image
    return torch.einsum("bchw,cd->bdhw", _with_ones(latents), attachment.to_rgb.to(latents.device))


def _unpacked(pipe: Any, latents: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Latents as the VAE knows them, ``[B, C, h, w]`` or, for video, one latent frame, ``[B, C, 1, h, w]``."""
    config = getattr(getattr(pipe, "vae", None), "config", None)
    channels = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
    if latents.ndim == 3 and hasattr(pipe, "_unpack_latents"):
        latents = _unpacked_tokens(pipe, latents, arguments)
    if latents.ndim == 5 and table.frames_first(type(pipe)):
        latents = latents.movedim(1, 2)
    if latents.ndim == 5 and channels is not None and latents.shape[1] == channels:
        return latents[:, :, :1]
    if latents.ndim == 4 and (channels is None or latents.shape[1] == channels):
        return latents
    raise SettingError(
        f"The latents of {type(pipe).__name__}, of shape {tuple(latents.shape)}, are in a form that EarlyExit "
        f"cannot decode. {ADVICE}"
    )


def _unpacked_tokens(pipe: Any, latents: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Tokens ``[B, N, C]``, unpacked by the pipeline, which wants a size in pixels; as they came if it cannot.

    A token is 2x2 latents or, with Bria and Qwen-Image 2.1, as large as the scale factor says.
    """
    rows, columns = _grid(latents.shape[1], arguments.get("height"), arguments.get("width"))
    scale = pipe.vae_scale_factor
    for side in (2 * scale, scale):
        try:
            unpacked: Tensor = pipe._unpack_latents(latents, rows * side, columns * side, scale)
        except RuntimeError:  # they do not fill that size
            continue
        return unpacked
    return latents


def _reduced(latents: Tensor) -> Tensor:
    """The same, no larger than a preview needs."""
    short = min(latents.shape[-2:])
    if short <= _SHORT_SIDE:
        return latents
    size = [max(1, round(side * _SHORT_SIDE / short)) for side in latents.shape[-2:]]
    flat = F.interpolate(_first_frame(latents).float(), size=size, mode="area").to(latents.dtype)
    return flat[:, :, None] if latents.ndim == 5 else flat


def _first_frame(images: Tensor) -> Tensor:
    return images[:, :, 0] if images.ndim == 5 else images


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """Undo the scaling that the VAE's config states, and decode."""
    config, dtype = vae.config, vae.dtype
    if not any(weights.ndim == 5 for weights in vae.parameters()):
        latents = _first_frame(latents)  # frames of a VAE for images
    mean, std = config.get("latents_mean"), config.get("latents_std")
    latents = latents.to(dtype)
    if mean is not None and std is not None:
        mean, std = (_of_shape(torch.tensor(v, device=latents.device, dtype=dtype), latents) for v in (mean, std))
        latents = latents * std / (config.get("scaling_factor") or 1.0) + mean
    else:
        latents = latents / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
    upcast = dtype == torch.float16 and config.get("force_upcast")  # it overflows; as its own pipelines do
    try:
        if upcast:
            vae.to(torch.float32)
        return _first_frame(vae.decode(latents.to(vae.dtype), return_dict=False)[0])
    finally:
        if upcast:
            vae.to(dtype)


def _of_shape(values: Tensor, latents: Tensor) -> Tensor:
    """Values of each channel, and with some VAEs of each frame, as they are multiplied with latents."""
    values = values.view(1, latents.shape[1], -1)
    values = values[:, :, : latents.shape[2]] if latents.ndim == 5 else values[:, :, 0]
    return values[..., None, None]


def _grid(tokens: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Rows and columns of packed latents: of all that multiply to their number, those of the nearest aspect ratio."""
    aspect = math.log(height / width) if height and width else 0.0
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - aspect))


def _with_ones(latents: Tensor) -> Tensor:
    flat = _first_frame(latents)
    return torch.cat([flat.float(), torch.ones_like(flat[:, :1], dtype=torch.float32)], dim=1)


def _fit(latents: Tensor, image: Tensor) -> Tensor:
    """The linear map ``[C + 1, 3]`` from latents, with a constant, to colours that comes nearest to a decoded image."""
    x = _with_ones(latents)
    y = F.interpolate(image.float(), size=x.shape[-2:], mode="area")
    x, y = x.movedim(1, -1).flatten(0, -2), y.movedim(1, -1).flatten(0, -2)
    solution: Tensor = torch.linalg.lstsq(x, y).solution
    return solution
