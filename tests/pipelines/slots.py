"""Tiny pipelines with a slot for a safety checker, built with the slot left empty.

``CASES`` has those of diffusers 0.42 but LDM3D, Cosmos and ONNX; every one from "sag" on is deprecated there. Each
draws three pictures of 64x64 unless its line says otherwise. Most are Stable Diffusion with a part of their own or two.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetXSAdapter,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    LCMScheduler,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from diffusers.pipelines.stable_diffusion import CLIPImageProjection
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from . import (
    _BETAS,
    _DOWN,
    SIDE,
    _seeded,
    _unet,
    latent_consistency_model,
    stable_diffusion,
    stable_diffusion_adapter,
    stable_diffusion_controlnet,
    stable_diffusion_img2img,
    stable_diffusion_inpaint,
    tokenizer,
)
from .case import Case

PROMPTS = ["a", "b c", "d"]


def _picture(seed: int, side: int = SIDE) -> Image.Image:
    """Draw soft blotches of colour."""
    blotches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize((side, side), Image.Resampling.BICUBIC)


def _mask(side: int = SIDE) -> Image.Image:
    """Draw a white square, where an inpainting pipeline paints."""
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    return mask


PICTURES = [_picture(seed) for seed in range(3)]
MASKS = [_mask()] * 3
SMALL = [_picture(seed, SIDE // 2) for seed in range(3)]
SMALL_MASKS = [_mask(SIDE // 2)] * 3


def _embeds(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- parts


def _part(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Make a builder of one network: the same weights each time."""
    return lambda: _seeded(lambda: build(*args, **kwargs))


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        image_size=32,
        patch_size=8,
    )


def _vision() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(_vision_config())


def _t5_tokenizer() -> T5Tokenizer:
    """Build a T5 tokenizer that knows the lower-case letters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(letter, -3.0) for letter in string.ascii_lowercase]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=77)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def _bert_tokenizer() -> BertTokenizer:
    """Build a BERT tokenizer that knows the lower-case letters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=77)


def _bert() -> BertModel:
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2)
    return BertModel(config)


def _deep_vae() -> AutoencoderKL:
    """Build a VAE that shrinks by 8, which HunyuanDiT takes for granted."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _unet_xs() -> UNet2DConditionModel:
    """Build a U-Net with the two layers a block that ControlNet-XS takes for granted."""
    return UNet2DConditionModel.from_config(_unet().config, layers_per_block=2)


def _controlnet_xs() -> ControlNetXSAdapter:
    return ControlNetXSAdapter(
        conditioning_embedding_out_channels=(4, 8),
        num_attention_heads=2,
        block_out_channels=(4, 8),
        base_block_out_channels=(8, 16),
        cross_attention_dim=32,
        down_block_types=_DOWN,
        sample_size=SIDE // 2,
        max_norm_num_groups=2,
        use_linear_projection=False,
    )


# ---- pipelines


def _pipe(name: str, **parts: Callable[[], Any]) -> Any:
    """Build a pipeline of these parts and, beside them, of those of Stable Diffusion that it takes."""
    cls = getattr(diffusers, name)
    wanted = inspect.signature(cls.__init__).parameters
    usual = {**stable_diffusion().components, "watermarker": None, "requires_safety_checker": False}
    made = {**usual, **{part: build() for part, build in parts.items()}}
    pipe = cls(**{part: value for part, value in made.items() if part in wanted})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _ledits_pp() -> Any:
    """Build LEdits++, and invert the pictures that its call then edits."""
    betas = {**_BETAS, "algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    pipe = _pipe("LEditsPPPipelineStableDiffusion", scheduler=partial(DPMSolverMultistepScheduler, **betas))
    pipe.invert(PICTURES, num_inversion_steps=2, skip=0.5, generator=torch.Generator().manual_seed(0))
    return pipe


ARRAYS = ("pil", "np")  # "pt" gives an array too


def _case(
    build: str | Callable[[], Any],
    call: dict[str, Any],
    /,
    output_types: tuple[str, ...] = ("pil", "np", "pt"),
    **parts: Callable[[], Any],
) -> Case:
    """Make a case of a pipeline's builder, or of its name and parts."""
    make = partial(_pipe, build, **parts) if isinstance(build, str) else build
    return Case(make, partial(dict, call), output_types=output_types)


# ---- what several have in common

STEPS = {"num_inference_steps": 2, "guidance_scale": 1.0}
TEXT = {**STEPS, "prompt": PROMPTS}
IMAGE = {**TEXT, "image": PICTURES}
INPAINT = {**IMAGE, "mask_image": MASKS, "strength": 1.0}
CONTROL = {"controlnet": lambda: stable_diffusion_controlnet().controlnet}
CONTROL_IMAGE = {"control_image": PICTURES}
LCM = {"unet": _part(_unet, time_cond_proj_dim=8), "scheduler": partial(LCMScheduler, **_BETAS)}

# DeepFloyd IF draws pixels of 32x32, without a VAE. Its "pt" is what the U-Net gave, in [-1, 1], and is never checked.
IF = {**TEXT, "clean_caption": False}
IF_IMAGE = {**IF, "image": SMALL}
IF_PARTS = {
    "tokenizer": _t5_tokenizer,
    "text_encoder": _part(_t5),
    "scheduler": partial(DDPMScheduler, variance_type="learned_range"),
    "image_noising_scheduler": DDPMScheduler,
}
IF_BASE = {**IF_PARTS, "unet": _part(_unet, in_channels=3, out_channels=6)}
IF_FINE = {**IF_PARTS, "unet": _part(_unet, in_channels=6, out_channels=6, class_embed_type="timestep")}

HUNYUAN = {**TEXT, "height": SIDE, "width": SIDE, "use_resolution_binning": False}
HUNYUAN_NET = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "hidden_size": 16,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": SIDE // 8,
    "cross_attention_dim": 32,
    "cross_attention_dim_t5": 32,
    "pooled_projection_dim": 8,
}
HUNYUAN_PARTS = {
    "vae": _part(_deep_vae),
    "tokenizer": _bert_tokenizer,
    "text_encoder": _part(_bert),
    "tokenizer_2": _t5_tokenizer,
    "text_encoder_2": _part(_t5),
    "transformer": _part(HunyuanDiT2DModel, num_layers=4, **HUNYUAN_NET),
    "scheduler": DDPMScheduler,
}
GLIGEN = {**TEXT, "gligen_phrases": ["e"], "gligen_boxes": [[0.2, 0.2, 0.8, 0.8]]}

CASES: dict[str, Case] = {
    "stable_diffusion": _case(stable_diffusion, TEXT),
    "stable_diffusion_img2img": _case(stable_diffusion_img2img, IMAGE),
    "stable_diffusion_inpaint": _case(stable_diffusion_inpaint, INPAINT),
    # one picture of 96x96: a crop of it is painted and checked at 64x64, then what the mask spares is laid over it
    "sd_inpaint_crop": _case(
        stable_diffusion_inpaint,
        {
            **STEPS,
            "prompt": "a",
            "image": _picture(0, 96),
            "mask_image": _mask(96),
            "height": SIDE,
            "width": SIDE,
            "padding_mask_crop": 4,
        },
        output_types=("pil",),
    ),
    "stable_diffusion_controlnet": _case(stable_diffusion_controlnet, IMAGE),
    "latent_consistency_model": _case(latent_consistency_model, TEXT),
    "stable_diffusion_adapter": _case(stable_diffusion_adapter, IMAGE, output_types=ARRAYS),
    "if": _case("IFPipeline", IF, **IF_BASE),
    "if_img2img": _case("IFImg2ImgPipeline", IF_IMAGE, **IF_BASE),
    "if_inpainting": _case("IFInpaintingPipeline", {**IF_IMAGE, "mask_image": SMALL_MASKS}, **IF_BASE),
    "if_superresolution": _case("IFSuperResolutionPipeline", IF_IMAGE, **IF_FINE),
    "if_img2img_superresolution": _case(
        "IFImg2ImgSuperResolutionPipeline", {**IF_IMAGE, "original_image": SMALL}, **IF_FINE
    ),
    "if_inpainting_superresolution": _case(
        "IFInpaintingSuperResolutionPipeline",
        {**IF_IMAGE, "original_image": SMALL, "mask_image": SMALL_MASKS},
        **IF_FINE,
    ),
    "sd_upscale": _case(
        "StableDiffusionUpscalePipeline",
        {**TEXT, "image": SMALL},
        unet=_part(_unet, in_channels=7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler,
    ),
    "instruct_pix2pix": _case("StableDiffusionInstructPix2PixPipeline", IMAGE, unet=_part(_unet, in_channels=8)),
    "image_variation": _case(
        "StableDiffusionImageVariationPipeline", {**STEPS, "image": PICTURES}, image_encoder=_part(_vision)
    ),
    "lcm_img2img": _case("LatentConsistencyModelImg2ImgPipeline", IMAGE, **LCM),
    "controlnet_img2img": _case("StableDiffusionControlNetImg2ImgPipeline", {**IMAGE, **CONTROL_IMAGE}, **CONTROL),
    "controlnet_inpaint": _case("StableDiffusionControlNetInpaintPipeline", {**INPAINT, **CONTROL_IMAGE}, **CONTROL),
    "pag": _case("StableDiffusionPAGPipeline", TEXT),
    "pag_img2img": _case("StableDiffusionPAGImg2ImgPipeline", IMAGE),
    "pag_inpaint": _case("StableDiffusionPAGInpaintPipeline", INPAINT),
    "pag_controlnet": _case("StableDiffusionControlNetPAGPipeline", IMAGE, **CONTROL),
    "pag_controlnet_inpaint": _case(
        "StableDiffusionControlNetPAGInpaintPipeline", {**INPAINT, **CONTROL_IMAGE}, **CONTROL
    ),
    "hunyuan_dit": _case("HunyuanDiTPipeline", HUNYUAN, **HUNYUAN_PARTS),
    # fails on a batch without guidance
    "hunyuan_dit_pag": _case("HunyuanDiTPAGPipeline", {**HUNYUAN, "guidance_scale": 2.0}, **HUNYUAN_PARTS),
    "hunyuan_dit_controlnet": _case(
        "HunyuanDiTControlNetPipeline",
        {**HUNYUAN, **CONTROL_IMAGE},
        controlnet=_part(HunyuanDiT2DControlNetModel, transformer_num_layers=4, **HUNYUAN_NET),
        **HUNYUAN_PARTS,
    ),
    "ledits_pp": _case(_ledits_pp, {"editing_prompt": ["e"], "use_intersect_mask": False}),
    "sag": _case("StableDiffusionSAGPipeline", TEXT),
    "panorama": _case("StableDiffusionPanoramaPipeline", {**TEXT, "height": SIDE, "width": SIDE}),
    "attend_and_excite": _case(
        "StableDiffusionAttendAndExcitePipeline",
        {**TEXT, "num_inference_steps": 1, "token_indices": [[1], [1, 2], [1]], "thresholds": {}},
    ),
    "semantic": _case("SemanticStableDiffusionPipeline", TEXT),
    "safe": _case("StableDiffusionPipelineSafe", TEXT, output_types=ARRAYS),
    "paint_by_example": _case(
        "PaintByExamplePipeline",
        {**STEPS, "image": PICTURES, "mask_image": MASKS, "example_image": PICTURES},
        unet=_part(_unet, in_channels=9),
        image_encoder=_part(lambda: PaintByExampleImageEncoder(_vision_config())),
    ),
    "gligen": _case("StableDiffusionGLIGENPipeline", GLIGEN, unet=_part(_unet, attention_type="gated")),
    "gligen_text_image": _case(
        "StableDiffusionGLIGENTextImagePipeline",
        {**GLIGEN, "gligen_images": PICTURES[:1]},
        unet=_part(_unet, attention_type="gated-text-image"),
        processor=lambda: CLIPProcessor(stable_diffusion().feature_extractor, tokenizer()),
        image_encoder=_part(_vision),
        image_project=_part(CLIPImageProjection, hidden_size=32),
    ),
    "diffedit": _case(
        "StableDiffusionDiffEditPipeline",
        {
            **TEXT,
            "mask_image": torch.ones(3, SIDE // 2, SIDE // 2),
            "image_latents": _embeds(3, 2, 4, SIDE // 2, SIDE // 2),
            "inpaint_strength": 1.0,
        },
        inverse_scheduler=DDIMInverseScheduler,
    ),
    # CLIP's text encoder stands in for theirs
    "alt_diffusion": _case("AltDiffusionPipeline", TEXT),
    "alt_diffusion_img2img": _case("AltDiffusionImg2ImgPipeline", IMAGE),
    "cycle_diffusion": _case("CycleDiffusionPipeline", {**IMAGE, "source_prompt": ["d", "e", "f"]}),
    "inpaint_legacy": _case(
        "StableDiffusionInpaintPipelineLegacy",
        {**TEXT, "image": PICTURES[0], "mask_image": MASKS[0], "strength": 1.0},
    ),
    "model_editing": _case("StableDiffusionModelEditingPipeline", TEXT),
    "paradigms": _case(
        "StableDiffusionParadigmsPipeline",
        {**TEXT, "parallel": 2},
        scheduler=partial(DDIMParallelScheduler, **_BETAS),
    ),
    # slow at 64x64, and fails without guidance
    "pix2pix_zero": _case(
        "StableDiffusionPix2PixZeroPipeline",
        {
            **TEXT,
            "guidance_scale": 2.0,
            "height": SIDE // 2,
            "width": SIDE // 2,
            "source_embeds": _embeds(1, 77, 32),
            "target_embeds": _embeds(1, 77, 32).neg(),
        },
        inverse_scheduler=DDIMInverseScheduler,
        caption_generator=lambda: None,
        caption_processor=lambda: None,
    ),
    "controlnet_xs": _case(
        "StableDiffusionControlNetXSPipeline", IMAGE, unet=_part(_unet_xs), controlnet=_part(_controlnet_xs)
    ),
    # one clip of three frames, which fails without guidance, and comes as an array whatever is asked for
    "text_to_video_zero": _case(
        "TextToVideoZeroPipeline",
        {"prompt": "a", "video_length": 3, "num_inference_steps": 3, "guidance_scale": 2.0, "t0": 1, "t1": 2},
        output_types=("np",),
    ),
}
