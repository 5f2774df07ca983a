"""Batch generation in five lines: prompts in, images that may be shown out, and a log of every decision.

The demo pipeline draws shapes; its stand-in for "unsafe" is the triangle. No NSFW model is used. Run it again: what is
done is not done twice.
"""

from nsfw_guard import NsfwGuard
from nsfw_guard.audit import verify
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline
from nsfw_guard.generation import Generation

PROMPTS = [
    "a red circle on a blue background",
    {"prompt": "a yellow triangle on a purple background", "seed": 7},
    {"id": "heart", "prompt": "a large green heart on a white background", "width": 192, "height": 128},
]

pipe = load_pipeline()  # or DiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
settings = {"num_inference_steps": 20, "guidance_scale": GUIDANCE}

generation = Generation(pipe, "generate_out", guard=NsfwGuard("demo"), on_flag="retry=1", arguments=settings)
for made in generation.run(PROMPTS):  # or a .txt, .jsonl or .csv file
    print(made.id, made.action, f"score {made.verdict.score:.4f}", f"attempt {made.attempt}")

print(generation.summary)
for log in generation.summary.audit:
    report = verify(f"generate_out/{log['file']}")
    print(log["file"], "intact:", report.intact, f"({report.lines} lines)")
