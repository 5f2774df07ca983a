"""What was tried to get a picture past the guard: kind, what it tries, and how it is made.

A case is made once of a triangle, which must not pass, and once of a circle, which must: so nothing is refused that is
only unusual.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import crafted
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from profiles import ADOBE, chrm, gama, gamma_curve, gray_profile, iccp, matrix_profile, table_curve, with_chunks

from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import to_picture


class Case(NamedTuple):
    """One attempt.

    Attributes:
        kind: Of what it is an instance.
        tries: In a few words.
        make: Makes what a caller passes, of the name of a shape.
        as_file: Whether that is an encoded file, which can be scanned, too.
    """

    kind: str
    tries: str
    make: Callable[[str], Any]
    as_file: bool = False


def shape(name: str, color: str = "red", ground: str = "white") -> Image.Image:
    return to_picture(draw(name, color, ground))


def silhouette(name: str) -> Image.Image:
    """White where the shape is."""
    return shape(name).getchannel("G").point(lambda level: 255 - level)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def only_alpha(name: str, level: int) -> Image.Image:
    """A shape that only alpha has: its colour is the same everywhere."""
    picture = Image.new("RGBA", (128, 128), (level,) * 3)
    picture.putalpha(silhouette(name))
    return picture


def under_alpha(name: str, level: int) -> Image.Image:
    """A shape in the colours, under an alpha that hides it."""
    picture = shape(name).convert("RGBA")
    picture.putalpha(level)
    return picture


def with_color_key(name: str) -> bytes:
    """A palette whose transparent entry is the shape's own colour, on white."""
    picture = Image.new("P", (128, 128), 0)
    picture.putpalette([255, 255, 255, 255, 255, 255])
    picture.paste(1, mask=silhouette(name).point(lambda v: 255 * (v > 127)))
    return encode(picture, "PNG", transparency=1)


def gif_with_transparency(name: str) -> bytes:
    return encode(Image.open(io.BytesIO(with_color_key(name))), "GIF", transparency=1)


def animated(first: Image.Image, last: Image.Image, kind: str) -> bytes:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    return encode(first, kind, save_all=True, append_images=[last], duration=100, loop=0, **options)


ALPHA = [
    *(
        Case(
            "alpha",
            f"{kind} of one gray, {level}: the shape is in alpha only",
            lambda name, kind=kind, level=level: encode(only_alpha(name, level), kind),
            True,
        )
        for kind in ("PNG", "WEBP", "TIFF", "AVIF")
        for level in (0, 128, 255)
    ),
    *(
        Case(
            "alpha",
            f"PNG: the colours lie under an alpha of {level}",
            lambda name, level=level: encode(under_alpha(name, level), "PNG"),
            True,
        )
        for level in (0, 1, 8, 16)
    ),
    Case(
        "alpha",
        "WebP, exact: the colours lie under an alpha of 0",
        lambda name: encode(under_alpha(name, 0), "WEBP", lossless=True, exact=True),
        True,
    ),
    Case("alpha", "TIFF: the colours lie under an alpha of 0", lambda name: encode(under_alpha(name, 0), "TIFF"), True),
    Case(
        "alpha",
        "ICO: the colours lie under an alpha of 1",
        lambda name: encode(under_alpha(name, 1), "ICO", sizes=[(128, 128)]),
        True,
    ),
    Case(
        "alpha",
        "ICO: the shape is in alpha only",
        lambda name: encode(only_alpha(name, 255), "ICO", sizes=[(128, 128)]),
        True,
    ),
    Case("alpha", "PNG with a palette: the shape is the transparent entry", with_color_key, True),
    Case("alpha", "GIF: the shape is the transparent entry", gif_with_transparency, True),
    *(
        Case(
            "alpha",
            f"animated {kind}: the second frame has the shape in alpha only",
            lambda name, kind=kind: animated(only_alpha("circle", 255), only_alpha(name, 255), kind),
            True,
        )
        for kind in ("PNG", "WEBP")
    ),
    Case("alpha", "PIL RGBA", lambda name: only_alpha(name, 255)),
    Case("alpha", "PIL LA", lambda name: only_alpha(name, 255).convert("LA")),
    Case("alpha", "PIL LA under an alpha of 8", lambda name: under_alpha(name, 8).convert("LA")),
    Case("alpha", "PIL P with tRNS", lambda name: Image.open(io.BytesIO(with_color_key(name)))),
    Case("alpha", "PIL PA", lambda name: Image.open(io.BytesIO(with_color_key(name))).convert("PA")),
    Case("alpha", "PIL RGBa", lambda name: only_alpha(name, 255).convert("RGBa")),
    Case("alpha", "PIL La", lambda name: only_alpha(name, 255).convert("LA").convert("La")),
    Case(
        "alpha",
        "PIL RGB with a transparent colour",
        lambda name: _with_key(shape(name, "white", "red"), (255, 255, 255)),
    ),
    *(
        Case(
            "alpha",
            f"tensor {dtype}, [B, 4, H, W]",
            lambda name, dtype=dtype: _tensor(only_alpha(name, 255), dtype)[None],
        )
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
    ),
    Case("alpha", "tensor, colours under an alpha of 0", lambda name: _tensor(under_alpha(name, 0), torch.float32)),
    Case("alpha", "array, float", lambda name: np.asarray(only_alpha(name, 255)).astype(np.float32) / 255),
    Case("alpha", "array, uint8", lambda name: np.asarray(only_alpha(name, 255))[None]),
    Case("alpha", "array, uint8, under an alpha of 2", lambda name: np.asarray(under_alpha(name, 2))),
    Case("alpha", "masked array: the mask has the shape", lambda name: _masked(name)),
]


def _with_key(picture: Image.Image, key: tuple[int, int, int]) -> Image.Image:
    picture = Image.composite(
        Image.new("RGB", picture.size, key),
        Image.new("RGB", picture.size, (254, 254, 254)),
        picture.convert("L").point(lambda v: 255 * (v > 127)),
    )
    picture.info["transparency"] = key
    return picture


def _tensor(picture: Image.Image, dtype: torch.dtype) -> torch.Tensor:
    levels = torch.from_numpy(np.array(picture)).movedim(-1, 0)
    return levels if dtype == torch.uint8 else (levels.float() / 255).to(dtype)


def _masked(name: str) -> Any:
    mask = np.asarray(silhouette(name)) > 127
    return np.ma.MaskedArray(np.zeros((128, 128, 3), np.float32), mask=np.repeat(mask[..., None], 3, axis=2))


def _faint(name: str, exponent: float) -> Image.Image:
    """Levels that a curve of an exponent shows as the shape: as stored it is hardly visible."""
    light = np.asarray(shape(name)).astype(np.float64) / 255
    return Image.fromarray(np.round(255 * np.clip(light, 0.003, 1) ** (2.2 / exponent)).astype(np.uint8))


COLOR = [
    *(
        Case(
            "colour",
            f"{kind}: a profile of gamma 90 shows what is nearly white",
            lambda name, kind=kind: encode(
                _faint(name, 90),
                kind,
                icc_profile=matrix_profile(curve=gamma_curve(90)),
                **({"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}),
            ),
            True,
        )
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    ),
    Case(
        "colour",
        "a profile of wide primaries and gamma 60",
        lambda name: encode(_faint(name, 60), "PNG", icc_profile=matrix_profile(ADOBE, gamma_curve(60))),
        True,
    ),
    Case(
        "colour",
        "gray JPEG: a gray profile of gamma 90",
        lambda name: encode(
            _faint(name, 90).convert("L"), "JPEG", quality=100, icc_profile=gray_profile(gamma_curve(90))
        ),
        True,
    ),
    Case("colour", "PNG: gAMA 0.01", lambda name: with_chunks(encode(_faint(name, 100), "PNG"), gama(0.01)), True),
    Case(
        "colour",
        "PNG: gAMA and cHRM",
        lambda name: with_chunks(encode(_faint(name, 60), "PNG"), gama(1 / 60), chrm(ADOBE)),
        True,
    ),
    Case(
        "colour",
        "PNG: iCCP, with colours that alpha hides too",
        lambda name: with_chunks(encode(_hidden_and_faint(name), "PNG"), iccp(matrix_profile(curve=gamma_curve(90)))),
        True,
    ),
    Case("colour", "PIL object with a profile", lambda name: _with_profile(_faint(name, 90))),
]


def _hidden_and_faint(name: str) -> Image.Image:
    picture = _faint(name, 90).convert("RGBA")
    picture.putalpha(4)
    return picture


def _with_profile(picture: Image.Image) -> Image.Image:
    picture.info["icc_profile"] = matrix_profile(curve=gamma_curve(90))
    return picture


def _gray(name: str, top: int, dtype: Any) -> np.ndarray[Any, Any]:
    levels = np.asarray(shape(name).convert("L")).astype(np.float64)
    return (levels / 255 * top).round().astype(dtype)


NUMBERS = [
    Case("numbers", "mode I with values up to 255", lambda name: Image.fromarray(_gray(name, 255, np.int32))),
    Case("numbers", "mode I with values up to 65535", lambda name: Image.fromarray(_gray(name, 65535, np.int32))),
    Case("numbers", "mode I;16 with values up to 255", lambda name: Image.fromarray(_gray(name, 255, np.uint16))),
    Case(
        "numbers",
        "mode I;16 with values up to 4095, as cameras and scanners have",
        lambda name: Image.fromarray(_gray(name, 4095, np.uint16)),
    ),
    Case(
        "numbers",
        "mode I;16 with values from 60000 to 61000",
        lambda name: Image.fromarray(_gray(name, 1000, np.uint16) + np.uint16(60000)),
    ),
    Case(
        "numbers",
        "PNG, 16 bits, values up to 255",
        lambda name: encode(Image.fromarray(_gray(name, 255, np.uint16)), "PNG"),
        True,
    ),
    Case(
        "numbers",
        "TIFF, 16 bits, values up to 255",
        lambda name: encode(Image.fromarray(_gray(name, 255, np.uint16)), "TIFF"),
        True,
    ),
    Case(
        "numbers",
        "TIFF, 32 bits, values up to 255",
        lambda name: encode(Image.fromarray(_gray(name, 255, np.int32)), "TIFF"),
        True,
    ),
    Case(
        "numbers",
        "TIFF, 32 bits, values up to 2**30",
        lambda name: encode(Image.fromarray(_gray(name, 2**30, np.int32)), "TIFF"),
        True,
    ),
    Case(
        "numbers",
        "TIFF, 32 bits, values below 0",
        lambda name: encode(Image.fromarray(_gray(name, 200, np.int32) - 300), "TIFF"),
        True,
    ),
    Case("numbers", "big-endian floats", lambda name: (np.asarray(shape(name)) / 255).astype(">f4")),
    Case("numbers", "big-endian TIFF, 16 bits", lambda name: _big_endian_tiff(name), True),
]


def _big_endian_tiff(name: str) -> bytes:
    file = io.BytesIO()
    picture = Image.frombytes("I;16B", (128, 128), _gray(name, 255, ">u2").tobytes())
    picture.save(file, "TIFF", tiffinfo=ImageFileDirectory_v2(b"MM\x00\x2a\x00\x00\x00\x00"))
    return file.getvalue()


def _opened(name: str, kind: str, *, load: bool = True, position: int = 0) -> Image.Image:
    """A file of two circles, on the frame of which somebody draws the shape."""
    data = animated(shape("circle"), shape("circle", "blue"), kind)
    picture = Image.open(io.BytesIO(data))
    picture.seek(position)
    if load:
        picture.load()
    picture = picture if picture.mode in ("RGB", "RGBA") else picture
    picture.paste(shape(name).convert(picture.mode))
    return picture


def _reused(name: str) -> Image.Image:
    file = io.BytesIO(animated(shape(name), shape("circle"), "GIF"))
    picture = Image.open(file)
    picture.load()
    file.seek(0)
    file.truncate()
    file.write(animated(shape("circle"), shape("circle", "blue"), "GIF"))
    return picture


HELD = [
    *(
        Case(
            "held",
            f"{kind} of two frames, drawn on after load, at frame {position}",
            lambda name, kind=kind, position=position: _opened(name, kind, position=position),
        )
        for kind in ("TIFF", "WEBP", "PNG", "AVIF", "MPO")
        for position in (0, 1)
    ),
    Case("held", "GIF, drawn on after load", lambda name: _opened(name, "GIF")),
    Case("held", "GIF, loaded, its file object written anew", _reused),
    *(
        Case(
            "held",
            f"{kind}, loaded, whose second frame has the shape",
            lambda name, kind=kind: _second_frame(name, kind),
        )
        for kind in ("GIF", "TIFF", "WEBP", "PNG", "AVIF", "MPO")
    ),
]


def _second_frame(name: str, kind: str) -> Image.Image:
    picture = Image.open(io.BytesIO(animated(shape("circle"), shape(name), kind)))
    picture.load()
    return picture


def _with_exif_thumbnail(name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 1
    thumbnail = encode(shape(name), "JPEG", quality=95)
    ifd = exif.get_ifd(1)
    ifd[0x0103], ifd[0x0201], ifd[0x0202] = 6, 0, len(thumbnail)
    data = exif.tobytes()
    at = len(data) - 6
    exif.get_ifd(1)[0x0201] = at
    return encode(shape("circle"), "JPEG", exif=exif.tobytes() + thumbnail)


INSIDE = [
    Case("inside", "JPEG: a thumbnail of something else in its EXIF", _with_exif_thumbnail, True),
    Case(
        "inside",
        "JPEG: another JPEG behind its end",
        lambda name: encode(shape("circle"), "JPEG") + encode(shape(name), "JPEG"),
        True,
    ),
    Case(
        "inside",
        "MPO: the second picture, such as a gain map",
        lambda name: animated(shape("circle"), shape(name), "MPO"),
        True,
    ),
    Case(
        "inside",
        "ICO: the smaller picture",
        lambda name: encode(
            shape("circle").resize((256, 256)), "ICO", sizes=[(256, 256), (128, 128)], append_images=[shape(name)]
        ),
        True,
    ),
    Case("inside", "TIFF: the second page", lambda name: animated(shape("circle"), shape(name), "TIFF"), True),
    Case("inside", "AVIF: the second frame", lambda name: animated(shape("circle"), shape(name), "AVIF"), True),
    Case(
        "inside",
        "JPEG that looks like a transport stream",
        lambda name: _like_a_film(encode(shape(name), "JPEG")),
        True,
    ),
]


def _like_a_film(jpeg: bytes) -> bytes:
    """Put a comment into a JPEG, with the bytes by which transport streams are known."""
    comment = bytearray(b"\xff\xfe" + (1000).to_bytes(2, "big") + bytes(998))
    data = bytearray(jpeg[:2] + bytes(comment) + jpeg[2:])
    for at in range(196, 1000, 192):
        data[at] = 0x47
    return bytes(data)


def nested_directories(*pictures: Image.Image) -> bytes:
    """A TIFF, each of whose pictures is below the one before."""
    data, below = b"II*\0" + bytes(4), None
    for picture in reversed(pictures):
        bits, pixels = len(data), len(data) + 6
        data += struct.pack("<3H", 8, 8, 8) + picture.tobytes()
        tags = {
            256: (4, 1, picture.width), 257: (4, 1, picture.height), 258: (3, 3, bits), 259: (4, 1, 1), 262: (4, 1, 2),
            273: (4, 1, pixels), 277: (4, 1, 3), 278: (4, 1, picture.height), 279: (4, 1, len(data) - pixels),
        }  # fmt: skip
        if below is not None:
            tags[330] = (4, 1, below)
        below = len(data)
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, *told) for tag, told in tags.items())
        data += bytes(4)
    return data[:4] + struct.pack("<I", below) + data[8:]


def xmp_with(picture: Image.Image, *, attribute: bool = False) -> bytes:
    """XMP with a thumbnail, as Adobe's programs write it."""
    coded = base64.encodebytes(encode(picture, "JPEG", quality=95))
    named = b"x:xmpmeta xmlns:xmpGImg='http://ns.adobe.com/xap/1.0/g/img/'"
    if attribute:
        return b"<" + named + b' xmpGImg:image="' + coded.replace(b"\n", b"&#xA;") + b'"/>'
    return b"<" + named + b"><xmpGImg:image>" + coded + b"</xmpGImg:image></x:xmpmeta>"


def _long_xmp(name: str) -> bytes:
    """A JPEG whose XMP is spread over two segments, the second half first."""
    xmp = xmp_with(shape(name))
    half = len(xmp) // 2
    data = encode(shape("circle"), "JPEG")
    for at, part in ((0, xmp[:half]), (half, xmp[half:])):  # each is put in front of the ones before
        head = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", len(xmp), at)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(head + part)) + head + part + data[2:]
    return data


def _png_with_xmp(name: str) -> bytes:
    told = PngInfo()
    told.add_itxt("XML:com.adobe.xmp", xmp_with(shape(name), attribute=True).decode(), zip=True)
    return encode(shape("circle"), "PNG", pnginfo=told)


PARTS = [
    Case(
        "part",
        "TIFF: a directory below one that is below the first",
        lambda name: nested_directories(shape("circle"), shape("circle"), shape(name)),
        True,
    ),
    Case(
        "part",
        "JPEG: a thumbnail in XMP",
        lambda name: encode(shape("circle"), "JPEG", xmp=xmp_with(shape(name))),
        True,
    ),
    Case("part", "JPEG: a thumbnail in XMP of several segments", _long_xmp, True),
    Case("part", "PNG: a thumbnail in compressed XMP", _png_with_xmp, True),
    Case(
        "part",
        "WebP: a thumbnail in XMP's attribute",
        lambda name: encode(shape("circle"), "WEBP", xmp=xmp_with(shape(name), attribute=True)),
        True,
    ),
]


def _xmp(value: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{value}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def _exif(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def _exif_of_type_long(value: int) -> bytes:
    """An orientation in four bytes, which some viewers ignore."""
    entry = struct.pack("<HHII", 0x0112, 4, 1, value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


ORIENTATION = [
    *(
        Case(
            "orientation",
            f"{kind}: EXIF says {value}, and not every viewer turns it",
            lambda name, kind=kind, value=value: encode(
                shape(name), kind, exif=_exif(value), **({"lossless": True} if kind == "WEBP" else {})
            ),
            True,
        )
        for kind in ("WEBP", "PNG")
        for value in (3, 6)
    ),
    *(
        Case(
            "orientation",
            f"{kind}: XMP says 3",
            lambda name, kind=kind: encode(shape(name), kind, xmp=_xmp(3)),
            True,
        )
        for kind in ("JPEG", "WEBP")
    ),
    Case(
        "orientation",
        "JPEG: an orientation of another type",
        lambda name: encode(shape(name), "JPEG", exif=_exif_of_type_long(3)),
        True,
    ),
]
MORE = [
    Case("alpha", "masked array of four channels", lambda name: _masked_rgba(name)),
    Case("alpha", "PIL RGBX, whose fourth byte has the shape", lambda name: _rgbx(name)),
    Case("colour", "a curve that brings out 15 levels", lambda name: _emerging(name), True),
]


def _masked_rgba(name: str) -> Any:
    mask = np.zeros((128, 128, 4), bool)
    mask[0, 0] = True
    return np.ma.MaskedArray(np.asarray(only_alpha(name, 255)), mask=mask)


def _rgbx(name: str) -> Image.Image:
    return Image.frombytes("RGBX", (128, 128), only_alpha(name, 255).tobytes())


def _emerging(name: str) -> bytes:
    """Two neighbouring levels, which a curve shows 15 levels apart."""
    curve = np.linspace(0, 1, 256) ** 2.2
    curve[:230] *= (215 / 229) ** 2.2
    levels = 230 - (np.asarray(silhouette(name)) > 127).astype(np.uint8)
    picture = Image.fromarray(levels).convert("RGB")
    return encode(picture, "PNG", icc_profile=matrix_profile(curve=table_curve(curve)))


FORMATS = [
    Case("formats", "GIF: what the frames clear is transparent", crafted.gif_cleared, True),
    Case("formats", "GIF: what no frame paints is transparent", crafted.gif_unpainted, True),
    Case("formats", "GIF: frames without a disposal stay, whatever an earlier one has", crafted.gif_not_cleared, True),
    Case("formats", "GIF: what was there before the first frame is transparent", crafted.gif_first_restored, True),
    Case("formats", "APNG without alpha: what the frames clear is transparent", crafted.apng_cleared, True),
    Case("formats", "APNG: the still picture is not below the frames", crafted.apng_behind_a_still, True),
    *(
        Case(
            "formats",
            f"PNG, gray of {depth} bits with a transparent level",
            lambda name, depth=depth: crafted.gray_key(name, depth),
            True,
        )
        for depth in (2, 4, 8)
    ),
    Case("formats", "PNG, gray of 16 bits with a transparent level", lambda name: crafted.wide_key(name, 0), True),
    Case("formats", "PNG, 16 bits per colour with a transparent colour", lambda name: crafted.wide_key(name, 2), True),
    Case(
        "formats",
        "ICO of a PNG, 16 bits per colour with a transparent colour",
        lambda name: crafted.icon_of(crafted.wide_key(name, 2)),
        True,
    ),
    Case("formats", "PNG, a transparent colour of more than 8 bits", crafted.narrow_key, True),
    Case("formats", "PIL I;16 with a transparent level", crafted.opened_wide_key),
    Case(
        "formats",
        "PIL object of a PNG, 16 bits per colour with a transparent colour",
        lambda name: Image.open(io.BytesIO(crafted.wide_key(name, 2))),
    ),
    *(
        Case(
            "formats",
            f"BMP of 32 bits with alpha, header of {header}",
            lambda name, header=header: crafted.bmp_alpha(name, header),
            True,
        )
        for header in (40, 108, 124)
    ),
    Case("formats", "BMP of 32 bits with alpha, from top to bottom", lambda n: crafted.bmp_alpha(n, down=True), True),
    Case("formats", "BMP of 16 bits with a bit of alpha", crafted.bmp_alpha_bit, True),
    *(
        Case(
            "formats",
            f"BMP: run lengths of {bits} bits leave the shape out",
            lambda name, bits=bits: crafted.bmp_runs(name, bits),
            True,
        )
        for bits in (8, 4)
    ),
]

CASES = [*ALPHA, *COLOR, *NUMBERS, *HELD, *INSIDE, *ORIENTATION, *MORE, *FORMATS, *PARTS]
