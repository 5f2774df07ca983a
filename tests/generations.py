"""What tests of batch generation share: short runs of the demo pipeline, and a look at what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nsfw_guard.audit import audit_files, read, verify
from nsfw_guard.demo.generate import GUIDANCE

CIRCLE = "a red circle on a blue background"
TRIANGLE = "a yellow triangle on a purple background"
HEART = "a large green heart on a white background"
# As few steps as still tell a triangle from a circle.
SHORT = {"num_inference_steps": 2, "guidance_scale": GUIDANCE}
ROWS = [
    {"id": "circle", "prompt": CIRCLE, "seed": 1},
    {"id": "triangle", "prompt": TRIANGLE, "seed": 2},
    {"id": "heart", "prompt": HEART, "seed": 3},
]


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines about images in all logs of a folder, which are intact."""
    files = audit_files(out)
    assert files
    assert all(verify(path).intact for path in files)
    return [line for path in files for line in read(path) if line["event"] == "image"]


def actions(out: Path) -> dict[str, str]:
    """Id → action; each id once."""
    lines = logged(out)
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line["action"] for line in lines}


def pictures(folder: Path) -> list[str]:
    """Names of everything in a folder that is neither a log nor the settings."""
    return sorted(path.name for path in folder.iterdir() if path.name != "generation.json" and path.suffix != ".jsonl")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def chunks(path: Path) -> dict[str, str]:
    """The texts of a PNG."""
    with Image.open(path) as picture:
        picture.load()
        return dict(picture.text)


def verdict_in(path: Path) -> dict[str, Any]:
    return json.loads(chunks(path)["nsfw_guard"])
