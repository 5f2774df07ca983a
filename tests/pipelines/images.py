"""Tiny pipelines that draw images and have no slot for a checker.

Every builder is named after its pipeline and draws three 64x64 pictures in one call, unless it says otherwise. Those
with a large text encoder have none, and the call brings embeddings.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    MarigoldDepthPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPixelPipeline,
    PRXTransformer2DModel,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UVit2DModel,
    VQModel,
)
from PIL import Image
from transformers import (
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from . import _BETAS, SIDE, _seeded, _text_encoder, _unet, _vae, tokenizer
from .case import Case

PROMPTS = ["a cat", "two dogs", "zebras"]
WIDTH = 32  # of embeddings
_SIZE = {"height": SIDE, "width": SIDE}
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_FEW = {"num_inference_steps": 2, "guidance_scale": 1.0}
_QWEN = 8  # latent channels; not four, or the layered pipeline takes an RGBA picture for latents

# --- Stable Diffusion XL ---------------------------------------------------------------------------------------------


def sdxl() -> StableDiffusionXLPipeline:
    return _sdxl(StableDiffusionXLPipeline)


def sdxl_img2img(**components: Any) -> StableDiffusionXLImg2ImgPipeline:
    """Build image-to-image as the refiner is: one text encoder, and aesthetic scores."""
    unet = _seeded(lambda: _sdxl_unet(cross_attention_dim=WIDTH, projection_class_embeddings_input_dim=5 * 8 + WIDTH))
    refiner = {"unet": unet, "text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
    return _sdxl(StableDiffusionXLImg2ImgPipeline, **refiner, **components)


def sdxl_inpaint() -> StableDiffusionXLInpaintPipeline:
    return _sdxl(StableDiffusionXLInpaintPipeline)


def sdxl_base_to_refiner() -> tuple[StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline]:
    """Build a base and a refiner with one VAE: what the first draws as "latent" is the second's ``image``."""
    base = sdxl()
    return base, sdxl_img2img(vae=base.vae, text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer_2)


def _sdxl(cls: type[DiffusionPipeline], **components: Any) -> DiffusionPipeline:
    parts = {
        "vae": _seeded(lambda: _changed(_vae(), force_upcast=False)),  # it warns of its own upcasting
        "unet": _seeded(_sdxl_unet),
        "text_encoder": _seeded(_text_encoder),
        "text_encoder_2": _seeded(_projecting_text_encoder),
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "scheduler": _ddim(),
    }
    return _pipe(cls, add_watermarker=False, **{**parts, **components})


def _sdxl_unet(**changes: Any) -> UNet2DConditionModel:
    sizes = {"cross_attention_dim": 2 * WIDTH, "projection_class_embeddings_input_dim": 6 * 8 + WIDTH, **changes}
    return _changed(_unet(), addition_embed_type="text_time", addition_time_embed_dim=8, **sizes)


# --- Stable Diffusion 3 and Flux -------------------------------------------------------------------------------------


def sd3() -> StableDiffusion3Pipeline:
    """Build SD3 without its T5, which it may lack."""
    sizes = {"caption_projection_dim": 32, "joint_attention_dim": 2 * WIDTH, "pooled_projection_dim": 2 * WIDTH}
    channels = {"in_channels": 4, "out_channels": 4}
    return _pipe(
        StableDiffusion3Pipeline,
        transformer=_part(SD3Transformer2DModel, sample_size=SIDE // 2, num_layers=1, **_HEADS, **channels, **sizes),
        vae=_seeded(_shifted_vae),
        text_encoder=_seeded(_projecting_text_encoder),
        text_encoder_2=_seeded(_projecting_text_encoder),
        text_encoder_3=None,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=None,
    )


def flux() -> FluxPipeline:
    return _flux(FluxPipeline)


def flux_fill() -> FluxFillPipeline:
    """Build Flux Fill, whose transformer takes noise, the masked picture and the mask: 16 channels each."""
    return _flux(FluxFillPipeline, in_channels=3 * 16)


def flux_kontext() -> FluxKontextPipeline:
    return _flux(FluxKontextPipeline)


def _flux(cls: type[DiffusionPipeline], in_channels: int = 16) -> DiffusionPipeline:
    sizes = {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": (4, 4, 8), **_HEADS}
    layers = {"num_layers": 1, "num_single_layers": 1}
    return _pipe(
        cls,
        transformer=_part(FluxTransformer2DModel, in_channels=in_channels, out_channels=16, **layers, **sizes),
        vae=_seeded(_shifted_vae),
        text_encoder=_seeded(_text_encoder),
        text_encoder_2=_t5(),
        tokenizer=tokenizer(),
        tokenizer_2=_t5_tokenizer(),
    )


# --- Qwen-Image ------------------------------------------------------------------------------------------------------


def qwen_image() -> QwenImagePipeline:
    """Build Qwen-Image, whose VAE decodes clips of one frame."""
    return _pipe(QwenImagePipeline, transformer=_qwen_transformer(), vae=_seeded(lambda: _qwen_vae(halvings=1)))


def qwen_image_layered() -> QwenImageLayeredPipeline:
    """Build the pipeline that takes one picture apart: one list of three RGBA layers, 640x640.

    It draws at no smaller size; the VAE halves so often that this is cheap. The text encoder is there for its dtype.
    """
    return _pipe(
        QwenImageLayeredPipeline,
        transformer=_qwen_transformer(use_layer3d_rope=True, use_additional_t_cond=True),
        vae=_seeded(lambda: _qwen_vae(halvings=5, channels=4)),
        text_encoder=_seeded(_qwen_text_encoder),
        processor=None,
    )


def _qwen_transformer(**more: Any) -> QwenImageTransformer2DModel:
    sizes = {"in_channels": 4 * _QWEN, "out_channels": _QWEN, "joint_attention_dim": WIDTH}
    return _part(QwenImageTransformer2DModel, num_layers=1, axes_dims_rope=(4, 6, 6), **sizes, **_HEADS, **more)


@torch.no_grad()
def _qwen_vae(*, halvings: int, channels: int = 3) -> AutoencoderKLQwenImage:
    vae = AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=_QWEN,
        dim_mult=[1] * (halvings + 1),
        num_res_blocks=0,
        temperal_downsample=[False] * halvings,
        input_channels=channels,
        latents_mean=[0.0] * _QWEN,
        latents_std=[1.0] * _QWEN,
    )
    for name, parameter in vae.decoder.named_parameters():
        if name.endswith("bias"):  # they would outweigh so little noise
            parameter.zero_()
    vae.decoder.conv_out.weight *= 2
    return vae


def _qwen_text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    both = {"hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": {"mrope_section": [1, 1, 2]}}
    text = {"vocab_size": 32, "num_hidden_layers": 1, "bos_token_id": 0, "eos_token_id": 1, **heads, **both}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 16, **both}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _call_qwen_image_layered() -> dict[str, Any]:
    picture = Image.radial_gradient("L").convert("RGBA")
    embedded = {"prompt": "a cat", "prompt_embeds": _embeddings(1), "prompt_embeds_mask": _mask(1)}
    return {"image": picture, **embedded, "layers": 3, "num_inference_steps": 1, "true_cfg_scale": 1.0}


# --- Other transformers ----------------------------------------------------------------------------------------------


def pixart_sigma() -> PixArtSigmaPipeline:
    sizes = {"sample_size": SIDE // 2, "cross_attention_dim": 32, "caption_channels": WIDTH, **_HEADS}
    return _pipe(
        PixArtSigmaPipeline,
        transformer=_part(PixArtTransformer2DModel, num_layers=1, use_additional_conditions=False, **sizes),
        vae=_seeded(_vae),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(),
    )


def sana() -> SanaPipeline:
    """Build Sana, whose VAE is not of the usual kind."""
    sizes = {"sample_size": SIDE // 2, "in_channels": 4, "out_channels": 4, "caption_channels": WIDTH, **_HEADS}
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32}
    vae = _part(
        AutoencoderDC,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    )
    return _pipe(SanaPipeline, transformer=_part(SanaTransformer2DModel, num_layers=1, **sizes, **cross), vae=vae)


def lumina2() -> Lumina2Pipeline:
    """Build Lumina, which takes it that every VAE halves three times."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    layers = {"num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1}
    sizes = {"sample_size": SIDE // 8, "in_channels": 4, "hidden_size": 32, "multiple_of": 16, "cap_feat_dim": WIDTH}
    rope = {"axes_dim_rope": (4, 6, 6), "axes_lens": (16, 16, 16)}
    return _pipe(
        Lumina2Pipeline,
        transformer=_part(Lumina2Transformer2DModel, **layers, **sizes, **rope),
        vae=_seeded(lambda: _changed(_shifted_vae(), block_out_channels=(8,) * 4, **blocks)),
    )


def auraflow() -> AuraFlowPipeline:
    layers = {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "pos_embed_max_size": (SIDE // 4) ** 2}
    sizes = {"sample_size": SIDE // 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 32, **_HEADS}
    return _pipe(AuraFlowPipeline, transformer=_part(AuraFlowTransformer2DModel, **layers, **sizes), vae=_seeded(_vae))


# --- What is unlike the others ---------------------------------------------------------------------------------------


def amused() -> AmusedPipeline:
    """Build aMUSEd, which draws tokens: what it postprocesses lies in [0, 1] already."""
    embedded = {"cond_embed_dim": WIDTH, "encoder_hidden_size": WIDTH}
    embedded |= {"micro_cond_encode_dim": 4, "micro_cond_embed_dim": 5 * 4}
    layers = {"num_res_blocks": 1, "num_hidden_layers": 1, "block_num_heads": 2, "num_attention_heads": 2}
    sizes = {"sample_size": SIDE // 2, "hidden_size": 32, "intermediate_size": 32}
    sizes |= {"in_channels": 32, "block_out_channels": 32, "vocab_size": 32, "codebook_size": 31}
    return _pipe(
        AmusedPipeline,
        transformer=_part(UVit2DModel, **embedded, **layers, **sizes),
        vqvae=_seeded(_vqvae),
        text_encoder=_seeded(_projecting_text_encoder),
        tokenizer=tokenizer(),
        scheduler=AmusedScheduler(mask_token_id=31),
    )


@torch.no_grad()
def _vqvae() -> VQModel:
    vqvae = VQModel(
        block_out_channels=(8, 16),
        latent_channels=4,
        num_vq_embeddings=31,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        lookup_from_codebook=True,
    )
    vqvae.quantize.embedding.weight *= 31  # so that tokens differ
    vqvae.decoder.conv_out.bias += 0.5  # the middle of what it decodes to
    return vqvae


def prx_pixel() -> PRXPixelPipeline:
    """Build PRX for pixels, which has no VAE; its "pt" is what the scheduler left, in [-1, 1], not postprocessed."""
    sizes = {"in_channels": 3, "patch_size": 4, "context_in_dim": WIDTH, "hidden_size": 32, "axes_dim": [8, 8]}
    transformer = _part(PRXTransformer2DModel, num_heads=2, depth=1, **sizes)
    return _pipe(PRXPixelPipeline, transformer=transformer, default_sample_size=SIDE)


def marigold() -> MarigoldDepthPipeline:
    """Build a pipeline that makes no picture: ``pipe(source()).prediction`` is depth, one channel, "np" or "pt"."""
    return _pipe(
        MarigoldDepthPipeline,
        unet=_seeded(lambda: _changed(_unet(), in_channels=8)),
        vae=_seeded(_vae),
        text_encoder=_seeded(_text_encoder),
        tokenizer=tokenizer(),
        scheduler=_ddim(),
        prediction_type="depth",
        default_denoising_steps=1,
        default_processing_resolution=0,
    )


# --- Shared ----------------------------------------------------------------------------------------------------------


def source() -> torch.Tensor:
    """Three coarse pictures to start from, in [0, 1]."""
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    return coarse.repeat_interleave(SIDE // 8, 2).repeat_interleave(SIDE // 8, 3)


def right_half() -> torch.Tensor:
    """Three masks: the left half is to be kept."""
    return torch.ones(3, 1, SIDE, SIDE).index_fill(3, torch.arange(SIDE // 2), 0.0)


def _pipe(cls: type[DiffusionPipeline], **parts: Any) -> DiffusionPipeline:
    usual = {"scheduler": FlowMatchEulerDiscreteScheduler(), "text_encoder": None, "tokenizer": None}
    pipe = cls(**{**usual, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _part(cls: type[torch.nn.Module], **config: Any) -> Any:
    return _seeded(lambda: cls(**config))


def _changed(model: Any, **changes: Any) -> Any:
    """Build the model anew with another configuration."""
    return type(model).from_config(model.config, **changes)


def _shifted_vae() -> AutoencoderKL:
    return _changed(_vae(), shift_factor=0.1, scaling_factor=0.5)


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **_BETAS)


def _projecting_text_encoder() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_text_encoder().config)


def _t5() -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return _part(T5EncoderModel, config=config)


def _t5_tokenizer() -> T5Tokenizer:
    """Build a T5 tokenizer that knows the lower-case letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_lowercase]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=32)


def _embeddings(count: int) -> torch.Tensor:
    return torch.randn(count, 8, WIDTH, generator=torch.Generator().manual_seed(5))


def _mask(count: int) -> torch.Tensor:
    return torch.ones(count, 8, dtype=torch.bool)


# --- Calls -----------------------------------------------------------------------------------------------------------


def _prompted(**more: Any) -> dict[str, Any]:
    return {"prompt": PROMPTS, **_FEW, **_SIZE, **more}


def _embedded(**more: Any) -> dict[str, Any]:
    """Make the arguments for three prompts that are embedded already."""
    return {"prompt_embeds": _embeddings(3), "prompt_attention_mask": _mask(3), **_FEW, **_SIZE, **more}


def _call_flux(**more: Any) -> dict[str, Any]:
    return _prompted(max_sequence_length=16, **more)


def _call_sdxl_img2img() -> dict[str, Any]:
    return {"prompt": PROMPTS, "image": source(), "strength": 0.5, **_FEW}


def _call_qwen_image() -> dict[str, Any]:
    embedded = {"prompt_embeds": _embeddings(3), "prompt_embeds_mask": _mask(3)}
    return {**embedded, "num_inference_steps": 2, "true_cfg_scale": 1.0, **_SIZE}


CASES: dict[str, Case] = {
    "sdxl": Case(sdxl, _prompted),
    "sdxl_img2img": Case(sdxl_img2img, _call_sdxl_img2img),
    "sdxl_inpaint": Case(sdxl_inpaint, lambda: _prompted(image=source(), mask_image=right_half())),
    "sd3": Case(sd3, _prompted),
    "flux": Case(flux, _call_flux),
    "flux_fill": Case(flux_fill, lambda: _call_flux(image=source(), mask_image=right_half())),
    "flux_kontext": Case(flux_kontext, lambda: _call_flux(image=source(), max_area=SIDE**2, _auto_resize=False)),
    "qwen_image": Case(qwen_image, _call_qwen_image),
    "qwen_image_layered": Case(qwen_image_layered, _call_qwen_image_layered),
    "pixart_sigma": Case(pixart_sigma, lambda: _prompted(clean_caption=False, use_resolution_binning=False)),
    "sana": Case(sana, lambda: _embedded(use_resolution_binning=False)),
    "lumina2": Case(lumina2, _embedded),
    "auraflow": Case(auraflow, _embedded),
    "amused": Case(amused, _prompted),
    "prx_pixel": Case(prx_pixel, lambda: _embedded(use_resolution_binning=False), output_types=("pil", "np")),
}
