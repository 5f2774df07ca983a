"""The table: every pipeline class of diffusers, by the mechanism that guards it.

`attach` finds slots and processors by looking at the pipeline itself, so that a class that is not here is guarded too.
The table is for what cannot be seen from outside, and for the audit: `nsfw-guard coverage` compares it with the
installed diffusers, and a test fails when a release brings a class that nobody has classified. Made for diffusers
0.42, with what 0.32 had besides.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

# What the mechanisms are, in the order of the table.
MECHANISMS = {
    "slot": "the pipeline's own run_safety_checker, on the tensor or array that it is given",
    "slot, three values": "the same, for the families that unpack a third value",
    "slot, inline": "the slot, called image by image from within the pipeline's call (ONNX)",
    "cosmos": "check_text_safety and check_video_safety, and the video processor behind them",
    "image processor": "postprocess of the image processor, on the decoded tensor",
    "video processor": "postprocess_video (or _hdr_video) of the video processor, on the decoded clips",
    "by hand": "numpy_to_pil of the pipeline, and the backstop for arrays and tensors",
    "inner pipelines": "the pipelines that it is made of, and the backstop",
    "modular": "a guarded image or video processor, swapped in as a component, and the backstop",
    "no image": "nothing: sound, text, proteins, embeddings, depth and normals; attach refuses",
    "refused": "nothing: its methods make other pipelines of its parts, which are attached to instead; attach refuses",
}

_TABLE = {
    "slot": """
        StableDiffusionKDiffusionPipeline
        AltDiffusionImg2ImgPipeline AltDiffusionPipeline CycleDiffusionPipeline HunyuanDiTControlNetPipeline
        HunyuanDiTPAGPipeline HunyuanDiTPipeline LEditsPPPipelineStableDiffusion
        LatentConsistencyModelImg2ImgPipeline LatentConsistencyModelPipeline PaintByExamplePipeline
        SemanticStableDiffusionPipeline StableDiffusionAdapterPipeline StableDiffusionAttendAndExcitePipeline
        StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetInpaintPipeline
        StableDiffusionControlNetPAGInpaintPipeline StableDiffusionControlNetPAGPipeline
        StableDiffusionControlNetPipeline StableDiffusionControlNetXSPipeline StableDiffusionDiffEditPipeline
        StableDiffusionGLIGENPipeline StableDiffusionGLIGENTextImagePipeline StableDiffusionImageVariationPipeline
        StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline StableDiffusionInpaintPipelineLegacy
        StableDiffusionInstructPix2PixPipeline StableDiffusionLDM3DPipeline StableDiffusionModelEditingPipeline
        StableDiffusionPAGImg2ImgPipeline StableDiffusionPAGInpaintPipeline StableDiffusionPAGPipeline
        StableDiffusionPanoramaPipeline StableDiffusionParadigmsPipeline StableDiffusionPipeline
        StableDiffusionPix2PixZeroPipeline StableDiffusionSAGPipeline TextToVideoZeroPipeline
    """,
    "slot, three values": """
        IFImg2ImgPipeline IFImg2ImgSuperResolutionPipeline IFInpaintingPipeline IFInpaintingSuperResolutionPipeline
        IFPipeline IFSuperResolutionPipeline StableDiffusionPipelineSafe StableDiffusionUpscalePipeline
    """,
    "slot, inline": """
        OnnxStableDiffusionImg2ImgPipeline OnnxStableDiffusionInpaintPipeline
        OnnxStableDiffusionInpaintPipelineLegacy OnnxStableDiffusionPipeline OnnxStableDiffusionUpscalePipeline
        StableDiffusionOnnxPipeline
    """,
    "cosmos": """
        Cosmos2TextToImagePipeline Cosmos2VideoToWorldPipeline Cosmos2_5_PredictBasePipeline
        Cosmos2_5_TransferPipeline Cosmos3OmniPipeline CosmosTextToWorldPipeline CosmosVideoToWorldPipeline
    """,
    "image processor": """
        LuminaText2ImgPipeline StableDiffusionXLKDiffusionPipeline
        AmusedImg2ImgPipeline AmusedInpaintPipeline AmusedPipeline AuraFlowPipeline BlipDiffusionControlNetPipeline
        BlipDiffusionPipeline BriaFibo2Pipeline BriaFiboEditPipeline BriaFiboPipeline BriaPipeline
        ChromaImg2ImgPipeline ChromaInpaintPipeline ChromaPipeline CogView3PlusPipeline CogView4ControlPipeline
        CogView4Pipeline DreamLiteMobilePipeline DreamLitePipeline ErnieImagePipeline Flux2KleinInpaintPipeline
        Flux2KleinKVPipeline Flux2KleinPipeline Flux2Pipeline FluxControlImg2ImgPipeline FluxControlInpaintPipeline
        FluxControlNetImg2ImgPipeline FluxControlNetInpaintPipeline FluxControlNetPipeline FluxControlPipeline
        FluxFillPipeline FluxImg2ImgPipeline FluxInpaintPipeline FluxKontextInpaintPipeline FluxKontextPipeline
        FluxPipeline GlmImagePipeline HiDreamImagePipeline HunyuanImagePipeline HunyuanImageRefinerPipeline
        Ideogram4Pipeline JoyImageEditPipeline JoyImageEditPlusPipeline Kandinsky3Img2ImgPipeline
        Kandinsky5I2IPipeline Kandinsky5T2IPipeline KandinskyImg2ImgPipeline KandinskyV22ControlnetImg2ImgPipeline
        KandinskyV22Img2ImgPipeline KolorsImg2ImgPipeline KolorsPAGPipeline KolorsPipeline Krea2Pipeline
        LEditsPPPipelineStableDiffusionXL LongCatImageEditPipeline LongCatImagePipeline Lumina2Pipeline
        LuminaPipeline NucleusMoEImagePipeline OmniGenPipeline OvisImagePipeline PRXPipeline PRXPixelPipeline
        PixArtAlphaPipeline PixArtSigmaPAGPipeline PixArtSigmaPipeline QwenImage21Pipeline
        QwenImageControlNetInpaintPipeline QwenImageControlNetPipeline QwenImageEditInpaintPipeline
        QwenImageEditPipeline QwenImageEditPlusPipeline QwenImageImg2ImgPipeline QwenImageInpaintPipeline
        QwenImageLayeredPipeline QwenImagePipeline SanaControlNetPipeline SanaPAGPipeline SanaPipeline
        SanaSprintImg2ImgPipeline SanaSprintPipeline StableDiffusion3ControlNetInpaintingPipeline
        StableDiffusion3ControlNetPipeline StableDiffusion3Img2ImgPipeline StableDiffusion3InpaintPipeline
        StableDiffusion3PAGImg2ImgPipeline StableDiffusion3PAGPipeline StableDiffusion3Pipeline
        StableDiffusionDepth2ImgPipeline StableDiffusionLatentUpscalePipeline StableDiffusionXLAdapterPipeline
        StableDiffusionXLControlNetImg2ImgPipeline StableDiffusionXLControlNetInpaintPipeline
        StableDiffusionXLControlNetPAGImg2ImgPipeline StableDiffusionXLControlNetPAGPipeline
        StableDiffusionXLControlNetPipeline StableDiffusionXLControlNetUnionImg2ImgPipeline
        StableDiffusionXLControlNetUnionInpaintPipeline StableDiffusionXLControlNetUnionPipeline
        StableDiffusionXLControlNetXSPipeline StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline
        StableDiffusionXLInstructPix2PixPipeline StableDiffusionXLPAGImg2ImgPipeline
        StableDiffusionXLPAGInpaintPipeline StableDiffusionXLPAGPipeline StableDiffusionXLPipeline
        StableUnCLIPImg2ImgPipeline StableUnCLIPPipeline TextToVideoZeroSDXLPipeline UniDiffuserPipeline
        VersatileDiffusionDualGuidedPipeline VersatileDiffusionImageVariationPipeline
        VersatileDiffusionTextToImagePipeline VisualClozeGenerationPipeline ZImageControlNetInpaintPipeline
        ZImageControlNetPipeline ZImageImg2ImgPipeline ZImageInpaintPipeline ZImageOmniPipeline ZImagePipeline
    """,
    "video processor": """
        AllegroPipeline AnimateDiffControlNetPipeline AnimateDiffPAGPipeline AnimateDiffPipeline
        AnimateDiffSDXLPipeline AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoControlNetPipeline
        AnimateDiffVideoToVideoPipeline AnyFlowFARPipeline AnyFlowPipeline ChronoEditPipeline
        CogVideoXFunControlPipeline CogVideoXImageToVideoPipeline CogVideoXPipeline CogVideoXVideoToVideoPipeline
        ConsisIDPipeline EasyAnimateControlPipeline EasyAnimateInpaintPipeline EasyAnimatePipeline HeliosPipeline
        HeliosPyramidPipeline HunyuanSkyreelsImageToVideoPipeline HunyuanVideo15ImageToVideoPipeline
        HunyuanVideo15Pipeline HunyuanVideoFramepackPipeline HunyuanVideoImageToVideoPipeline HunyuanVideoPipeline
        I2VGenXLPipeline Kandinsky5I2VPipeline Kandinsky5T2VPipeline Kandinsky6SRPipeline Kandinsky6TI2VAPipeline
        LTX2ConditionPipeline LTX2DFRPipeline LTX2DFRTemporalRefinePipeline LTX2HDRPipeline LTX2ImageToVideoPipeline
        LTX2InContextPipeline LTX2LatentUpsamplePipeline LTX2Pipeline LTX2VideoDiffusionDecodePipeline
        LTXConditionPipeline LTXI2VLongMultiPromptPipeline LTXImageToVideoPipeline LTXLatentUpsamplePipeline
        LTXPipeline LattePipeline LucyEditPipeline MochiPipeline MotifVideoImage2VideoPipeline MotifVideoPipeline
        PIAPipeline SanaImageToVideoPipeline SanaVideoPipeline SanaWMLTX2Refiner SanaWMPipeline
        SkyReelsV2DiffusionForcingImageToVideoPipeline SkyReelsV2DiffusionForcingPipeline
        SkyReelsV2DiffusionForcingVideoToVideoPipeline SkyReelsV2ImageToVideoPipeline SkyReelsV2Pipeline
        StableVideoDiffusionPipeline TextToVideoSDPipeline VideoToVideoSDPipeline WanAnimatePipeline
        WanImageToVideoPipeline WanPipeline WanVACEPipeline WanVideoToVideoPipeline
    """,
    "by hand": """
        ConsistencyModelPipeline DDIMPipeline DDPMPipeline DiTPipeline Kandinsky3Pipeline KandinskyInpaintPipeline
        KandinskyPipeline KandinskyV22ControlnetPipeline KandinskyV22InpaintPipeline KandinskyV22Pipeline
        KarrasVePipeline LDMPipeline LDMSuperResolutionPipeline LDMTextToImagePipeline PNDMPipeline RePaintPipeline
        ScoreSdeVePipeline ShapEImg2ImgPipeline ShapEPipeline StableCascadeDecoderPipeline
        UnCLIPImageVariationPipeline UnCLIPPipeline VQDiffusionPipeline WuerstchenDecoderPipeline
    """,
    "inner pipelines": """
        KandinskyCombinedPipeline KandinskyImg2ImgCombinedPipeline KandinskyInpaintCombinedPipeline
        KandinskyV22CombinedPipeline KandinskyV22Img2ImgCombinedPipeline KandinskyV22InpaintCombinedPipeline
        StableCascadeCombinedPipeline VisualClozePipeline WuerstchenCombinedPipeline
    """,
    "modular": """
        AnimaModularPipeline Cosmos3DistilledModularPipeline Cosmos3OmniModularPipeline EchoModularPipeline
        ErnieImageModularPipeline Flux2KleinBaseModularPipeline Flux2KleinModularPipeline Flux2ModularPipeline
        Flux3DistilledModularPipeline Flux3ModularPipeline FluxKontextModularPipeline FluxModularPipeline
        HeliosModularPipeline HeliosPyramidDistilledModularPipeline HeliosPyramidModularPipeline
        HunyuanVideo15ModularPipeline Ideogram4ModularPipeline Krea2ModularPipeline Krea2TurboModularPipeline
        LTX25ModularPipeline LTX2ModularPipeline LTXModularPipeline MiniMaxH3ModularPipeline
        QwenImage21ModularPipeline QwenImage21TurboModularPipeline QwenImageEditModularPipeline
        QwenImageEditPlusModularPipeline QwenImageLayeredModularPipeline QwenImageModularPipeline
        StableDiffusion3ModularPipeline StableDiffusionXLModularPipeline Wan22Image2VideoModularPipeline
        Wan22ModularPipeline Wan22VaceModularPipeline WanAnimate2DistilledModularPipeline WanAnimate2ModularPipeline
        WanImage2VideoModularPipeline WanModularPipeline ZImageModularPipeline
    """,
    "no image": """
        AceStepPipeline AudioDiffusionPipeline AudioLDM2Pipeline AudioLDMPipeline DanceDiffusionPipeline
        DiffusionGemmaPipeline FluxPriorReduxPipeline KandinskyPriorPipeline KandinskyV22PriorEmb2EmbPipeline
        KandinskyV22PriorPipeline LLaDA2Pipeline LongCatAudioDiTPipeline MarigoldDepthPipeline
        MarigoldIntrinsicsPipeline MarigoldNormalsPipeline MiniMaxMusic3ModularPipeline MusicLDMPipeline
        RFD4ProteinaPipeline SpectrogramDiffusionPipeline StableAudio3AudioToAudioPipeline
        StableAudio3InpaintPipeline StableAudio3Pipeline StableAudioPipeline StableCascadePriorPipeline
        WuerstchenPriorPipeline
    """,
    "refused": """
        VersatileDiffusionPipeline
    """,
}

_MECHANISM_OF = {name: mechanism for mechanism, names in _TABLE.items() for name in names.split()}

# Their output_type="pt" is the decoder's own [-1, 1], not clamped; that of all others is in [0, 1].
_SIGNED_NAMES = """
IFImg2ImgPipeline IFImg2ImgSuperResolutionPipeline IFInpaintingPipeline IFInpaintingSuperResolutionPipeline
IFPipeline IFSuperResolutionPipeline Kandinsky3Pipeline KandinskyCombinedPipeline
KandinskyInpaintCombinedPipeline KandinskyInpaintPipeline KandinskyPipeline KandinskyV22CombinedPipeline
KandinskyV22ControlnetPipeline KandinskyV22InpaintCombinedPipeline KandinskyV22InpaintPipeline
KandinskyV22Pipeline PRXPipeline PRXPixelPipeline
"""
_SIGNED = frozenset(_SIGNED_NAMES.split())

# Their output_type="pt" is the decoder's own, [B, C, F, H, W] in [-1, 1], past the video processor.
_DECODED = frozenset({"LTXI2VLongMultiPromptPipeline"})

# Their latents are [B, F, C, h, w].
_FRAMES_FIRST_NAMES = """
CogVideoXFunControlPipeline CogVideoXImageToVideoPipeline CogVideoXPipeline CogVideoXVideoToVideoPipeline
ConsisIDPipeline
"""
_FRAMES_FIRST = frozenset(_FRAMES_FIRST_NAMES.split())

# Channels last, tokens without a method to unpack them, or one method of two.
_OWN_LATENTS = ("BriaFibo", "Cosmos3", "Ideogram4", "JoyImage", "Kandinsky5", "Kandinsky6")

# Where outputs keep their pictures, and whether a flat list of these is a clip; their flags come in this order.
FIELDS = {"images": False, "image": False, "rgb": False, "depth": False, "frames": True, "video": True, "videos": True}

# What outputs hold beside them, by the beginning of the class's name: field, or place in the tuple → what it is.
# "latents" would show what was redacted to anybody who has the VAE. "other" is sound, a camera, what a robot does.
_HELD = {
    "Cosmos3Omni": {"sound": "other", "action": "other", 1: "other", 2: "other"},
    "Kandinsky6": {"audio": "other", 1: "other"},
    "LTX2": {"audio": "other", 1: "other", "keyframes": "latents", 2: "latents"},
    "SanaWM": {"c2w": "other", 1: "other", "latent": "latents", 2: "latents"},
}
# What the states of modular pipelines hold beside them.
HELD_IN_STATES = ("action", "audio", "audios", "sound")

# What the blocks of modular pipelines leave in the state for each other: numbers that are no picture by themselves, of
# which somebody who has the models can make one.
_INTERMEDIATE = re.compile(
    r"(?:^|_)(?:latents?|latent_(?:chunks|condition)|embeds(?:_mask)?|mask|attention_mask|noise|noise_pred|velocity|"
    r"tokens?(?:_full|_target)?|hidden_states|hiddens|timesteps?|timestep_(?:cond|plan)|sigmas|ids|coords|indices|"
    r"segment|static|features|concat|kv_cache)(?:_\d|_(?:short|mid|long|vision|sound|action|image))*$"
)

# Pictures that blocks have prepared from what the caller put in.
_PREPARED = re.compile(
    r"^(?:(?:processed|resized)_(?:\w+_)?image|condition_images|condition_pixel_frames|control_frames|controlnet_cond|"
    r"driving_video_\w+|image_pixels|mask_overlay_kwargs|normalized_references|reference_crop|vision_condition_frames)$"
)


def mechanism(name: str) -> str | None:
    """Return the mechanism that guards the class of this name, or ``None`` if the table does not know it."""
    return _MECHANISM_OF.get(name)


def mechanism_of(cls: type) -> str | None:
    """Return the mechanism for a class: its own entry, or that of the nearest class that it descends from."""
    found: str | None = _entry_of(cls, _MECHANISM_OF)
    return found


def slot_values(cls: type) -> int:
    """Return how many values the class unpacks from ``run_safety_checker``."""
    return 3 if mechanism_of(cls) == "slot, three values" else 2


def returns_signed(cls: type) -> bool:
    """Whether the class returns tensors in [-1, 1]."""
    return _is_one_of(cls, _SIGNED)


def returns_decoded(cls: type) -> bool:
    """Whether the class returns tensors as its decoder makes them: clips ``[B, C, F, H, W]`` in [-1, 1]."""
    return _is_one_of(cls, _DECODED)


def frames_first(cls: type) -> bool:
    """Whether the latents of the class have their frames before their channels."""
    return _is_one_of(cls, _FRAMES_FIRST)


def has_latents_of_its_own(cls: type) -> bool:
    """Whether the latents of the class are in a form that neither their shape nor a method of it tells."""
    return any(base.__name__.startswith(_OWN_LATENTS) for base in cls.__mro__)


def works_on_pixels(cls: type) -> bool:
    """Whether the "latents" of the class are its images."""
    return _is_one_of(cls, {"PRXPixelPipeline"})


def held_in(cls: type, field: Any) -> str | None:
    """Return what an output of the class holds in a field, or at a place of the tuple, if that is no picture.

    Returns:
        ``"latents"``, ``"other"``, or ``None``: it is not declared.
    """
    for base in cls.__mro__:
        for start, fields in _HELD.items():
            if base.__name__.startswith(start):
                return fields.get(field)
    return None


def is_intermediate(name: str) -> bool:
    """Whether a value of a modular pipeline's state is latents, a mask, embeddings or the like, by its name."""
    return _INTERMEDIATE.search(name) is not None


def is_prepared(name: str) -> bool:
    """Whether a value of a modular pipeline's state is a picture of the caller's, prepared for the models."""
    return _PREPARED.match(name) is not None


def makes_clips(cls: type) -> bool:
    """Whether the class returns clips."""
    return mechanism_of(cls) in ("video processor", "cosmos")


def _is_one_of(cls: type, names: Collection[str]) -> bool:
    return any(base.__name__ in names for base in cls.__mro__)


def _entry_of(cls: type, entries: dict[str, Any]) -> Any:
    return next((entries[base.__name__] for base in cls.__mro__ if base.__name__ in entries), None)
