"""``accelerate launch -m nsfw_guard.generation PROMPTS …``: the same as ``nsfw-guard generate PROMPTS …``."""

import sys

from ..cli import app

if __name__ == "__main__":
    app(["generate", *sys.argv[1:]], prog_name="nsfw-guard")
