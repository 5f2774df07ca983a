"""Tiny video pipelines: random weights, in memory, no hub.

Each of ``CASES`` draws two clips of five frames of 32x32 unless its builder says otherwise.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from . import _BETAS, _seeded, _text_encoder, _unet, _vae, tokenizer
from .case import Case

SIDE = 32
FRAMES = 5
PROMPTS = ["a", "b c"]
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}


class SafetyChecker(torch.nn.Module):
    """Stand in for the checker that the Cosmos pipelines insist on: it lets everything through.

    Attributes:
        texts: The prompts that it was asked about.
        clips: The shapes of the clips that it was shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.clips: list[tuple[int, ...]] = []

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        self.texts.append(prompt)
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        self.clips.append(frames.shape)
        return frames


def animatediff() -> diffusers.AnimateDiffPipeline:
    """Build AnimateDiff, which decodes the frames of all clips as one batch of images."""

    def moving() -> diffusers.UNetMotionModel:
        adapter = diffusers.MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        )
        return diffusers.UNetMotionModel.from_unet2d(_unet(), adapter)

    return _pipe(
        diffusers.AnimateDiffPipeline,
        vae=_seeded(_vae),
        text_encoder=_seeded(_text_encoder),
        tokenizer=tokenizer(),
        unet=_seeded(moving),
        motion_adapter=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, **_BETAS),
    )


def svd() -> diffusers.StableVideoDiffusionPipeline:
    """Build Stable Video Diffusion, which makes clips of pictures."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=32,
        image_size=224,  # fixed by the pipeline
        patch_size=56,
    )
    return _pipe(
        diffusers.StableVideoDiffusionPipeline,
        vae=_seeded(
            lambda: diffusers.AutoencoderKLTemporalDecoder(
                block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
            )
        ),
        image_encoder=_seeded(lambda: CLIPVisionModelWithProjection(vision)),
        unet=_seeded(
            lambda: diffusers.UNetSpatioTemporalConditionModel(
                block_out_channels=(32, 32),
                layers_per_block=1,
                sample_size=SIDE // 2,
                cross_attention_dim=32,
                num_attention_heads=(2, 2),
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=24,
                down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            )
        ),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True, **_BETAS),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )


def wan() -> diffusers.WanPipeline:
    return _pipe(
        diffusers.WanPipeline,
        vae=_seeded(_wan_vae),
        text_encoder=_seeded(lambda: UMT5EncoderModel(UMT5Config(**_T5))),
        tokenizer=t5_tokenizer(),
        transformer=_seeded(_wan_transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def cogvideox() -> diffusers.CogVideoXPipeline:
    """Build CogVideoX, which makes eight frames of five, four of them alike: its case asks for nine."""
    return _pipe(
        diffusers.CogVideoXPipeline,
        **_t5(),
        vae=_seeded(
            lambda: diffusers.AutoencoderKLCogVideoX(
                block_out_channels=(8, 8, 8, 8),
                latent_channels=4,
                layers_per_block=1,
                norm_num_groups=2,
                scaling_factor=3.0,
            )
        ),
        transformer=_seeded(
            lambda: diffusers.CogVideoXTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                time_embed_dim=2,
                text_embed_dim=32,
                num_layers=1,
                sample_width=SIDE // 8,
                sample_height=SIDE // 8,
                sample_frames=FRAMES,
                max_text_seq_length=16,
            )
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def ltx() -> diffusers.LTXPipeline:
    return _pipe(
        diffusers.LTXPipeline,
        **_t5(),
        vae=_seeded(
            lambda: diffusers.AutoencoderKLLTXVideo(
                latent_channels=8,
                block_out_channels=(8, 8),
                down_block_types=("LTXVideoDownBlock3D",) * 2,
                decoder_block_out_channels=(8, 8),
                layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1),
                spatio_temporal_scaling=(True, False),
                decoder_spatio_temporal_scaling=(True, False),
                decoder_inject_noise=(False,) * 3,
                downsample_type=("conv",) * 2,
                upsample_residual=(False,) * 2,
                upsample_factor=(1,) * 2,
            )
        ),
        transformer=_seeded(
            lambda: diffusers.LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=8,
                cross_attention_dim=16,
                num_layers=1,
                caption_channels=32,
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def ltx_long() -> diffusers.LTXI2VLongMultiPromptPipeline:
    """Build the long LTX, whose tensors come as its decoder makes them: ``[B, C, F, H, W]`` in [-1, 1]."""
    return _pipe(diffusers.LTXI2VLongMultiPromptPipeline, **ltx().components)


def ltx2_hdr() -> diffusers.LTX2HDRPipeline:
    """Build LTX-2 HDR, whose clips are linear light from -0.02 to 55, with the channels last in tensors too.

    It returns arrays when asked for "pil". The call brings what text encoder and connectors would make.
    """
    return _pipe(
        diffusers.LTX2HDRPipeline,
        vae=_seeded(
            lambda: diffusers.AutoencoderKLLTX2Video(
                latent_channels=8,
                block_out_channels=(8,),
                down_block_types=("LTX2VideoDownBlock3D",),
                decoder_block_out_channels=(8,),
                layers_per_block=(1, 1),
                decoder_layers_per_block=(1, 1),
                spatio_temporal_scaling=(True,),
                decoder_spatio_temporal_scaling=(True,),
                decoder_inject_noise=(False, False),
                downsample_type=("spatiotemporal",),
                upsample_type=("spatiotemporal",),
                upsample_residual=(False,),
                upsample_factor=(1,),
            )
        ),
        transformer=_seeded(
            lambda: diffusers.LTX2VideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=8,
                cross_attention_dim=16,
                audio_num_attention_heads=2,
                audio_attention_head_dim=4,
                audio_cross_attention_dim=8,
                num_layers=1,
                vae_scale_factors=(2, 8, 8),
                caption_channels=32,
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(("audio_vae", "text_encoder", "tokenizer", "connectors", "vocoder")),
    )


def hunyuan_video() -> diffusers.HunyuanVideoPipeline:
    """Build HunyuanVideo; the call brings what its two text encoders would make."""
    return _pipe(
        diffusers.HunyuanVideoPipeline,
        vae=_seeded(
            lambda: diffusers.AutoencoderKLHunyuanVideo(
                latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
            )
        ),
        transformer=_seeded(
            lambda: diffusers.HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=10,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=16,
                pooled_projection_dim=8,
                rope_axes_dim=(2, 4, 4),
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )


def cosmos_text_to_world(safety_checker: Any = None) -> diffusers.CosmosTextToWorldPipeline:
    """Build Cosmos 1, which postprocesses the clips, shows them to the checker, and postprocesses them again."""
    return _pipe(
        diffusers.CosmosTextToWorldPipeline,
        **_t5(),
        vae=_seeded(
            lambda: diffusers.AutoencoderKLCosmos(
                latent_channels=4,
                encoder_block_out_channels=(8, 8, 8),
                decode_block_out_channels=(8, 8, 8, 8),
                attention_resolutions=(8,),
                resolution=SIDE,
                num_layers=1,
                patch_size=2,
                spatial_compression_ratio=4,
                temporal_compression_ratio=4,
                latents_mean=None,
                latents_std=None,
            )
        ),
        transformer=_seeded(lambda: _cosmos_transformer(in_channels=4, out_channels=4)),
        scheduler=diffusers.EDMEulerScheduler(sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min"),
        safety_checker=safety_checker or SafetyChecker(),
    )


def cosmos2_text_to_image(safety_checker: Any = None) -> diffusers.Cosmos2TextToImagePipeline:
    """Build Cosmos 2, whose pictures are clips of one frame until the end."""
    return _pipe(
        diffusers.Cosmos2TextToImagePipeline,
        **_t5(),
        vae=_seeded(_wan_vae),
        transformer=_seeded(_cosmos_transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=safety_checker or SafetyChecker(),
    )


def cosmos2_5_predict(safety_checker: Any = None) -> diffusers.Cosmos2_5_PredictBasePipeline:
    """Build Cosmos 2.5, which shows clips to NVIDIA's own checker only. The call brings the prompts' embeddings."""
    return _pipe(
        diffusers.Cosmos2_5_PredictBasePipeline,
        text_encoder=None,
        tokenizer=None,
        vae=_seeded(_wan_vae),
        transformer=_seeded(lambda: _cosmos_transformer(in_channels=17)),
        scheduler=diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", use_karras_sigmas=False
        ),
        safety_checker=safety_checker or SafetyChecker(),
    )


def cosmos3_omni(safety_checker: Any = None) -> diffusers.Cosmos3OmniPipeline:
    """Build Cosmos 3, which draws one clip a call and shows it to NVIDIA's own checker only."""
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|vision_start|>"]})
    words.model_max_length = 512
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return _pipe(
        diffusers.Cosmos3OmniPipeline,
        transformer=_seeded(
            lambda: diffusers.Cosmos3OmniTransformer(
                head_dim=16,
                hidden_size=32,
                intermediate_size=32,
                latent_channel=16,
                num_attention_heads=2,
                num_hidden_layers=1,
                num_key_value_heads=1,
                patch_latent_dim=64,
                rope_axes_dim=(4, 2, 2),
                vocab_size=100,
            )
        ),
        text_tokenizer=words,
        vae=_seeded(_wan_vae),
        scheduler=diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        safety_checker=safety_checker or SafetyChecker(),
    )


def t5_tokenizer() -> T5Tokenizer:
    """Build a T5 tokenizer that knows the lower-case letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=special + [(letter, -3.0) for letter in string.ascii_lowercase], extra_ids=0, model_max_length=32
    )


def _t5() -> dict[str, Any]:
    return {"tokenizer": t5_tokenizer(), "text_encoder": _seeded(lambda: T5EncoderModel(T5Config(**_T5)))}


def _wan_vae(cls: str = "AutoencoderKLWan") -> torch.nn.Module:
    vae = getattr(diffusers, cls)(base_dim=3, dim_mult=[1] * 4, num_res_blocks=1)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(3)  # for want of contrast
    return vae


def _wan_transformer() -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    )


def _cosmos_transformer(**changes: Any) -> diffusers.CosmosTransformer3DModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 32,
        "adaln_lora_dim": 4,
        "max_size": (4, SIDE, SIDE),
    }
    return diffusers.CosmosTransformer3DModel(**{**config, **changes})


def _pipe(cls: type[diffusers.DiffusionPipeline], **components: Any) -> diffusers.DiffusionPipeline:
    pipe = cls(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def _call(**more: Any) -> Callable[[], dict[str, Any]]:
    size = {"height": SIDE, "width": SIDE, "num_frames": FRAMES, "num_inference_steps": 2}
    text = {"prompt": PROMPTS, "guidance_scale": 1.0}
    return lambda: {key: value for key, value in {**size, **text, **more}.items() if value is not None}


_SHORT = {"max_sequence_length": 16}

CASES: dict[str, Case] = {
    "animatediff": Case(animatediff, _call(), "frames"),
    "svd": Case(
        svd,
        _call(image=_pictures(2), prompt=None, guidance_scale=None, max_guidance_scale=1.0),
        "frames",
    ),
    "wan": Case(wan, _call(**_SHORT), "frames"),
    "cogvideox": Case(cogvideox, _call(num_frames=9, **_SHORT), "frames"),
    "ltx": Case(ltx, _call(**_SHORT), "frames"),
    "ltx_long": Case(
        ltx_long,
        _call(prompt="a", temporal_tile_size=16, decode_horizontal_tiles=1, decode_vertical_tiles=1, **_SHORT),
        "frames",
    ),
    "ltx2_hdr": Case(
        ltx2_hdr,
        _call(prompt=None, connector_video_embeds=_noise(2, 8, 32), connector_audio_embeds=_noise(2, 8, 32)),
        "frames",
        ("np", "pt"),
    ),
    "hunyuan_video": Case(
        hunyuan_video,
        _call(
            prompt=None,
            prompt_embeds=_noise(2, 8, 16),
            prompt_attention_mask=torch.ones(2, 8),
            pooled_prompt_embeds=_noise(2, 8),
        ),
        "frames",
    ),
    "cosmos_text_to_world": Case(cosmos_text_to_world, _call(**_SHORT), "frames"),
    "cosmos2_text_to_image": Case(cosmos2_text_to_image, _call(num_frames=None, **_SHORT)),
    "cosmos2_5_predict": Case(cosmos2_5_predict, _call(prompt=None, prompt_embeds=_noise(2, 8, 32)), "frames"),
    "cosmos3_omni": Case(cosmos3_omni, _call(prompt="a"), "video"),
}
