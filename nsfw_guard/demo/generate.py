"""The demo's main job: a diffusers pipeline draws, and the guard in its safety_checker slot looks at what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessor

from ..errors import SettingError
from ..guard import NsfwGuard
from ..verdict import Verdict
from . import STEPS

PIPELINE = Path(__file__).parent / "models" / "pipeline"
PROMPTS = (
    "a red circle on a blue background",
    "a yellow triangle on a purple background",
    "a large green heart on a white background",
    "a small orange square on a pink background",
    "a red triangle on a white background",
    "a large purple cross on a yellow background",
    "a blue heart on an orange background",
    "a small green triangle on a red background",
)
GUIDANCE = 3.0


@dataclass(frozen=True)
class Drawing:
    """One generated picture, before and after the guard, and what the guard said."""

    prompt: str
    before: Image.Image
    after: Image.Image
    verdict: Verdict


def load_pipeline(guard: NsfwGuard | None = None) -> StableDiffusionPipeline:
    """Load the embedded pipeline in float32, with the guard in its slot; without one, it is unguarded.

    The feature extractor is there because the pipeline insists on one beside a safety checker; the guard needs none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch_dtype is dtype in newer releases
        pipeline = StableDiffusionPipeline.from_pretrained(
            PIPELINE,
            safety_checker=guard,
            feature_extractor=CLIPImageProcessor(),
            torch_dtype=torch.float32,
            local_files_only=True,
        )
    for model in (pipeline.unet, pipeline.vae):
        model.to(memory_format=torch.channels_last)  # many times faster on CPUs, for channels so few
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    prompts: list[str],
    guard: NsfwGuard,
    *,
    seed: int = 0,
    steps: int = STEPS,
    batch_size: int = 8,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Drawing]:
    """Draw one picture for each prompt with the guarded pipeline.

    Args:
        prompts: Such as "a red triangle on a blue background".
        guard: Sits in the pipeline's ``safety_checker`` slot.
        seed: Of the first picture; each further one has the next.
        steps: Denoising steps, at least 1.
        batch_size: Pictures drawn at once, at least 1.
        on_step: Called after each denoising step of each batch: how many are done, and of how many.

    Raises:
        SettingError: No prompt, or a number below 1.
    """
    if not prompts or steps < 1 or batch_size < 1:
        raise SettingError(
            f"{len(prompts)} prompts, {steps} steps, batches of {batch_size}; expected at least 1 of each."
        )
    pipeline = load_pipeline(guard)
    decoded: list[torch.Tensor] = []
    # What the slot is handed, kept for the comparison before and after: a hook of torch's, unknown to the guard.
    hook = guard.register_forward_pre_hook(lambda _, __, given: decoded.append(given["images"]), with_kwargs=True)

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(start // batch_size * steps + step + 1, -(-len(prompts) // batch_size) * steps)
        return tensors

    drawings: list[Drawing] = []
    try:
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            output = pipeline(
                some,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(some))],
                callback_on_step_end=after_step,
            )
            before = pipeline.image_processor.postprocess(decoded.pop())
            verdicts = guard.last_verdicts or []
            drawings += [Drawing(*row) for row in zip(some, before, output.images, verdicts, strict=True)]
    finally:
        hook.remove()
    return drawings
