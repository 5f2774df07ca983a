"""Tiny real diffusers pipelines: random weights, in memory, no hub.

Every builder is named after its pipeline, takes the checker for its slot, and draws 64x64 pictures. The same call gives
the same weights.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIDE = 64
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")


def stable_diffusion(guard: Any = None, **components: Any) -> StableDiffusionPipeline:
    """Build the text-to-image pipeline; ``components`` replace its own."""
    return _build(StableDiffusionPipeline, guard, components, image_encoder=None)


def stable_diffusion_img2img(guard: Any = None) -> StableDiffusionImg2ImgPipeline:
    return _build(StableDiffusionImg2ImgPipeline, guard, {}, image_encoder=None)


def stable_diffusion_inpaint(guard: Any = None) -> StableDiffusionInpaintPipeline:
    return _build(StableDiffusionInpaintPipeline, guard, {}, image_encoder=None)


def stable_diffusion_controlnet(guard: Any = None) -> StableDiffusionControlNetPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        controlnet = ControlNetModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=32,
            attention_head_dim=4,
            down_block_types=_DOWN,
            conditioning_embedding_out_channels=(4, 8),
        )
    return _build(StableDiffusionControlNetPipeline, guard, {}, controlnet=controlnet, image_encoder=None)


def latent_consistency_model(guard: Any = None) -> LatentConsistencyModelPipeline:
    unet = {"time_cond_proj_dim": 8}
    return _build(
        LatentConsistencyModelPipeline, guard, {"scheduler": LCMScheduler(**_BETAS)}, unet, image_encoder=None
    )


def stable_diffusion_adapter(guard: Any = None) -> StableDiffusionAdapterPipeline:
    """Build the T2I-Adapter pipeline: a caller that hands arrays over."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapter = T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        )
    return _build(StableDiffusionAdapterPipeline, guard, {}, adapter=adapter)


def stable_diffusion_ldm3d(guard: Any = None, *, channels: int = 6) -> StableDiffusionLDM3DPipeline:
    """Build LDM3D, whose VAE decodes to RGB and one or three channels of depth."""
    components = {"vae": _seeded(lambda: _vae(channels))}
    return _build(StableDiffusionLDM3DPipeline, guard, components, image_encoder=None)


def _build(
    cls: type[DiffusionPipeline], guard: Any, components: dict, unet: dict | None = None, **more: Any
) -> DiffusionPipeline:
    parts = {
        "vae": _seeded(_vae),
        "text_encoder": _seeded(_text_encoder),
        "unet": _seeded(lambda: _unet(**(unet or {}))),
        "tokenizer": tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **_BETAS),
        "safety_checker": guard,
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }
    pipe = cls(**{**parts, **more, **components}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer that knows the lower-case letters."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    tokens += [f"{letter}</w>" for letter in string.ascii_lowercase]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _seeded(build: Any) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def _vae(channels: int = 3) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=SIDE // 2,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=_DOWN,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **changes,
    )


def _text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)
