"""Checking tensors straight from a VAE, pictures and files; verdicts and policies without any redaction."""

import torch
from PIL import Image

from nsfw_guard import NsfwGuard, Policy
from nsfw_guard.demo.shapes import draw

guard = NsfwGuard("demo")  # NO NSFW MODEL: it flags triangles

# A batch as a VAE decodes it: [B, 3, H, W] in [-1, 1].
decoded = torch.stack([draw("circle", "red", "white"), draw("triangle", "red", "white")]) * 2 - 1

for verdict in guard.check(decoded, value_range=(-1, 1)):
    print("flagged" if verdict.flagged else "passed", f"score {verdict.score:.4f}", verdict.level.name)

# The same call redacts; what is not flagged comes back bit-identical.
result = guard.apply(decoded, value_range=(-1, 1))
assert result.flags == [False, True]
assert torch.equal(result.images[0], decoded[0])

# Probabilities first, decisions later: no model runs twice.
scores = guard.classify(decoded, value_range=(-1, 1))
for threshold in (0.01, 0.5, 0.99):
    print(threshold, [verdict.flagged for verdict in Policy(threshold=threshold).decide(scores)])

# Anything that holds a picture is checked by the same path.
picture = Image.fromarray(((decoded[1] + 1) * 127.5).round().byte().movedim(0, -1).contiguous().numpy())
picture.save("triangle.png")
print([guard.check(source)[0].flagged for source in (picture, "triangle.png", [picture, decoded[0].clamp(0, 1)])])
