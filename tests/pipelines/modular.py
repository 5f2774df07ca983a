"""Tiny modular pipelines: blocks whose components are set by hand, in memory, no hub.

A modular pipeline returns its whole state, which has the images or clips as an attribute like any pipeline's output, or
with ``output`` in the call the images or clips themselves: `arguments` asks for those. Each draws two.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from PIL import Image
from transformers import T5Config, T5EncoderModel

from . import _seeded, _text_encoder, tokenizer
from .case import Case
from .videos import _T5, FRAMES, PROMPTS, SIDE, _noise, _pictures, _wan_transformer, _wan_vae, t5_tokenizer


def modular_flux() -> diffusers.FluxModularPipeline:
    """Build Flux, whose last block decodes and postprocesses."""
    return _build(
        diffusers.FluxAutoBlocks(),
        text_encoder=_seeded(_text_encoder),
        tokenizer=tokenizer(),
        text_encoder_2=_seeded(lambda: T5EncoderModel(T5Config(**_T5))),
        tokenizer_2=t5_tokenizer(),
        vae=_seeded(
            lambda: diffusers.AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=1,
                norm_num_groups=2,
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.0,
                scaling_factor=1.0,
            )
        ),
        transformer=_seeded(
            lambda: diffusers.FluxTransformer2DModel(
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=[4, 4, 8],
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def modular_qwen() -> diffusers.QwenImageModularPipeline:
    """Build Qwen-Image, whose postprocessing is a block of its own; the calls bring the prompts' embeddings.

    With a mask and ``padding_mask_crop`` it paints a part of the picture and lays that over the rest after
    postprocessing. Its block for that takes no output type but "pil".
    """
    return _build(
        diffusers.QwenImageAutoBlocks(),
        vae=_seeded(lambda: _wan_vae("AutoencoderKLQwenImage")),
        transformer=_seeded(
            lambda: diffusers.QwenImageTransformer2DModel(
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(8, 4, 4),
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=1.0),
    )


def modular_wan() -> diffusers.WanModularPipeline:
    """Build Wan without its text encoder, which wants another package; the call brings the prompts' embeddings."""
    blocks = diffusers.WanBlocks()
    blocks.sub_blocks.pop("text_encoder")
    return _build(
        blocks,
        vae=_seeded(_wan_vae),
        transformer=_seeded(_wan_transformer),
        scheduler=diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=2.0),
    )


def arguments(name: str, output_type: str = "pil", *, seed: int = 0) -> dict[str, Any]:
    """Make all arguments of a case's call, so that it returns the images or clips themselves."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    return {**case.call(), "generator": generator, "output_type": output_type, "output": case.field}


def _build(blocks: Any, **components: Any) -> diffusers.ModularPipeline:
    _silence(blocks)
    pipe = blocks.init_pipeline()
    pipe.update_components(**components)
    return pipe


def _silence(blocks: Any) -> None:
    """Turn off the progress bars, which the pipeline's own method does for its outer blocks only."""
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in blocks.sub_blocks.values():
        _silence(block)


def _inpaint() -> dict[str, Any]:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 20, 20))
    return {**_embeds(), "image": _pictures(1)[0], "mask_image": mask, "padding_mask_crop": 2, "strength": 1.0}


def _embeds() -> dict[str, Any]:
    embeds = {"prompt_embeds": _noise(1, 8, 16), "prompt_embeds_mask": torch.ones(1, 8, dtype=torch.long)}
    return {**_SIZE, **embeds, "num_images_per_prompt": 2}


def _clips() -> dict[str, Any]:
    positive, negative = _noise(2, 2, 8, 32)
    return {**_SIZE, "prompt_embeds": positive, "negative_prompt_embeds": negative, "num_frames": FRAMES}


_SIZE = {"height": SIDE, "width": SIDE, "num_inference_steps": 2}

CASES: dict[str, Case] = {
    "modular_flux": Case(
        modular_flux, lambda: {**_SIZE, "prompt": PROMPTS, "max_sequence_length": 16, "guidance_scale": 1.0}
    ),
    "modular_qwen": Case(modular_qwen, _embeds),
    "modular_qwen_inpaint": Case(modular_qwen, _inpaint, output_types=("pil",)),
    "modular_wan": Case(modular_wan, _clips, "videos"),
}
