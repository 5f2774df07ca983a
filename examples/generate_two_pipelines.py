"""Two pipelines in a loop of one's own, with one guard and one log: a draft, and what a second pipeline makes of it.

The stand-in for "unsafe" is the triangle. No NSFW model is used.
"""

import torch
from diffusers import StableDiffusionImg2ImgPipeline

from nsfw_guard import NsfwGuard
from nsfw_guard.audit import read
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline
from nsfw_guard.generation import GuardedFolder
from nsfw_guard.integrations.diffusers_pipeline import attach

PROMPTS = ["a red circle on a blue background", "a yellow triangle on a purple background"]

guard = NsfwGuard("demo")
draft = load_pipeline()
parts = {**draft.components, "safety_checker": None, "feature_extractor": None}
again = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
again.set_progress_bar_config(disable=True)
attach(draft, guard)
attach(again, guard)

with GuardedFolder("generate_two_pipelines_out", guard, name="draft and img2img") as folder:
    for number, prompt in enumerate(PROMPTS):
        ids = [f"{number}-draft", f"{number}-final"]
        if set(ids) <= folder.done:
            continue  # an earlier run has saved both
        given = {"prompt": prompt, "guidance_scale": GUIDANCE, "num_inference_steps": 20}
        first = draft(**given, generator=torch.Generator().manual_seed(number))
        if ids[0] not in folder.done:
            folder.save(first, ids=ids[:1], prompts=[prompt], seeds=[number])
        # Of a flagged draft, the second pipeline is handed the redacted one; what it makes of that is looked at again.
        second = again(**given, image=first.images[0], strength=0.6, generator=torch.Generator().manual_seed(number))
        folder.save(second, ids=ids[1:], prompts=[prompt], seeds=[number])

for line in read("generate_two_pipelines_out/audit-00000.jsonl"):
    if line["event"] == "image":
        print(line["id"], line["action"], f"score {line['verdict']['score']:.4f}")
