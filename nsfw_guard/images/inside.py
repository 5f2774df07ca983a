"""What else can be seen of a picture's file: thumbnails, previews, smaller icons, gain maps, films."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from PIL import Image

from ..errors import ImageError
from .boxes import films_behind, has_top_box, other_primaries, other_tracks, without_roles
from .budget import for_bytes, for_entries
from .icons import apple_icons, windows_icons
from .orientation import ORIENTATION
from .settings import DecodeSettings
from .sniff import HEAD, brands, frame_count, open_picture, reading, sniff
from .thumbnails import (
    exif_in,
    exif_raw,
    has_layers,
    is_raw_photoshop,
    jpeg_segments,
    jpegs_in,
    photoshop_resources,
    psd_sections,
    raw_jfif,
    raw_photoshop,
    tiff_inner,
)
from .xmp import coded_pictures, decoded, xmp_of_jpeg

# No ordinary file holds more.
MOST = 64
_PHOTOSHOP_THUMBNAILS = (1033, 1036)


@dataclass(frozen=True)
class Inner:
    """Something that lies in a picture's file and can be seen: a picture, or a film.

    Attributes:
        name: ``"thumbnail"``, ``"gain map"``, ``"icon 32x32"``, ``"still"``, ``"film"`` and so on.
    """

    name: str
    _film: tuple[bytes, int, int] | None = None
    _open: Callable[[], Image.Image] | None = None

    @property
    def film(self) -> bytes | None:
        """The film's file, cut out anew; ``None``: it is a picture."""
        if self._film is None:
            return None
        data, start, stop = self._film
        return data[start:stop]

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
            if frame_count(picture) == 1 and "_fp" in vars(picture):
                picture._fp = None  # type: ignore[attr-defined]  # its file may be as long as the one around it
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
    entries = for_entries(name)
    if data is not None:
        yield from (Inner("film", (data, *place)) for place in films_behind(data, name))
    turned = picture.getexif().get(ORIENTATION, 1)
    thumbnail = partial(_picture, "thumbnail", settings, turned=turned)
    # Of AVIF and HEIF, Pillow's objects carry EXIF that it may have rewritten.
    for exif in _exif_of(picture) if data is None or kind not in ("AVIF", "HEIF") else exif_in(data):
        yield from (thumbnail(partial(_changed, exif, *change)) for change in exif_raw(exif, entries))
        if data is None or kind not in ("JPEG", "AVIF", "HEIF"):
            yield from (thumbnail(partial(_cut, exif, at)) for at in jpegs_in(exif))
    if data is not None and kind in ("AVIF", "HEIF"):
        yield from (thumbnail(partial(_cut, data, at)) for at in jpegs_in(data))
    for xmp in _xmp_of(data, kind, picture):
        yield from (thumbnail(partial(decoded, xmp, *place)) for place in coded_pictures(xmp))
    if data is None or kind is None:
        content = picture.info.get("photoshop")
        for number, resource in content.items() if isinstance(content, dict) else ():
            if isinstance(resource, bytes):
                yield from _photoshop(resource, [(number, 0, len(resource))], thumbnail)
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
        _, resources, _ = psd_sections(data)
        yield from _photoshop(data, photoshop_resources(data, *resources), thumbnail)
        if has_layers(data):
            yield Inner("stack of layers")
    elif kind == "TIFF":
        below, places = tiff_inner(data, entries)
        yield from (_picture("further picture", settings, partial(_changed, data, *change)) for change in below)
        budget = for_bytes(len(data), name)
        for start, stop in places:
            budget.spend(max(0, stop - start))
            yield from _photoshop(data, photoshop_resources(data, start, stop), thumbnail)
    elif kind == "AVIF":
        yield from _in_avif(data, settings)
    elif kind == "HEIF":
        if has_top_box(data, b"moov"):
            yield _whole_film(data)
        yield from _in_heif(data, settings)


def _picture(name: str, settings: DecodeSettings, content: bytes | Callable[[], bytes], *, turned: int = 1) -> Inner:
    def opened() -> Image.Image:
        data = content if isinstance(content, bytes) else content()
        picture = open_picture(data, name=f"the {name}", max_pixels=settings.max_pixels)
        if turned != 1 and ORIENTATION not in picture.getexif():
            picture.getexif()[ORIENTATION] = turned  # it is shown as the picture is
        return picture

    return Inner(name, None, opened)


def _whole_film(data: bytes) -> Inner:
    return Inner("film", (data, 0, len(data)))


def _cut(data: bytes, start: int, stop: int | None = None) -> bytes:
    return data[start:stop]


def _changed(data: bytes, at: int, told: bytes) -> bytes:
    return data[:at] + told + data[at + len(told) :]


def _in_jpeg(
    data: bytes, picture: Image.Image, settings: DecodeSettings, thumbnail: Callable[..., Inner]
) -> Iterator[Inner]:
    shown = {0, *_mpo_places(picture)}
    yield from (Inner("thumbnail", None, lambda one=one: one) for one in raw_jfif(data))  # type: ignore[misc]
    for content in (segment for name, segment in getattr(picture, "applist", ()) if name == "APP13"):
        start = content.find(b"\0") + 1
        yield from _photoshop(content, photoshop_resources(content, start), thumbnail, jpegs=False)
    pixels = max((start for _, start, _ in jpeg_segments(data)), default=0)  # what comes before is metadata
    behind = "gain map" if b"hdrgm:" in data or b"urn:iso:std:iso:ts:21496:-1" in data else "further picture"
    for at in jpegs_in(data):
        if at not in shown:
            content = partial(_cut, data, at)
            yield thumbnail(content) if at < pixels else _picture(behind, settings, content)


def _mpo_places(picture: Any) -> list[int]:
    """Return where the pictures of an MPO begin, which are its frames."""
    # Where Pillow comes to hide it elsewhere, they are looked at twice.
    return getattr(picture, "_MpoImageFile__mpoffsets", []) if picture.format == "MPO" else []


def _photoshop(
    data: bytes, resources: Iterable[tuple[int, int, int]], thumbnail: Callable[..., Inner], *, jpegs: bool = True
) -> Iterator[Inner]:
    for number, start, stop in resources:
        if number not in _PHOTOSHOP_THUMBNAILS:
            continue
        if is_raw_photoshop(data[start : start + 28]):
            yield Inner("thumbnail", None, lambda start=start, stop=stop: raw_photoshop(data[start:stop]))  # type: ignore[misc]
        for at in jpegs_in(data, start, stop) if jpegs else ():
            yield thumbnail(partial(_cut, data, at, stop))


def _xmp_of(data: bytes | None, kind: str | None, picture: Image.Image) -> Iterator[bytes]:
    if kind == "JPEG" and data is not None:
        yield from xmp_of_jpeg(data)
        return
    if data is not None:
        yield data
    for key in ("xmp", "XML:com.adobe.xmp"):  # in PNG it may be compressed
        xmp = picture.info.get(key)
        xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
        if isinstance(xmp, bytes) and (data is None or xmp not in data):
            yield xmp
            return


def _in_avif(data: bytes, settings: DecodeSettings) -> Iterator[Inner]:
    sequence = data[8:12] == b"avis" or (data[8:12] != b"avif" and b"avif" not in brands(data[:HEAD]))
    still = partial(_changed, data, 8, b"avif")
    if has_top_box(data, b"meta"):
        if sequence:
            yield _picture("still", settings, still)
        for change in other_primaries(data):
            yield _picture("auxiliary picture", settings, partial(_as_primary, data, change))
    if not has_top_box(data, b"moov"):
        return
    if other_tracks(data):
        yield _whole_film(data)
    elif not sequence:
        beside = _picture("sequence", settings, partial(_changed, data, 8, b"avis"))
        yield beside if _opens(beside) else _whole_film(data)


def _as_primary(data: bytes, change: tuple[int, bytes]) -> bytes:
    return _changed(_changed(data, *change), 8, b"avif")


def _opens(inner: Inner) -> bool:
    try:
        return inner.open() is not None
    except ImageError:
        return False  # as a film it is decoded, or refused


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
