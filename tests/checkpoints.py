"""Small checkpoints for tests; the public architectures come from ``nsfw_guard.bench.checkpoints``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from nsfw_guard.bench.checkpoints import (  # noqa: F401 - tests take them from here
    ADAMCODD_CONFIG,
    ADAMCODD_PROCESSOR,
    FALCONSAI_CONFIG,
    FALCONSAI_PROCESSOR,
    FREEPIK_CONFIG,
    MARQO_CONFIG,
    SAVERS,
    save_adamcodd,
    save_falconsai,
    save_freepik,
    save_marqo,
    save_vit,
    seeded,
    write_json,
)


def spread(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a small network weights so large that its scores differ clearly from picture to picture."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim > 1:
                fan_in = weights[0].numel()
                weights.copy_(1.5 * torch.randn(weights.shape, generator=generator) / fan_in**0.5)
    return network.eval()


TINY_CONFIG = {
    **FALCONSAI_CONFIG,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TINY_PROCESSOR = {**FALCONSAI_PROCESSOR, "size": {"height": 32, "width": 32}}


def save_tiny(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """Save a ViT that loads in milliseconds, in the layout of Falconsai; ``changes`` go into its config."""
    config = {**TINY_CONFIG, **changes}
    network = spread(ViTForImageClassification(ViTConfig.from_dict(config)), seed)
    return save_vit(folder, config, TINY_PROCESSOR, network)
