"""What else can be seen of a picture's file: thumbnails, previews, smaller icons, gain maps, films."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from PIL import Image

from ..errors import ImageError
from .boxes import as_primary, films_behind, has_top_box, without_roles
from .icons import apple_icons, windows_icons
from .settings import DecodeSettings
from .sniff import HEAD, brands, open_picture, reading, sniff
from .thumbnails import (
    exif_in,
    exif_raw,
    jpeg_segments,
    jpegs_in,
    photoshop_resources,
    psd_resources,
    raw_jfif,
    raw_photoshop,
    tiff_inner,
)

# No ordinary file holds more.
MOST = 64
_ORIENTATION = 0x0112
_PHOTOSHOP_THUMBNAILS = (1033, 1036)


@dataclass(frozen=True)
class Inner:
    """Something that lies in a picture's file and can be seen: a picture, or a film.

    Attributes:
        name: ``"thumbnail"``, ``"gain map"``, ``"icon 32x32"``, ``"still"``, ``"film"`` and so on.
        film: The film's file; ``None``: it is a picture.
    """

    name: str
    film: bytes | None = None
    _open: Callable[[], Image.Image] | None = None

    def open(self) -> Image.Image | None:
        """Open and decode the picture, which may have several frames.

        Returns:
            ``None``: nothing that is installed opens it, so that hardly anybody sees it. It belongs into a warning.

        Raises:
            ImageError: It is broken behind its beginning, or over a limit.
        """
        if self._open is None:
            return None
        try:
            picture = self._open()
        except ImageError as error:
            if error.__cause__ is None or isinstance(error.__cause__, Image.DecompressionBombError):
                raise
            return None
        with reading(f"the {self.name}", "decoded"):
            picture.load()
        return picture


def inside(data: bytes | None, picture: Image.Image, settings: DecodeSettings, *, name: str = "it") -> list[Inner]:
    """Return what can be seen beside a picture's own frames. Nothing is decoded for it.

    Args:
        data: Its file; ``None``: only what Pillow's object carries.
        picture: As it was opened, at its first frame.
        settings: Its limits count.
        name: What errors call the file.

    Raises:
        ImageError: There are more than 64, or the file's structure is not to be believed.
    """
    with reading(name, "decoded"):
        found = list(islice(_all(data, picture, settings, name), MOST + 1))
    if len(found) > MOST:
        raise ImageError(f"{name} holds more than {MOST} further pictures and films.")
    return found


def holds_sequence(data: bytes) -> bool:
    """Return whether a HEIF or AVIF holds a sequence, of which Pillow shows the still only."""
    return sniff(data[:HEAD]).format in ("HEIF", "AVIF") and has_top_box(data, b"moov")


def _all(data: bytes | None, picture: Image.Image, settings: DecodeSettings, name: str) -> Iterator[Inner]:
    kind = None if data is None else sniff(data[:HEAD]).format
    if data is not None:
        yield from (Inner("film", film) for film in films_behind(data, name))
    turned = picture.getexif().get(_ORIENTATION, 1)
    thumbnail = partial(_picture, "thumbnail", settings, turned=turned)
    for exif in _exif_of(picture) if data is None or kind not in ("AVIF", "HEIF") else exif_in(data):
        yield from (thumbnail(one) for one in exif_raw(exif))
        if data is None or kind not in ("JPEG", "AVIF", "HEIF"):
            yield from (thumbnail(exif, at) for at in jpegs_in(exif))
    if data is not None and kind in (
        "AVIF",
        "HEIF",
    ):  # of these, Pillow's objects carry EXIF that it may have rewritten
        yield from (thumbnail(data, at) for at in jpegs_in(data))
    if data is None or kind is None:
        content = picture.info.get("photoshop")
        yield from _photoshop(content.items() if isinstance(content, dict) else (), thumbnail)
    elif kind == "JPEG":
        yield from _in_jpeg(data, picture, settings, thumbnail)
    elif kind in ("ICO", "CUR"):
        for icon in windows_icons(data, MOST)[1:]:
            yield _picture(icon.name, settings, icon.data)
    elif kind == "ICNS":
        icons, unknown = apple_icons(data, MOST)
        yield from (_picture(icon.name, settings, icon.data) for icon in icons)
        yield from (Inner(f"icon of the kind {code}") for code in unknown)
    elif kind == "PSD":
        yield from _photoshop(photoshop_resources(psd_resources(data)), thumbnail)
    elif kind == "TIFF":
        below, resources = tiff_inner(data)
        yield from (_picture("further picture", settings, one) for one in below)
        for one in resources:
            yield from _photoshop(photoshop_resources(one), thumbnail)
    elif kind == "AVIF":
        yield from _in_avif(data, settings)
    elif kind == "HEIF":
        if has_top_box(data, b"moov"):
            yield Inner("film", data)
        yield from _in_heif(data, settings)


def _picture(name: str, settings: DecodeSettings, data: bytes, at: int = 0, *, turned: int = 1) -> Inner:
    def opened() -> Image.Image:
        picture = open_picture(data[at:], name=f"the {name}", max_pixels=settings.max_pixels)
        if turned != 1 and _ORIENTATION not in picture.getexif():
            picture.getexif()[_ORIENTATION] = turned  # it is shown as the picture is
        return picture

    return Inner(name, None, opened)


def _in_jpeg(
    data: bytes, picture: Image.Image, settings: DecodeSettings, thumbnail: Callable[..., Inner]
) -> Iterator[Inner]:
    shown = {0, *_mpo_places(picture)}
    yield from (Inner("thumbnail", None, lambda one=one: one) for one in raw_jfif(data))  # type: ignore[misc]
    for content in (segment for name, segment in getattr(picture, "applist", ()) if name == "APP13"):
        resources = photoshop_resources(content.partition(b"\0")[2])
        raw = (raw_photoshop(one) for number, one in resources if number in _PHOTOSHOP_THUMBNAILS)
        yield from (Inner("thumbnail", None, lambda one=one: one) for one in raw if one is not None)  # type: ignore[misc]
    pixels = max((start for _, start, _ in jpeg_segments(data)), default=0)  # what comes before is metadata
    behind = "gain map" if b"hdrgm:" in data or b"urn:iso:std:iso:ts:21496:-1" in data else "further picture"
    for at in jpegs_in(data):
        if at not in shown:
            yield thumbnail(data, at) if at < pixels else _picture(behind, settings, data, at)


def _mpo_places(picture: Any) -> list[int]:
    """Return where the pictures of an MPO begin, which are its frames."""
    # Where Pillow comes to hide it elsewhere, they are looked at twice.
    return getattr(picture, "_MpoImageFile__mpoffsets", []) if picture.format == "MPO" else []


def _photoshop(resources: Any, thumbnail: Callable[..., Inner]) -> Iterator[Inner]:
    for number, content in resources:
        if number in _PHOTOSHOP_THUMBNAILS and isinstance(content, bytes):
            raw = raw_photoshop(content)
            if raw is not None:
                yield Inner("thumbnail", None, lambda raw=raw: raw)  # type: ignore[misc]
            yield from (thumbnail(content, at) for at in jpegs_in(content))


def _in_avif(data: bytes, settings: DecodeSettings) -> Iterator[Inner]:
    sequence = data[8:12] == b"avis" or (data[8:12] != b"avif" and b"avif" not in brands(data[:HEAD]))
    if has_top_box(data, b"meta"):
        if sequence:
            yield _picture("still", settings, data[:8] + b"avif" + data[12:])
        for one in as_primary(data[:8] + b"avif" + data[12:]):
            yield _picture("auxiliary picture", settings, one)
    if not sequence and has_top_box(data, b"moov"):
        yield _picture("sequence", settings, data[:8] + b"avis" + data[12:])


def _in_heif(data: bytes, settings: DecodeSettings) -> Iterator[Inner]:
    """Yield thumbnails and auxiliary pictures as what they are without their roles: further pictures."""
    changed = without_roles(data)
    if changed == data:
        return
    from pillow_heif import open_heif

    pictures = open_heif(io.BytesIO(changed))
    for index in range(len(pictures)):
        if index != pictures.primary_index:
            yield Inner("auxiliary picture", None, partial(_heif_item, changed, index, settings))


def _heif_item(data: bytes, index: int, settings: DecodeSettings) -> Image.Image:
    picture = open_picture(data, name="the auxiliary picture", max_pixels=settings.max_pixels)
    with reading("the auxiliary picture", "opened"):
        picture.seek(index)
        if picture.width * picture.height > settings.max_pixels:
            raise ImageError(f"the auxiliary picture has more than {settings.max_pixels} pixels.")
        return picture.copy()


def _exif_of(picture: Image.Image) -> Iterator[bytes]:
    exif = picture.info.get("exif")
    if isinstance(exif, bytes):
        yield exif.removeprefix(b"Exif\0\0")
    raw = picture.info.get("Raw profile type exif")
    if isinstance(raw, str):
        try:
            yield bytes.fromhex("".join(raw.split("\n")[3:])).removeprefix(b"Exif\0\0")
        except ValueError:
            return
