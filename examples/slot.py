"""The guard in the safety_checker slot of a diffusers pipeline.

The pipeline is the embedded one, which draws shapes; its guard's stand-in for "unsafe" is the triangle (NO NSFW MODEL).
With a real pipeline the lines are the same:

    pipe = StableDiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", safety_checker=NsfwGuard(), torch_dtype=torch.float16
    ).to("cuda")
"""

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessor

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.generate import PIPELINE

guard = NsfwGuard("demo")
pipe = StableDiffusionPipeline.from_pretrained(
    PIPELINE,
    safety_checker=guard,
    # Pipelines insist on a feature extractor beside a safety checker; the guard itself needs none.
    feature_extractor=CLIPImageProcessor(),
    torch_dtype=torch.float32,
)
pipe.unet.to(memory_format=torch.channels_last)  # many times faster on CPUs, for a model this small

prompts = ["a blue circle on a white background", "a red triangle on a blue background"]
output = pipe(prompts, num_inference_steps=20, generator=torch.Generator().manual_seed(1))

for number, (prompt, image, flagged, verdict) in enumerate(
    zip(prompts, output.images, output.nsfw_content_detected, guard.last_verdicts, strict=True)
):
    image.save(f"slot-{number}.png")
    print(f"{prompt}: {'flagged and blurred' if flagged else 'passed'}, score {verdict.score:.4f}")
