"""Checkpoints of the public models with random weights: their architectures, configs and layouts, not their numbers.

Time does not depend on the numbers, so speed can be measured where the public weights cannot be fetched. The configs
are what is known of the public files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, ViTConfig, ViTForImageClassification

_VIT_B: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "attention_probs_dropout_prob": 0.0,
    "encoder_stride": 16,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "model_type": "vit",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "problem_type": "single_label_classification",
    "qkv_bias": True,
    "torch_dtype": "float32",
}
FALCONSAI_CONFIG = {
    **_VIT_B,
    "id2label": {"0": "normal", "1": "nsfw"},
    "image_size": 224,
    "label2id": {"normal": "0", "nsfw": "1"},
    "transformers_version": "4.31.0",
}
FALCONSAI_PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
ADAMCODD_CONFIG = {
    **_VIT_B,
    "id2label": {"0": "sfw", "1": "nsfw"},
    "image_size": 384,
    "label2id": {"sfw": "0", "nsfw": "1"},
    "transformers_version": "4.36.2",
}
# The public file leaves out resample, do_rescale and rescale_factor.
ADAMCODD_PROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 384, "width": 384},
}
MARQO_CONFIG: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_384",
    "num_classes": 2,
    "num_features": 192,
    "global_pool": "token",
    "label_names": ["NSFW", "SFW"],
    "pretrained_cfg": {
        "tag": "augreg_in21k_ft_in1k",
        "custom_load": True,
        "input_size": [3, 384, 384],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 1000,  # as in the public file: wrong for its weights
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}
# The public config.json has not been seen; this is what its resolved data config and its class imply.
FREEPIK_CONFIG: dict[str, Any] = {
    "architecture": "eva02_base_patch14_448",
    "architectures": ["TimmWrapperForImageClassification"],
    "do_pooling": True,
    "initializer_range": 0.02,
    "label_names": ["neutral", "low", "medium", "high"],
    "model_type": "timm_wrapper",
    "num_classes": 4,
    "num_features": 768,
    "global_pool": "avg",
    "pretrained_cfg": {
        "tag": "mim_in22k_ft_in22k_in1k",
        "custom_load": False,
        "input_size": [3, 448, 448],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "num_classes": 4,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
    "torch_dtype": "bfloat16",
}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network with its library's own random initialisation, reproducibly."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def write_json(path: Path, value: object) -> None:
    """Write a value as the public repositories do."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def save_vit(folder: Path, config: dict[str, Any], processor: dict[str, Any], network: Any = None) -> Path:
    """Save a ``ViTForImageClassification`` as transformers 4 did: its tensor names, its config, its processor."""
    network = network or seeded(lambda: ViTForImageClassification(ViTConfig.from_dict(config)))
    network.save_pretrained(folder)  # writes the names of the older releases, which the public files have
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", processor)
    return folder


def save_falconsai(folder: Path) -> Path:
    """Save a ViT-B/16 224 in float32."""
    return save_vit(folder, FALCONSAI_CONFIG, FALCONSAI_PROCESSOR)


def save_adamcodd(folder: Path) -> Path:
    """Save a ViT-B/16 384 in float32."""
    return save_vit(folder, ADAMCODD_CONFIG, ADAMCODD_PROCESSOR)


def save_marqo(folder: Path) -> Path:
    """Save a plain timm folder: raw tensor names, ``architecture`` and ``pretrained_cfg``, no ``model_type``."""
    folder.mkdir(parents=True, exist_ok=True)
    network = seeded(lambda: timm.create_model("vit_tiny_patch16_384", num_classes=2))
    save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", MARQO_CONFIG)
    return folder


def save_freepik(folder: Path) -> Path:
    """Save transformers' timm wrapper in bfloat16."""
    network: Any = seeded(lambda: TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(FREEPIK_CONFIG)))
    network.to(torch.bfloat16).save_pretrained(folder)
    write_json(folder / "config.json", FREEPIK_CONFIG)
    return folder


# Card → who saves its architecture.
SAVERS: dict[str, Callable[[Path], Path]] = {
    "falconsai": save_falconsai,
    "adamcodd": save_adamcodd,
    "marqo": save_marqo,
    "freepik": save_freepik,
}
