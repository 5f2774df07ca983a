"""What ComfyUI's classes of nodes say of themselves, and the tables of core's: what makes, cuts, shows and holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nodes

ANYTHING = "*"
LATENT = "LATENT"
_MATCHED = "COMFY_MATCHTYPE_V3"
PICTURES = frozenset({"IMAGE", "MASK", "VIDEO", ANYTHING, _MATCHED})
# What a picture can be made of; names that hold "MODEL" count too, except these, which change pictures.
_MAKERS = frozenset({LATENT, "VAE", "GUIDER", "NOISE"})
_CHANGERS = frozenset({"UPSCALE_MODEL", "INTERP_MODEL", "BACKGROUND_REMOVAL_MODEL", "FACE_DETECTION_MODEL"})
# Ways on which a latent may go from node to node.
LATENT_WAYS = frozenset({LATENT, "NOISE", ANYTHING, _MATCHED})
# What holds nothing to see, and cannot be walked: only core's own outputs, by the table below, may be given it.
OPAQUE = frozenset({
    "MODEL", "CLIP", "VAE", "CONDITIONING", "CLIP_VISION", "CLIP_VISION_OUTPUT", "CONTROL_NET", "STYLE_MODEL",
    "GLIGEN", "UPSCALE_MODEL", "GUIDER", "NOISE", "SAMPLER", "HOOKS", "HOOK_KEYFRAMES", "TIMESTEPS_RANGE",
    "LATENT_OPERATION", "LORA_MODEL", "LOSS_MAP", "PHOTOMAKER", "MODEL_PATCH", "AUDIO_ENCODER",
    "AUDIO_ENCODER_OUTPUT", "LATENT_UPSCALE_MODEL", "BACKGROUND_REMOVAL", "INTERP_MODEL", "MOGE_MODEL", "DA3_MODEL",
    "FACE_DETECTION_MODEL", "WAN_CAMERA_EMBEDDING",
})  # fmt: skip
# Shapes and drawings that show pictures when they are drawn, which the guard cannot do.
DRAWN = frozenset({"SVG", "SPLAT", "VOXEL", "FILE_3D_SPLAT_ANY", "FILE_3D_POINT_CLOUD_ANY"})
_ANY_OPAQUE = OPAQUE | {"SIGMAS"}
# Core's own output nodes (0.28 to 0.33) that are given more than pictures and plain values: by class and input, which
# declared types pass unseen. What they do with these shows no picture.
PASSES: dict[str, dict[str, frozenset[str]]] = {
    "CheckpointSave": {"model": frozenset({"MODEL"}), "clip": frozenset({"CLIP"}), "vae": frozenset({"VAE"})},
    "CLIPSave": {"clip": frozenset({"CLIP"})},
    "VAESave": {"vae": frozenset({"VAE"})},
    "ModelSave": {"model": frozenset({"MODEL"})},
    "ImageOnlyCheckpointSave": {
        "model": frozenset({"MODEL"}),
        "clip_vision": frozenset({"CLIP_VISION"}),
        "vae": frozenset({"VAE"}),
    },
    "LoraSave": {"model_diff": frozenset({"MODEL"}), "text_encoder_diff": frozenset({"CLIP"})},
    "SaveLoRA": {"lora": frozenset({"LORA_MODEL"})},
    "LossGraphNode": {"loss": frozenset({"LOSS_MAP"})},
    "PreviewAny": {"source": _ANY_OPAQUE},  # the beginning and the end of their text
    "SaveAudio": {"audio": frozenset({"AUDIO"})},
    "SaveAudioMP3": {"audio": frozenset({"AUDIO"})},
    "SaveAudioOpus": {"audio": frozenset({"AUDIO"})},
    "SaveAudioAdvanced": {"audio": frozenset({"AUDIO"})},
    "PreviewAudio": {"audio": frozenset({"AUDIO"})},
    # Outlines of what was found in pictures that were looked at.
    "SAM3_TrackPreview": {"track_data": frozenset({"SAM3_TRACK_DATA"})},
    "GLSLShader": {"curves": frozenset({"CURVE"})},
}
# Core's nodes that put out no picture, and whose outputs of type LATENT hold none that was not looked at.
EMPTY = (
    "EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage", "EmptyHunyuanLatentVideo", "VAEEncode",
    "EmptyHunyuanVideo15Latent", "EmptyHunyuanImageLatent", "EmptyLTXVLatentVideo", "EmptyMochiLatentVideo",
    "EmptyCosmosLatentVideo", "EmptyChromaRadianceLatentImage", "EmptyHiDreamO1LatentImage", "EmptyARVideoLatent",
    "EmptyQwenImageLayeredLatentImage", "StableCascade_EmptyLatentImage", "EmptyLatentAudio", "VAEEncodeTiled",
    "EmptyAceStepLatentAudio", "EmptyAceStep1.5LatentAudio", "LTXVEmptyLatentAudio", "EmptyLatentHunyuan3Dv2",
    "VAEEncodeForInpaint", "VAEEncodeAudio",
)  # fmt: skip
# Core's nodes that hand latents on with every picture of theirs whole, and the right way up.
WHOLE = frozenset({
    "SetLatentNoiseMask", "LatentFromBatch", "RepeatLatentBatch", "RebatchLatents", "LatentBatchSeedBehavior",
    "LatentUpscaleBy", "TrimVideoLatent", "LTXVCropGuides", "LTXVConcatAVLatent", "LTXVSeparateAVLatent",
    "LTXVLatentUpsampler", "LTXVAddGuide", "LTXVImgToVideoInplace", "HunyuanVideo15LatentUpscaleWithModel",
    "HunyuanVideo15SuperResolution", "HunyuanRefinerLatent", "AddNoise", "NormalizeVideoLatentStart",
    "ReplaceVideoLatentFrames", "SeedVR2TemporalChunk", "SeedVR2TemporalMerge", "WanSoundImageToVideoExtend",
    "ComfySwitchNode", "CreateList",
})  # fmt: skip


# Core's nodes that do so when they work along the time.
ALONG = ("LatentCut", "LatentCutToBatch", "LatentConcat")
TIMES = ("t", "-t")


@dataclass(frozen=True)
class Kind:
    """A class of nodes.

    Attributes:
        name: As prompts call it.
        known: Whether there is one of that name. Another may take its place before the prompt runs.
        core: Whether it is ComfyUI's own, or the guard's.
        shows: Whether it saves something, or shows something on itself or in the page.
        remote: Whether a service that is asked makes what it puts out.
        outputs: The types of its outputs.
        inputs: Those of its inputs, by name; not of those that change with others.
    """

    name: str
    known: bool
    core: bool
    shows: bool
    remote: bool
    outputs: tuple[frozenset[str], ...]
    inputs: dict[str, frozenset[str]]


def kind_of(class_type: Any) -> Kind:
    """Return what ComfyUI knows of a class of nodes."""
    if not isinstance(class_type, str):
        raise TypeError(f"class_type is a {type(class_type).__name__}; expected a str.")
    if class_type not in nodes.NODE_CLASS_MAPPINGS:
        return Kind(class_type, False, False, True, False, (), {})
    cls = nodes.NODE_CLASS_MAPPINGS[class_type]
    own = class_type.startswith("NSFWG_")
    return Kind(
        class_type,
        True,
        own or _is_core(cls),
        shows(cls) and not (own and not getattr(cls, "OUTPUT_NODE", False)),
        bool(getattr(cls, "API_NODE", False)) or _module_of(cls).startswith("comfy_api_nodes"),
        tuple(types_in(declared) for declared in getattr(cls, "RETURN_TYPES", None) or ()),
        _inputs(cls),
    )


def shows(cls: Any) -> bool:
    """Whether a class says of itself that it saves or shows something."""
    return bool(getattr(cls, "OUTPUT_NODE", False) or getattr(cls, "HAS_INTERMEDIATE_OUTPUT", False))


def shows_in_secret(cls: Any) -> bool:
    """Whether what a class shows in the page is more than it says of itself: nobody was asked to guard it."""
    return not (shows(cls) or _is_core(cls))


def _module_of(cls: Any) -> str:
    return str(getattr(cls, "RELATIVE_PYTHON_MODULE", "") or cls.__module__)


def _is_core(cls: Any) -> bool:
    return _module_of(cls) == "nodes" or _module_of(cls).startswith("comfy_extras.")


def types_in(declared: Any) -> frozenset[str]:
    """Return the types that a declaration names: of a union, all; of a list of choices, none but text."""
    if isinstance(declared, (list, tuple)):
        return frozenset({"COMBO"})
    # Plain text: subclasses are known that say to be equal to any other type.
    plain = str.__str__(declared) if isinstance(declared, str) else ANYTHING
    return frozenset(part.strip() for part in plain.split(",")) or frozenset({ANYTHING})


def may_hold_pictures(types: Iterable[str]) -> bool:
    """Whether a value of these types is looked at where it comes into being."""
    return any(one in PICTURES for one in types)


def makes_pictures(types: Iterable[str]) -> bool:
    """Whether new pictures can be made of values of these types."""
    return any(one in _MAKERS or ("MODEL" in one and one not in _CHANGERS) for one in types)


def samples(types: Iterable[str]) -> bool:
    """Whether a node that takes values of these types makes latents of its own, whole ones."""
    return any(one == "GUIDER" or ("MODEL" in one and one not in _CHANGERS) for one in types)


def _inputs(cls: Any) -> dict[str, frozenset[str]]:
    try:
        declared = cls.INPUT_TYPES()
    except Exception:  # ComfyUI refuses the prompt then
        return {}
    sections = (declared.get(section) or {} for section in ("required", "optional"))
    return {str(name): types_in(entry[0]) for section in sections for name, entry in section.items() if entry}
