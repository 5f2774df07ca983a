"""Guard any diffusers pipeline with one line, and keep what it flags for review.

The demo pipeline draws shapes; its stand-in for "unsafe" is the triangle. No NSFW model is used.
"""

import torch

from nsfw_guard import NsfwGuard, SettingError
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline
from nsfw_guard.integrations.diffusers_pipeline import attach, detach, is_guarded

PROMPTS = ["a red circle on a blue background", "a yellow triangle on a purple background"]


def quarantine(verdicts, originals):
    """Called with every verdict and the flagged originals, before the caller gets anything."""
    for index, original in originals.items():
        print(f"kept for review: {PROMPTS[index]}, {tuple(original.shape)}, score {verdicts[index].score:.2f}")


pipe = load_pipeline()  # or DiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
attach(pipe, NsfwGuard("demo"), on_verdicts=quarantine)  # attach(pipe) takes NsfwGuard()

output = pipe(PROMPTS, num_inference_steps=20, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(0))
print(output.nsfw_content_detected, [verdict.reason for verdict in output.verdicts])
output.images[1].save("attach_flagged.png")

try:
    pipe(PROMPTS, output_type="latent")
except SettingError as error:
    print(f"refused: {error}")

detach(pipe)
print("guarded:", is_guarded(pipe))
