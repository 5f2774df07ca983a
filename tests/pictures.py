"""Synthetic pictures with real structure, of many sizes: what preprocessing is measured on. No photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIZES = [
    (1024, 1024), (768, 512), (512, 768), (1280, 720), (720, 1280), (640, 640), (224, 224), (225, 223), (100, 300),
    (333, 77), (64, 64), (31, 47), (448, 448), (384, 384), (1920, 1080), (50, 50), (900, 300), (1500, 1001),
]  # fmt: skip


def _axes(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))


def gradient(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    x, y = _axes(width, height)
    a, b, c = rng.uniform(0.5, 2, 3)
    planes = [0.5 + 0.5 * np.sin(a * 3 * x), (b * y) % 1.0, np.clip(c * x * y, 0, 1)]
    return _picture(np.stack(planes, axis=-1))


def edges(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    x, y = _axes(width, height)
    picture = np.zeros((height, width, 3))
    for _ in range(6):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8)
        side = (x - offset) * np.cos(angle) + (y - offset) * np.sin(angle) > 0
        picture[side] = rng.uniform(0, 1, 3)
    return _picture(picture)


def noise(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def grid(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    rows, columns = np.indices((height, width))
    step = int(rng.integers(1, 4))
    lines = ((rows // step) % 2) ^ ((columns // step) % 2)
    return _picture(np.stack([lines, 1 - lines, lines * rng.uniform()], axis=-1).astype(float))


def text(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for row in range(0, height, 11):
        words = "".join(chr(int(c)) for c in rng.integers(33, 126, max(1, width // 6)))
        draw.text((0, row), words, fill=tuple(int(c) for c in rng.integers(0, 160, 3)))
    return picture


def shapes(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r = rng.uniform(0.05, 0.35) * min(width, height) + 1
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return picture


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def tinted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put a picture's values between two colours: pictures differ in brightness and colour as well as in structure."""
    low, high = np.sort(rng.uniform(0, 1, (2, 3)), axis=0)
    return _picture(low + (high - low) * np.asarray(picture) / 255)


def structured_pictures(count: int = 36, seed: int = 0) -> list[Image.Image]:
    """Return RGB pictures, every kind at many sizes and aspect ratios; of every three, one at full contrast."""
    rng = np.random.default_rng(seed)
    kinds = [gradient, edges, noise, grid, text, shapes]
    pictures = [kinds[i % len(kinds)](*SIZES[(i * 5 + i // 6) % len(SIZES)], rng) for i in range(count)]
    return [picture if (i // 6) % 3 == 0 else tinted(picture, rng) for i, picture in enumerate(pictures)]
