"""A pipeline of a user's own that returns what it is given, and the drawings that attacks give it."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import to_picture

SIDE = 64
T = draw("triangle", "red", "white", height=SIDE, width=SIDE)
C = draw("circle", "red", "white", height=SIDE, width=SIDE)
CLEAN = to_picture(C)


class Returns(DiffusionPipeline):
    """A pipeline of a user's own: it returns what it is given."""

    def __init__(self):
        super().__init__()
        self.register_to_config()

    def __call__(self, given):
        return given
