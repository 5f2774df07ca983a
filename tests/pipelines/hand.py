"""Tiny pipelines that make their pictures by hand, and those that are made of inner pipelines.

None has a slot for a safety checker, nor an image processor that all its pictures go through. Each draws three
pictures of 32x32 or 64x64. The "pt" of the Kandinskys is what the decoder gave, about [-1, 1], and not clamped.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiTTransformer2DModel,
    Kandinsky3UNet,
    KarrasVeScheduler,
    PNDMScheduler,
    PriorTransformer,
    RePaintScheduler,
    ScoreSdeVeScheduler,
    StableCascadeUNet,
    Transformer2DModel,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQDiffusionScheduler,
    VQModel,
)
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import CLIPTextModelWithProjection

from . import SIDE, _text_encoder, _unet, _vae, stable_diffusion, tokenizer
from .case import Case
from .slots import (
    ARRAYS,
    MASKS,
    PICTURES,
    PROMPTS,
    SMALL,
    SMALL_MASKS,
    STEPS,
    TEXT,
    _case,
    _embeds,
    _part,
    _t5,
    _t5_tokenizer,
    _vision,
)

HALF = SIDE // 2
WIDE = 32  # of embeddings

# ---- parts


def _pixels(channels: int = 3, out: int | None = None, side: int = HALF, **changes: Any) -> UNet2DModel:
    """Build a U-Net without conditions."""
    return UNet2DModel(
        in_channels=channels,
        out_channels=out or channels,
        sample_size=side,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **changes,
    )


def _vq(latent: int = 3, wide: tuple[int, int] = (8, 16), **changes: Any) -> VQModel:
    """Build a VQ-VAE that shrinks by 2."""
    return VQModel(
        block_out_channels=wide,
        layers_per_block=1,
        latent_channels=latent,
        norm_num_groups=2,
        num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **changes,
    )


def _dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=HALF
    )


def _bert() -> LDMBertModel:
    config = LDMBertConfig(
        vocab_size=100,
        encoder_layers=1,
        encoder_ffn_dim=37,
        encoder_attention_heads=2,
        head_dim=16,
        d_model=WIDE,
        pad_token_id=1,
    )
    return LDMBertModel(config)


def _clip() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_text_encoder().config)


def _prior() -> PriorTransformer:
    return PriorTransformer(num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDE)


def _kandinsky_unet(channels: int = 4, told: str = "image") -> UNet2DConditionModel:
    """Build a U-Net that is told of an image embedding; half of what it gives is a variance."""
    return _unet(
        in_channels=channels,
        out_channels=8,
        addition_embed_type=told,
        encoder_hid_dim=WIDE,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )


def _unclip_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(
        _unet().config,
        in_channels=3,
        out_channels=6,
        class_embed_type="identity",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )


def _cascade_unet(channels: int, **changes: Any) -> StableCascadeUNet:
    return StableCascadeUNet(
        in_channels=channels,
        out_channels=channels,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=WIDE,
        clip_seq=2,
        **changes,
    )


def _vq_transformer() -> Transformer2DModel:
    """Build a transformer over the 16 codes of a VQ-VAE and the mask."""
    return Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_vector_embeds=17,
        sample_size=HALF // 2,
        cross_attention_dim=WIDE,
        norm_type="ada_norm",
        num_embeds_ada_norm=20,
        norm_num_groups=2,
        activation_fn="geglu-approximate",
        attention_bias=True,
    )


def _kandinsky3_unet() -> Kandinsky3UNet:
    return Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        cross_attention_dim=8,
        encoder_hid_dim=WIDE,
    )


def _mclip() -> MultilingualCLIP:
    config = MCLIPConfig(
        transformerDimSize=WIDE,
        imageDimSize=WIDE,
        vocab_size=100,
        hidden_size=WIDE,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        max_position_embeddings=80,
    )
    return MultilingualCLIP(config)


# ---- what a family has in common

BATCH = {"batch_size": 3, "num_inference_steps": 2}
PIXELS = _part(_pixels)
SIZE = {"height": SIDE, "width": SIDE}
SHRUNK = {"height": 256, "width": 256}  # for 64x64 of those that take a VAE that shrinks by 8 for granted

MOVQ = _part(_vq, 4, wide=(32, 32), norm_type="spatial")  # spatial norms have 32 groups
KANDINSKY = {"unet": _part(_kandinsky_unet), "movq": MOVQ, "scheduler": DDPMScheduler}
KANDINSKY_PRIOR = {
    "prior_prior": _part(_prior),
    "prior_image_encoder": _part(_vision),
    "prior_text_encoder": _part(_clip),
    "prior_tokenizer": tokenizer,
    "prior_scheduler": partial(UnCLIPScheduler, prediction_type="sample", num_train_timesteps=1000),
    "prior_image_processor": lambda: stable_diffusion().feature_extractor,
}
KANDINSKY_CALL = {**STEPS, **SIZE, "image_embeds": _embeds(3, WIDE), "negative_image_embeds": _embeds(3, WIDE)}

PAELLA = _part(PaellaVQModel, levels=1, bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16)
CASCADE = {
    "tokenizer": tokenizer,
    "text_encoder": _part(_clip),
    "decoder": _part(_cascade_unet, 4, effnet_in_channels=16),
    "vqgan": PAELLA,
    "scheduler": DDPMWuerstchenScheduler,
}
CASCADE_PRIOR = {
    "prior_prior": _part(_cascade_unet, 16, clip_text_in_channels=WIDE, clip_image_in_channels=WIDE),
    "prior_text_encoder": _part(_clip),
    "prior_tokenizer": tokenizer,
    "prior_scheduler": DDPMWuerstchenScheduler,
}

WUERSTCHEN = {  # fails on several prompts
    "tokenizer": tokenizer,
    "text_encoder": _part(_text_encoder),
    "decoder": _part(
        WuerstchenDiffNeXt,
        c_r=16,
        c_cond=WIDE,
        c_hidden=[16, 16],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=WIDE,
    ),
    "vqgan": PAELLA,
    "scheduler": DDPMWuerstchenScheduler,
}

PRIOR_STEPS = {"prior_num_inference_steps": 2, "prior_guidance_scale": 1.0}
COMBINED = {**PRIOR_STEPS, "num_inference_steps": 2, "height": 2 * SIDE, "width": 2 * SIDE}  # for 64x64

CASES: dict[str, Case] = {
    "ddpm": _case("DDPMPipeline", BATCH, unet=PIXELS, scheduler=DDPMScheduler),
    "ddim": _case("DDIMPipeline", BATCH, unet=PIXELS, scheduler=DDIMScheduler),
    "pndm": _case("PNDMPipeline", {**BATCH, "num_inference_steps": 4}, ARRAYS, unet=PIXELS, scheduler=PNDMScheduler),
    "karras_ve": _case("KarrasVePipeline", BATCH, ARRAYS, unet=PIXELS, scheduler=KarrasVeScheduler),
    "score_sde_ve": _case("ScoreSdeVePipeline", BATCH, ARRAYS, unet=PIXELS, scheduler=ScoreSdeVeScheduler),
    "repaint": _case(
        "RePaintPipeline",
        {"image": SMALL, "mask_image": SMALL_MASKS, "num_inference_steps": 2, "jump_length": 1, "jump_n_sample": 1},
        ARRAYS,
        unet=PIXELS,
        scheduler=RePaintScheduler,
    ),
    "consistency_model": _case(
        "ConsistencyModelPipeline",
        {**BATCH, "num_inference_steps": 1},
        unet=PIXELS,
        scheduler=partial(CMStochasticIterativeScheduler, num_train_timesteps=40),
    ),
    "dit": _case("DiTPipeline", {**STEPS, "class_labels": [1, 2, 3]}, transformer=_part(_dit), scheduler=DDIMScheduler),
    "ldm": _case("LDMPipeline", BATCH, ARRAYS, unet=PIXELS, vqvae=_part(_vq), scheduler=DDIMScheduler),
    "ldm_text_to_image": _case(
        "LDMTextToImagePipeline",
        {**TEXT, **SHRUNK},
        vqvae=_part(_vae),
        bert=_part(_bert),
    ),
    "ldm_super_resolution": _case(
        "LDMSuperResolutionPipeline",
        {"image": _embeds(3, 3, HALF, HALF).clamp(-1, 1), "num_inference_steps": 2},
        unet=_part(_pixels, 6, 3),
        vqvae=_part(_vq),
        scheduler=DDIMScheduler,
    ),
    "kandinsky22": _case("KandinskyV22Pipeline", KANDINSKY_CALL, **KANDINSKY),
    "kandinsky22_inpaint": _case(
        "KandinskyV22InpaintPipeline",
        {**KANDINSKY_CALL, "image": PICTURES, "mask_image": MASKS},
        **{**KANDINSKY, "unet": _part(_kandinsky_unet, 9)},
    ),
    "kandinsky22_controlnet": _case(
        "KandinskyV22ControlnetPipeline",
        {**KANDINSKY_CALL, "hint": _embeds(3, 3, 256, 256), "guidance_scale": 2.0},
        **{**KANDINSKY, "unet": _part(_kandinsky_unet, 8, "image_hint")},
    ),
    "kandinsky22_combined": _case(
        "KandinskyV22CombinedPipeline",
        {**TEXT, **SIZE, **PRIOR_STEPS},
        **KANDINSKY,
        **KANDINSKY_PRIOR,
    ),
    "stable_cascade": _case(
        "StableCascadeDecoderPipeline",
        {**TEXT, "image_embeddings": _embeds(3, 16, 3, 3)},
        **CASCADE,
    ),
    "stable_cascade_combined": _case(
        "StableCascadeCombinedPipeline",
        {**COMBINED, "prompt": PROMPTS},
        **CASCADE,
        **CASCADE_PRIOR,
    ),
    "wuerstchen": _case(
        "WuerstchenDecoderPipeline",
        {**STEPS, "prompt": "a", "image_embeddings": _embeds(3, 4, 3, 3)},
        **WUERSTCHEN,
    ),
    "wuerstchen_combined": _case(
        "WuerstchenCombinedPipeline",
        {**COMBINED, "prompt": "a", "num_images_per_prompt": 3},
        **WUERSTCHEN,
        prior_prior=_part(WuerstchenPrior, c_in=4, c=16, c_cond=WIDE, c_r=8, depth=1, nhead=2),
        prior_text_encoder=_part(_text_encoder),
        prior_tokenizer=tokenizer,
        prior_scheduler=DDPMWuerstchenScheduler,
    ),
    "unclip": _case(
        "UnCLIPPipeline",
        {
            "prompt": PROMPTS,
            **PRIOR_STEPS,
            "decoder_num_inference_steps": 2,
            "super_res_num_inference_steps": 2,
            "decoder_guidance_scale": 1.0,
        },
        prior=_part(_prior),
        text_encoder=_part(_clip),
        text_proj=_part(UnCLIPTextProjModel, clip_embeddings_dim=WIDE, time_embed_dim=32, cross_attention_dim=32),
        decoder=_part(_unclip_unet),
        super_res_first=_part(_pixels, 6, 3, SIDE),
        super_res_last=_part(_pixels, 6, 3, SIDE),
        prior_scheduler=partial(UnCLIPScheduler, prediction_type="sample"),
        decoder_scheduler=partial(UnCLIPScheduler, variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler,
        tokenizer=tokenizer,
        output_types=ARRAYS,
    ),
    "vq_diffusion": _case(
        "VQDiffusionPipeline",
        TEXT,
        vqvae=_part(_vq, vq_embed_dim=3),
        transformer=_part(_vq_transformer),
        scheduler=partial(VQDiffusionScheduler, num_vec_classes=17, num_train_timesteps=20),
        learned_classifier_free_sampling_embeddings=partial(LearnedClassifierFreeSamplingEmbeddings, learnable=False),
        output_types=ARRAYS,
    ),
    "kandinsky": _case(
        "KandinskyPipeline",
        {**KANDINSKY_CALL, "prompt": PROMPTS},
        **{**KANDINSKY, "unet": _part(_kandinsky_unet, 4, "text_image"), "text_encoder": _part(_mclip)},
    ),
    "kandinsky3": _case(
        "Kandinsky3Pipeline",
        {**TEXT, **SHRUNK},
        unet=_part(_kandinsky3_unet),
        movq=MOVQ,
        tokenizer=_t5_tokenizer,
        text_encoder=_part(_t5),
        scheduler=DDPMScheduler,
    ),
}
