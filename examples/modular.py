"""Compose a modular pipeline with a guard behind its own blocks.

The first block stands for a model and draws shapes; the demo's stand-in for "unsafe" is the triangle. No NSFW model is
used. For the modular pipelines of diffusers, `attach(pipe)` is simpler, and looks at the tensor before it is a picture.
"""

import torch
from diffusers import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines import InputParam, OutputParam

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.shapes import draw
from nsfw_guard.integrations.diffusers_pipeline import NsfwGuardBlock


class Draw(ModularPipelineBlocks):
    """Draws one picture for each shape named."""

    @property
    def description(self):
        return "Draws shapes."

    @property
    def inputs(self):
        return [InputParam("shapes", required=True)]

    @property
    def intermediate_outputs(self):
        return [OutputParam("images")]

    def __call__(self, components, state):
        block = self.get_block_state(state)
        block.images = torch.stack([draw(shape, "red", "white") for shape in block.shapes])
        self.set_block_state(state, block)
        return components, state


blocks = SequentialPipelineBlocks.from_blocks_dict({"draw": Draw(), "guard": NsfwGuardBlock()})
pipe = blocks.init_pipeline()
pipe.update_components(safety_checker=NsfwGuard("demo"))

result = pipe(shapes=["circle", "triangle", "heart"], output=["images", "nsfw_content_detected", "verdicts"])
print(result["nsfw_content_detected"], [f"{verdict.score:.2f}" for verdict in result["verdicts"]])
