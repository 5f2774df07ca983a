"""The same guard on every runtime: which path it takes and why, and that the verdicts are the same."""

import importlib.util

import torch

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.shapes import draw

SETTINGS = [{"runtime": "torch", "dtype": "float32"}, {"dtype": "float32"}, {"dtype": "bfloat16"}]
if importlib.util.find_spec("onnxruntime"):
    SETTINGS += [{"runtime": "onnx"}, {"runtime": "onnx", "dtype": "int8"}]
else:
    print('for ONNX Runtime: pip install "nsfw-guard[onnx]"')

images = torch.stack([draw(shape, "red", "white") for shape in ("circle", "triangle", "heart", "triangle")])
for settings in SETTINGS:
    guard = NsfwGuard("demo", **settings)
    verdicts = guard.check(images)
    forward = guard.describe()["forward"]
    print(f"{settings}: {forward['path']} ({forward['why']})")
    print("  ", [verdict.flagged for verdict in verdicts], [f"{verdict.score:.4f}" for verdict in verdicts])
    if [verdict.flagged for verdict in verdicts] != [False, True, False, True]:
        raise SystemExit("the verdicts differ")
