"""Batch generation on all GPUs of a machine; the processes share the prompts.

    accelerate launch examples/generate_accelerate.py

Run plainly, it is one process. Which one draws what, and whether it was killed before, changes nothing in the folder.
The stand-in for "unsafe" is the triangle. No NSFW model is used.
"""

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline
from nsfw_guard.generation import Generation, processes

COLORS = ("red", "green", "blue", "purple")
PROMPTS = [f"a {color} {shape} on a white background" for color in COLORS for shape in ("circle", "triangle")]

here = processes()
pipe = load_pipeline().to(here.device)
settings = {"num_inference_steps": 10, "guidance_scale": GUIDANCE}

generation = Generation(pipe, "generate_accelerate_out", guard=NsfwGuard("demo"), batch_size=4, arguments=settings)
for made in generation.run(PROMPTS):
    print(f"process {here.index}: {made.file.name} {made.action}")

if here.index == 0:
    print(generation.summary)
