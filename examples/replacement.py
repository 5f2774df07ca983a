"""What becomes of a flagged picture: blurred, pixelated, filled, or replaced by a picture of your own."""

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_pil_image

from nsfw_guard import NsfwGuard, Redaction
from nsfw_guard.demo.shapes import draw

flagged = draw("triangle", "yellow", "purple", height=256, width=384)  # the demo model's stand-in for "unsafe"

notice = Image.new("RGB", (300, 300), "#20242e")
ImageDraw.Draw(notice).text((60, 135), "not shown: content policy", fill="white")
notice.save("notice.png")

redactions = {
    "blur": Redaction("blur"),
    "coarse": Redaction("pixelate", cells=6),
    "fill": Redaction("fill", color=(0.9, 0.9, 0.92)),
    "notice": Redaction("replace", image="notice.png", fit="contain", color=(0.125, 0.14, 0.18)),
}
sheet = Image.new("RGB", (5 * 394 - 10, 256), "white")
sheet.paste(to_pil_image(flagged), (0, 0))
for column, (name, redaction) in enumerate(redactions.items(), start=1):
    result = NsfwGuard("demo", redaction=redaction).apply(flagged)
    assert result.flagged
    assert not torch.equal(result.images, flagged)
    sheet.paste(to_pil_image(result.images), (column * 394, 0))
    print(f"{name}: score {result.verdicts[0].score:.4f}")
sheet.save("replacement.png")
