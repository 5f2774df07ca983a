"""A tiny ONNX Stable Diffusion, exported on the spot: needs ``onnx`` and ``onnxruntime``. Diffusers deprecates it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from diffusers import OnnxRuntimeModel, OnnxStableDiffusionPipeline
from torch import nn

from . import SIDE, _seeded, _text_encoder, _unet, _vae, stable_diffusion, tokenizer


class _Part(nn.Module):
    """A network with one tensor for its output, as the exporter wants it."""

    def __init__(self, network: nn.Module, run: Any) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.run(self.network, *inputs)


def onnx_stable_diffusion(folder: Path) -> OnnxStableDiffusionPipeline:
    """Build the pipeline and keep its networks in this folder.

    Call it with a height and width of 256 for pictures of 64x64: it takes a VAE that shrinks by 8 for granted. Its
    ``generator`` is a ``numpy.random.RandomState``, and it gives arrays unless "pil" is asked for.
    """
    folder = Path(folder)
    ids = torch.zeros(2, 77, dtype=torch.int32)
    latents, embeds = torch.zeros(2, 4, SIDE // 2, SIDE // 2), torch.zeros(2, 77, 32)
    vae = _seeded(_vae)
    parts = {
        "text_encoder": (_seeded(_text_encoder), lambda net, ids: net(ids)[0], {"input_ids": ids}),
        "unet": (
            _seeded(_unet),
            lambda net, sample, timestep, embeds: net(sample, timestep, embeds, return_dict=False)[0],
            {"sample": latents, "timestep": torch.zeros(1, dtype=torch.int64), "encoder_hidden_states": embeds},
        ),
        "vae_decoder": (vae, lambda net, sample: net.decode(sample, return_dict=False)[0], {"latent_sample": latents}),
        "vae_encoder": (
            vae,
            lambda net, sample: net.encode(sample).latent_dist.mode(),
            {"sample": torch.zeros(2, 3, SIDE, SIDE)},
        ),
    }
    models = {name: _export(folder / f"{name}.onnx", *part) for name, part in parts.items()}
    pipe = OnnxStableDiffusionPipeline(
        **models,
        tokenizer=tokenizer(),
        scheduler=stable_diffusion().scheduler,
        safety_checker=None,
        feature_extractor=stable_diffusion().feature_extractor,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _export(path: Path, network: nn.Module, run: Any, inputs: dict[str, torch.Tensor]) -> OnnxRuntimeModel:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Part(network, run),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["out"],
            dynamic_axes={name: {0: "batch"} for name in inputs if name != "timestep"},
            opset_version=18,
            dynamo=False,
        )
    return OnnxRuntimeModel(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))
