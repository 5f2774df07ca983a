"""How files are decoded, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingError


@dataclass(frozen=True)
class DecodeSettings:
    """How files are decoded.

    Attributes:
        size: The edge in pixels to which the model resizes: JPEGs are decoded at a half, a quarter or an eighth of
            their size as long as both sides stay at least twice this; ``None`` always decodes in full.
        exact: Always decode in full.
        every: Of animations and videos, take the frames 0, ``every``, 2 ``every``, … and the last one.
        max_pixels: A frame with more is refused. As Pillow's own ``MAX_IMAGE_PIXELS``, 2**30 // 4 // 3, a quarter of
            a gigabyte of RGB; what is to be more must be raised there too.
        max_bytes: A picture's file, or an archive's member, with more is refused; videos are not read into memory.
        max_frames: A file of which more frames would be taken is refused; ``None``: no limit.

    Raises:
        SettingError: A number out of its range.
    """

    size: int | None = None
    exact: bool = False
    every: int = 1
    max_pixels: int = 89_478_485
    max_bytes: int = 2**29
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "every", "max_pixels", "max_bytes", "max_frames"):
            value = getattr(self, name)
            if value is None and name in ("size", "max_frames"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name} is {value!r}; expected a whole number of at least 1.")
