"""Stop generations that are going to be flagged, and see how many denoising steps that saves.

The demo pipeline draws shapes; its stand-in for "unsafe" is the triangle. No NSFW model is used.
"""

import argparse

import torch

from nsfw_guard import NsfwGuard
from nsfw_guard.demo import STEPS, shapes
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline
from nsfw_guard.integrations.diffusers_pipeline import EarlyExit, attach

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--pictures", type=int, default=8, help="of each kind, safe and unsafe")
parser.add_argument("--preview", default="vae", choices=("vae", "rgb"))
arguments = parser.parse_args()

guard = NsfwGuard("demo")
pipe = load_pipeline()
attach(pipe, guard, early=EarlyExit(every=2, after=0.4, preview=arguments.preview))


def count(_pipe, step, _timestep, tensors):
    steps.append(step)
    return tensors


generator = torch.Generator().manual_seed(0)
scenes = shapes.random_scenes(40 * arguments.pictures, generator, empty=0.0)
for kind, wanted in (("unsafe", True), ("safe", False)):
    some = [scene for scene in scenes if (scene.shape == shapes.FLAGGED_SHAPE) == wanted][: arguments.pictures]
    steps, stopped, flagged = [], 0, 0
    for number, scene in enumerate(some):
        output = pipe(
            shapes.prompt_of(scene),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(number),
            callback_on_step_end=count,
        )
        stopped += output.verdicts[0].reason == "early"
        flagged += output.nsfw_content_detected[0]
    run = len(steps) / (STEPS * len(some))
    print(f"{kind}: {len(some)} pictures, {flagged} flagged, {stopped} stopped early, {1 - run:.0%} of the steps saved")
