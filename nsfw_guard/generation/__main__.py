"""``accelerate launch -m nsfw_guard.generation PROMPTS …``: the same as ``nsfw-guard generate PROMPTS …``."""

import sys

from ..cli import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
