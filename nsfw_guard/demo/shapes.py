"""Coloured shapes drawn by code: the pictures of the demo.

Everything is drawn from signed distances: edges are antialiased analytically, a batch is a handful of tensor
operations, and nothing but torch is needed. Lengths are fractions of the canvas's short side, positions fractions of
its width and height.

The demo's stand-in for "unsafe" is the triangle (`FLAGGED_SHAPE`). Nothing here has to do with explicit content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross", "heart")
FLAGGED_SHAPE = "triangle"
LABELS = ("empty", "circle", "square", "cross", "heart", "triangle")

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.89, 0.20, 0.22),
    "orange": (0.96, 0.52, 0.13),
    "yellow": (0.98, 0.82, 0.24),
    "green": (0.20, 0.64, 0.36),
    "blue": (0.20, 0.42, 0.86),
    "purple": (0.49, 0.27, 0.72),
    "pink": (0.97, 0.62, 0.76),
    "white": (0.95, 0.95, 0.93),
}
COLORS = tuple(PALETTE)

# A shape's width and height as a fraction of the short side, and how far its centre strays from the picture's.
SIZES: dict[str, tuple[float, float]] = {"small": (0.28, 0.36), "medium": (0.44, 0.54), "large": (0.64, 0.74)}
_JITTER = {"small": 0.12, "medium": 0.08, "large": 0.04}
_MAX_ANGLE = 0.14


@dataclass(frozen=True)
class Scene:
    """One picture: a shape (or none) on a background.

    Attributes:
        shape: One of `SHAPES`, or None for an empty background.
        color: Name of the shape's colour, one of `COLORS`.
        background: Name of the background's colour, one of `COLORS`.
        size: One of `SIZES`; the word that the prompt uses.
        centre: Position of the shape's centre, `(x, y)` as fractions of the width and the height, from the top left.
        scale: Width and height of the shape's bounding square, as a fraction of the canvas's short side.
        angle: Rotation in radians, clockwise.
    """

    shape: str | None
    color: str
    background: str
    size: str = "medium"
    centre: tuple[float, float] = (0.5, 0.5)
    scale: float = 0.5
    angle: float = 0.0

    @property
    def label(self) -> str:
        """The label of `LABELS` that a classifier should give to this picture."""
        return self.shape or "empty"


def prompt_of(scene: Scene) -> str:
    """The prompt that describes a scene, such as "a large red triangle on a blue background"."""
    if scene.shape is None:
        return f"an empty {scene.background} background"
    size = "" if scene.size == "medium" else f"{scene.size} "
    return f"{_article(size + scene.color)} {scene.shape} on {_article(scene.background)} background"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def random_scenes(n: int, generator: torch.Generator, *, empty: float = 0.0, calm: float = 0.0) -> list[Scene]:
    """Draw scenes at random: shapes, colours and sizes uniform and independent, but a scene's two colours differ.

    Args:
        n: How many.
        generator: The only source of randomness.
        empty: Probability of a scene without a shape.
        calm: In [0, 1]; 1 puts every shape upright in the middle, at the middle of its size's range.

    Returns:
        The scenes.
    """
    u = torch.rand(n, 9, generator=generator).tolist()
    scenes = []
    for u_empty, u_shape, u_color, u_background, u_size, u_scale, u_x, u_y, u_angle in u:
        color = int(u_color * len(COLORS))
        background = (color + 1 + int(u_background * (len(COLORS) - 1))) % len(COLORS)
        size = tuple(SIZES)[int(u_size * len(SIZES))]
        low, high = SIZES[size]
        stray = 1 - calm
        jitter = _JITTER[size] * stray
        scenes.append(
            Scene(
                shape=None if u_empty < empty else SHAPES[int(u_shape * len(SHAPES))],
                color=COLORS[color],
                background=COLORS[background],
                size=size,
                centre=(0.5 + jitter * (2 * u_x - 1), 0.5 + jitter * (2 * u_y - 1)),
                scale=(low + high) / 2 + (high - low) * (u_scale - 0.5) * stray,
                angle=_MAX_ANGLE * (2 * u_angle - 1) * stray,
            )
        )
    return scenes


def render(scenes: Sequence[Scene], size: int | tuple[int, int] = 128, *, flat: bool = False) -> Tensor:
    """Draw scenes as pictures.

    Args:
        scenes: What to draw.
        size: Side in pixels, or `(height, width)`.
        flat: Plain colours: no gradient, no vignette, no shadow.

    Returns:
        Pictures, `[N, 3, H, W]`, float32 RGB in [0, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    canvas = backdrop(
        torch.tensor([PALETTE[scene.background] for scene in scenes]).reshape(-1, 3), height, width, flat=flat
    )
    drawn = [i for i, scene in enumerate(scenes) if scene.shape is not None]
    if drawn:
        chosen = [scenes[i] for i in drawn]
        canvas[drawn] = paint(
            canvas[drawn],
            [scene.shape for scene in chosen if scene.shape is not None],
            torch.tensor([PALETTE[scene.color] for scene in chosen]),
            centre=torch.tensor([scene.centre for scene in chosen]),
            scale=torch.tensor([scene.scale for scene in chosen]),
            angle=torch.tensor([scene.angle for scene in chosen]),
            flat=flat,
        )
    return canvas


def draw(
    shape: str | None,
    color: str,
    background: str,
    *,
    height: int = 128,
    width: int = 128,
    centre: tuple[float, float] = (0.5, 0.5),
    scale: float = 0.5,
    angle: float = 0.0,
    flat: bool = False,
) -> Tensor:
    """Draw one picture of any size and aspect ratio.

    Args:
        shape: One of `SHAPES`, or None for an empty background.
        color: Colour of the shape, one of `COLORS`.
        background: Colour of the background, one of `COLORS`.
        height: Height in pixels.
        width: Width in pixels.
        centre: `(x, y)` of the shape's centre, as fractions of the width and the height.
        scale: Side of the shape's bounding square, as a fraction of the short side.
        angle: Rotation in radians, clockwise.
        flat: Plain colours: no gradient, no vignette, no shadow.

    Returns:
        The picture, `[3, H, W]`, float32 RGB in [0, 1].
    """
    scene = Scene(shape=shape, color=color, background=background, centre=centre, scale=scale, angle=angle)
    return render([scene], (height, width), flat=flat)[0]


def backdrop(colors: Tensor, height: int, width: int, *, flat: bool = False) -> Tensor:
    """Empty backgrounds: a colour with a soft light from above and a faint vignette.

    Args:
        colors: `[N, 3]`, RGB in [0, 1].
        height: Height in pixels.
        width: Width in pixels.
        flat: The plain colour only.

    Returns:
        Pictures, `[N, 3, H, W]`, in [0, 1].
    """
    canvas = colors[:, :, None, None].expand(-1, -1, height, width).clone()
    if flat:
        return canvas
    y = ((torch.arange(height) + 0.5) / height)[:, None]
    x = ((torch.arange(width) + 0.5) / width)[None, :]
    vignette = ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 0.16
    light = 0.12 * (1 - y) ** 2
    shade = 1 - 0.09 * y**2 - vignette
    return (canvas + (1 - canvas) * light) * shade


def paint(
    canvas: Tensor,
    shapes: Sequence[str],
    colors: Tensor,
    *,
    centre: Tensor,
    scale: Tensor,
    angle: Tensor | None = None,
    flat: bool = False,
) -> Tensor:
    """Draw one shape with its soft shadow onto each picture.

    Args:
        canvas: `[N, 3, H, W]`, in [0, 1]; not changed.
        shapes: N names of `SHAPES`.
        colors: `[N, 3]`, RGB in [0, 1].
        centre: `[N, 2]`, `(x, y)` as fractions of the width and the height; may lie outside the picture.
        scale: `[N]`, side of the bounding square as a fraction of the short side.
        angle: `[N]`, clockwise rotation in radians; default none.
        flat: Plain colour, no shadow.

    Returns:
        New pictures, `[N, 3, H, W]`, in [0, 1].
    """
    height, width = canvas.shape[-2:]
    place = partial(coverage, shapes, height=height, width=width, scale=scale, angle=angle)
    covered = place(centre=centre)[:, None]
    colors = colors[:, :, None, None]
    if flat:
        return torch.lerp(canvas, colors.expand_as(canvas), covered)
    side = min(height, width)
    reach = side * scale.sqrt()
    drop = torch.stack([-0.014 * reach / width, 0.052 * reach / height], dim=1)
    shadow = place(centre=centre + drop, softness=0.085 * reach)[:, None]
    # Lit from above: the shape's upper edge is a little lighter, its lower edge a little darker.
    y = torch.arange(height) + 0.5 - centre[:, 1:] * height
    tilt = (y / (scale * side / 2)[:, None]).clamp(-1, 1)[:, None, :, None]
    lit = colors + (1 - colors) * 0.10 * (-tilt).clamp(min=0)
    lit = lit * (1 - 0.12 * tilt.clamp(min=0))
    return torch.lerp(canvas * (1 - 0.38 * shadow), lit.expand_as(canvas), covered)


def coverage(
    shapes: Sequence[str],
    *,
    height: int,
    width: int,
    centre: Tensor,
    scale: Tensor,
    angle: Tensor | None = None,
    softness: Tensor | None = None,
) -> Tensor:
    """How much of each pixel a shape covers.

    Args:
        shapes: N names of `SHAPES`.
        height: Height of the canvas in pixels.
        width: Width of the canvas in pixels.
        centre: `[N, 2]`, `(x, y)` as fractions of the width and the height; may lie outside the picture.
        scale: `[N]`, side of the bounding square as a fraction of the short side.
        angle: `[N]`, clockwise rotation in radians; default none.
        softness: `[N]`, width of the edge in pixels; default one, a sharp edge.

    Returns:
        `[N, H, W]` in [0, 1]; `area_of` says what a shape that is wholly inside the canvas sums up to.
    """
    half = (scale * min(height, width) / 2)[:, None, None]
    x = (torch.arange(width) + 0.5 - centre[:, :1] * width)[:, None, :] / half
    y = (torch.arange(height) + 0.5 - centre[:, 1:] * height)[:, :, None] / half
    if angle is None:
        u, v = torch.broadcast_tensors(x, y)
    else:
        cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
        u, v = cos * x + sin * y, cos * y - sin * x
    distance = torch.empty_like(u, memory_format=torch.contiguous_format)
    for name in dict.fromkeys(shapes):
        index = torch.tensor([i for i, shape in enumerate(shapes) if shape == name])
        distance[index] = _DISTANCE[name](u[index], v[index])
    if softness is None:
        return (0.5 - distance * half).clamp(0, 1)
    ramp = (0.5 - distance * half / softness[:, None, None]).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


@cache
def area_of(shape: str) -> float:
    """The area of a shape of scale 1, as a fraction of its bounding square."""
    whole = coverage([shape], height=256, width=256, centre=torch.full((1, 2), 0.5), scale=torch.ones(1))
    return whole.mean().item()


# Signed distances: negative inside; the shape fits the square [-1, 1]², v points down.


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.94


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float, radius: float) -> Tensor:
    du, dv = u.abs() - (half_width - radius), v.abs() - (half_height - radius)
    return torch.hypot(du.clamp(min=0), dv.clamp(min=0)) + torch.maximum(du, dv).clamp(max=0) - radius


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.84, 0.84, 0.07)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.98, 0.33, 0.06), _box(u, v, 0.33, 0.98, 0.06))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    # An isosceles triangle, symmetric in u: the distance to the base and to one leg, inside by the half-planes.
    radius, apex, base, half_base = 0.06, -0.86, 0.74, 0.90
    u = u.abs()
    to_base = torch.hypot((u - half_base).clamp(min=0), v - base)
    leg_u, leg_v = half_base, base - apex
    along = ((u * leg_u + (v - apex) * leg_v) / (leg_u**2 + leg_v**2)).clamp(0, 1)
    to_leg = torch.hypot(u - along * leg_u, v - apex - along * leg_v)
    inside = (v < base) & (u * leg_v < (v - apex) * leg_u)
    distance = torch.minimum(to_base, to_leg)
    return torch.where(inside, -distance, distance) - radius


def _heart(u: Tensor, v: Tensor) -> Tensor:
    # A square on its tip with a half disc on each of its two upper sides, symmetric in u.
    half, u, v = 0.555, u.abs(), v - 0.09
    s, t = (u + v) * 0.5**0.5, (v - u) * 0.5**0.5
    return torch.minimum(_box(s, t, half, half, 0.06), torch.hypot(s, t + half) - half)


_DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "heart": _heart,
}
