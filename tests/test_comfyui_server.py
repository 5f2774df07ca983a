"""The node pack in a real ComfyUI: set COMFYUI_DIR and COMFYUI_PYTHON to run these.

The demo's classifier stands in as the installed checkpoint: what it flags are triangles.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from comfyui_server import Refused, Server

from nsfw_guard import NsfwGuard, Redaction
from nsfw_guard.demo.shapes import draw
from nsfw_guard.redact import redact

pytestmark = pytest.mark.skipif(
    not (os.environ.get("COMFYUI_DIR") and os.environ.get("COMFYUI_PYTHON")),
    reason="set COMFYUI_DIR and COMFYUI_PYTHON to a ComfyUI",
)

SAFE, UNSAFE = ("circle", "red", "white"), ("triangle", "red", "white")
BATCH = [SAFE, UNSAFE, ("square", "blue", "yellow"), SAFE, ("heart", "red", "white"), UNSAFE, SAFE, SAFE]
FLAGGED = [1, 5]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("comfyui"))
    yield server
    server.close()


def picture(scene):
    """[H, W, 3], uint8."""
    return (draw(*scene).movedim(0, -1) * 255).round().to(torch.uint8).numpy()


def load(server, scenes=BATCH):
    """Nodes that load these scenes as one batch; the last one's id is "batch"."""
    nodes, link = {}, None
    for index, scene in enumerate(scenes):
        name = server.upload("_".join(scene) + ".png", picture(scene))
        nodes[f"load{index}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        if link is None:
            link = [f"load{index}", 0]
            continue
        nodes[f"join{index}"] = {
            "class_type": "ImageBatch",
            "inputs": {"image1": link, "image2": [f"load{index}", 0]},
        }
        link = [f"join{index}", 0]
    return nodes, link


def save(link, prefix="out"):
    return {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": prefix}}


def guard(link, **inputs):
    return {
        "class_type": "NSFWG_Guard",
        "inputs": {"image": link, "sensitivity": "balanced", "action": "blur", "action.cells": 16, **inputs},
    }


def test_the_one_node_guard_blurs_what_it_flags_and_nothing_else(server):
    nodes, link = load(server)
    run = server.run({**nodes, "guard": guard(link), "save": save(["guard", 0])})
    assert run.succeeded, run.error
    report = run.report("guard")
    assert report["flagged"] is True
    assert report["flagged_indices"] == FLAGGED
    assert [verdict["flagged"] for verdict in report["verdicts"]] == [i in FLAGGED for i in range(8)]
    shown = run.pictures("save")
    for index, (scene, image) in enumerate(zip(BATCH, shown, strict=True)):
        if index in FLAGGED:
            wanted = redact(torch.from_numpy(picture(scene)).movedim(-1, 0) / 255, Redaction("blur", cells=16))
            assert np.abs(image / 255 - wanted.movedim(0, -1).numpy()).max() <= 1.01 / 255
        else:
            assert np.array_equal(image, picture(scene))
    assert "2 FLAGGED, blur" in run.outputs["guard"]["text"][0]
