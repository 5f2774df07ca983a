"""Guard a video pipeline: AnimateDiff, made of the demo's parts, draws a clip of a shape frame by frame.

The stand-in for "unsafe" is the triangle. No NSFW model is used.
"""

import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNetMotionModel
from PIL import Image

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline
from nsfw_guard.integrations.diffusers_pipeline import attach

parts = load_pipeline()
torch.manual_seed(0)
adapter = MotionAdapter(
    block_out_channels=tuple(parts.unet.config.block_out_channels),
    motion_layers_per_block=1,
    motion_num_attention_heads=4,
    motion_norm_num_groups=8,
    use_motion_mid_block=False,
)
for name, weights in adapter.named_parameters():
    if "proj_out" in name:  # an untrained adapter adds nothing: every frame is the image model's own
        torch.nn.init.zeros_(weights)
pipe = AnimateDiffPipeline(
    vae=parts.vae,
    text_encoder=parts.text_encoder,
    tokenizer=parts.tokenizer,
    unet=UNetMotionModel.from_unet2d(parts.unet, adapter),
    motion_adapter=adapter,
    scheduler=parts.scheduler,
)
pipe.set_progress_bar_config(disable=True)

# Every third frame is looked at, and each one next to a flagged one; runs of redacted frames are at least four long.
attach(pipe, NsfwGuard("demo"), every=3, min_run=4)
for prompt in ("a large red circle on a white background", "a yellow triangle on a purple background"):
    output = pipe(
        prompt,
        num_frames=8,
        height=128,
        width=128,
        num_inference_steps=20,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(0),
    )
    (clip,), (verdict,), (frames,) = output.frames, output.verdicts, output.frame_verdicts
    looked_at = "".join("-" if frame is None else "x" if frame.flagged else "." for frame in frames)
    print(f"{prompt}: {len(clip)} frames, {looked_at}, flagged: {verdict.flagged}")
    strip = Image.new("RGB", (128 * len(clip), 128))
    for index, frame in enumerate(clip):
        strip.paste(frame, (128 * index, 0))
    strip.save(f"video_{'flagged' if verdict.flagged else 'passed'}.png")
