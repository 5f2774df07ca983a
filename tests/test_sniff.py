"""What a file is by its first bytes, and opening pictures as people see them."""

import io
import os
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL import features as pillow

from nsfw_guard import ImageError
from nsfw_guard.demo.shapes import draw
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.images.sniff import HEAD, frame_count, open_picture, read_file, sniff
from nsfw_guard.scan.decode import decode
from nsfw_guard.scan.kinds import looks_like_video


def shape(name, size=64, background="blue"):
    pixels = (draw(name, "red", background, height=size, width=size) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_sync_bytes(data, first, size, packets=6):
    """Write what a transport stream's packets begin with over the content."""
    data = bytearray(data)
    for at in range(first, first + packets * size, size):
        data[at] = 0x47
    return bytes(data)


def ftyp(major, *compatible):
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 4 + len(body)) + body


PICTURES = {
    "JPEG": "JPEG", "PNG": "PNG", "GIF": "GIF", "WEBP": "WEBP", "TIFF": "TIFF", "BMP": "BMP", "ICO": "ICO",
    "ICNS": "ICNS", "JPEG2000": "JPEG2000", "TGA": "TGA", "AVIF": "AVIF", "DDS": "DDS",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PICTURES))
def test_pictures_of_every_kind(kind):
    if kind == "AVIF" and not pillow.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(shape("circle"), kind)
    assert sniff(data[:HEAD]) == ("picture", PICTURES[kind])
    assert open_picture(data, name="x").convert("RGB").size[0] >= 64


BRANDS = [
    ((b"avif", b"mif1"), "picture", "AVIF"),
    ((b"avis", b"avif", b"msf1", b"iso8"), "picture", "AVIF"),
    ((b"mif1", b"avif", b"miaf"), "picture", "AVIF"),
    ((b"miaf", b"MA1B", b"avif"), "picture", "AVIF"),
    ((b"heic", b"mif1"), "picture", "HEIF"),
    ((b"mif1", b"heic"), "picture", "HEIF"),
    ((b"msf1", b"hevc"), "picture", "HEIF"),
    ((b"MiHE", b"mif1", b"heix"), "picture", "HEIF"),
    ((b"mif1",), "picture", "HEIF"),
    # A film's own brand in front of a picture's: no film says that it is a picture.
    ((b"isom", b"mp42", b"avif"), "picture", "AVIF"),
    ((b"jpx ", b"jp2 "), "picture", "JPEG2000"),
    ((b"isom", b"iso2", b"mp41"), "film", "mov"),
    ((b"qt  ",), "film", "mov"),
    ((b"3gp4",), "film", "mov"),
]  # fmt: skip


@pytest.mark.parametrize(("brands", "media", "kind"), BRANDS)
def test_brands_decide_between_pictures_and_films(brands, media, kind):
    assert sniff(ftyp(*brands) + bytes(900)) == (media, kind)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"\0\0\1\xba", "mpeg"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"\0\0\0\x08wide", "mov"),
        (b"\0\0\0\x08moov", "mov"),
        (with_sync_bytes(bytes(1200), 0, 188), "mpegts"),
        (with_sync_bytes(bytes(1200), 4, 192), "mpegts"),
        (with_sync_bytes(bytes(400), 0, 188, 3), "mpegts"),
    ],
)
def test_films(head, kind):
    assert sniff(head[:HEAD]) == ("film", kind)


@pytest.mark.parametrize("head", [b"", b"G", b"hello", b"G" + bytes(187) + b"G" + bytes(900), b"RIFF\0\0\0\0WAVE"])
def test_what_is_of_no_known_kind(head):
    assert sniff(head) == (None, None)


def test_a_jpeg_with_the_bytes_of_a_transport_stream_is_a_picture():
    data = encoded(shape("triangle", 200), "JPEG")
    hidden = data[:2] + b"\xff\xfe\x47\x47" + bytes(0x4747 - 2) + data[2:]  # a comment so long that 0x47 is at 4
    hidden = with_sync_bytes(hidden, 4, 192)
    assert hidden[4] == hidden[196] == 0x47
    assert sniff(hidden[:HEAD]) == ("picture", "JPEG")
    assert not looks_like_video(hidden[:HEAD], "x.mp4")
    assert decode(io.BytesIO(hidden), DecodeSettings(), name="x").kind == "image"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "BMP", "TGA"])
@pytest.mark.parametrize(("first", "size"), [(0, 188), (4, 192)])
def test_no_pixel_makes_a_picture_a_transport_stream(kind, first, size):
    data = encoded(Image.new("RGB", (64, 64)), kind, **({"compress_level": 0} if kind == "PNG" else {}))
    changed = bytearray(data.ljust(1200, b"\0"))
    for at in range(first, 1200, size):
        if at >= 54 or (kind, at) == ("BMP", 4):  # pixels; and the size of a BMP, which nobody reads
            changed[at] = 0x47
    if kind == "GIF":
        assert changed[0] == 0x47
    assert sniff(bytes(changed[:HEAD])).media == "picture"


def test_gifs_whose_189th_byte_is_the_first_are_pictures():
    """About one in 256 is such a one."""
    data = encoded(shape("triangle").quantize(64), "GIF")
    assert data[0] == 0x47
    data = data[:188] + b"\x47" + data[189:]
    assert decode(io.BytesIO(data), DecodeSettings(), name="x").kind == "image"


def test_transport_streams_need_more_than_two_packets_where_there_is_room():
    two = with_sync_bytes(bytes(1200), 0, 188, 2)
    assert sniff(two[:HEAD]).media is None
    assert sniff(two[:300]).media == "film"


def test_avif_under_another_major_brand_is_opened():
    if not pillow.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(shape("circle"), "AVIF")
    for brand in (b"miaf", b"isom", b"MA1B"):
        assert open_picture(data[:8] + brand + data[12:], name="x").format == "AVIF"


def test_heic_is_opened_or_the_error_says_what_to_install(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(shape("circle")).save(file)
    assert open_picture(file.getvalue(), name="x").size == (64, 64)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"a: HEIC and HEIF need pillow-heif: pip install 'nsfw-guard\[scan\]'"):
        open_picture(file.getvalue(), name="a")


def test_what_is_no_picture_too_large_or_a_program_is_refused():
    with pytest.raises(ImageError, match="x cannot be opened as a picture: it is none"):
        open_picture(b"hello", name="x")
    with pytest.raises(ImageError, match="64x64 is more than 4095 pixels"):
        open_picture(encoded(shape("circle"), "PNG"), name="x", max_pixels=4095)
    with pytest.raises(ImageError, match="it is none"):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", name="x")


def icon(picture, *, alpha, mask, told=32, cursor=False):
    """An ICO whose 32 bits a pixel have their alpha, and a mask below that says what is transparent."""
    width, height = picture.size
    pixels = np.dstack([np.asarray(picture)[..., ::-1], np.full((height, width), alpha, np.uint8)])[::-1]
    stride = (width + 31) // 32 * 4
    rows = np.zeros((height, stride), np.uint8)
    if mask is None:
        below = b""
    else:
        packed = np.packbits(mask[::-1], axis=1)
        rows[:, : packed.shape[1]] = packed
        below = rows.tobytes()
    body = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0) + pixels.tobytes() + below
    entry = struct.pack("<BBBBHHII", width, height, 0, 0, 1, told, len(body), 22)
    return struct.pack("<HHH", 0, 2 if cursor else 1, 1) + entry + body


@pytest.mark.parametrize("cursor", [False, True])
@pytest.mark.parametrize("told", [0, 24, 32])
@pytest.mark.parametrize("has_mask", [True, False])
def test_an_icon_without_alpha_is_opaque_but_for_its_mask(demo, cursor, told, has_mask):
    mask = np.zeros((64, 64), bool)
    mask[:4] = has_mask
    data = icon(shape("triangle"), alpha=0, mask=mask if has_mask else None, told=told, cursor=cursor)
    picture = open_picture(data, name="x")
    assert picture.mode == "RGBA"
    alpha = np.asarray(picture)[..., 3]
    assert (alpha[:4].max(), alpha[4:].min()) == ((0, 255) if has_mask else (255, 255))
    assert demo.check(picture)[0].flagged


@pytest.mark.parametrize("told", [0, 24, 32])
def test_an_icon_with_alpha_goes_by_its_alpha(told):
    data = icon(shape("triangle"), alpha=9, mask=np.zeros((64, 64), bool), told=told)
    assert set(np.asarray(open_picture(data, name="x"))[..., 3].ravel()) == {9}


def psd(composite, layers=(), resources=b"", mode=3):
    """A Photoshop file without compression; each layer is as large as the whole."""
    planes = [np.asarray(band) for band in composite.split()]
    width, height = composite.size
    records, pixels = b"", b""
    for layer in layers:
        bands = layer.split()
        records += struct.pack(">4iH", 0, 0, height, width, len(bands))
        for number in range(len(bands)):
            records += struct.pack(">hI", number, 2 + width * height)
        records += b"8BIMnorm" + bytes([255, 0, 0, 0]) + struct.pack(">I", 12) + bytes(8) + b"\x03one"
        pixels += b"".join(b"\0\0" + band.tobytes() for band in bands)
    info = struct.pack(">h", len(layers)) + records + pixels if layers else b""
    info += b"\0" * (len(info) % 2)
    section = struct.pack(">I", len(info)) + info + struct.pack(">I", 0) if layers else b""
    return (
        b"8BPS" + struct.pack(">H6xHIIHH", 1, len(planes), height, width, 8, mode)
        + struct.pack(">I", 0) + struct.pack(">I", len(resources)) + resources
        + struct.pack(">I", len(section)) + section
        + b"\0\0" + b"".join(plane.tobytes() for plane in planes)
    )  # fmt: skip


def resource(number, content):
    return b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + b"\0" * (len(content) % 2)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_the_composite_of_a_photoshop_file_is_one_frame(demo, layers):
    data = psd(shape("triangle"), [shape("circle")] * layers)
    assert sniff(data[:HEAD]) == ("picture", "PSD")
    picture = open_picture(data, name="x")
    assert getattr(picture, "n_frames", None) == layers  # what Pillow says
    assert frame_count(picture) == 1
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(shape("triangle")))
    assert demo.check(picture.convert("RGB"))[0].flagged


def test_a_photoshop_file_without_a_composite_is_refused():
    said = resource(1057, struct.pack(">IB", 1, 0) + bytes(8))
    with pytest.raises(ImageError, match="x holds layers only; expected a composite: save it for maximum compat"):
        open_picture(psd(Image.new("RGB", (64, 64), "white"), [shape("triangle")], said), name="x")
    said = resource(1057, struct.pack(">IB", 1, 1) + bytes(8))
    assert open_picture(psd(shape("circle"), [shape("triangle")], said), name="x").size == (64, 64)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_are_counted(kind):
    pages = [shape("circle"), shape("triangle"), shape("heart")]
    data = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
    assert frame_count(open_picture(data, name="x")) == 3
    assert frame_count(open_picture(encoded(pages[0], kind), name="x")) == 1
    assert frame_count(ImageOps.mirror(pages[0])) == 1


def test_only_regular_files_within_the_limit_are_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    assert read_file(path, DecodeSettings(max_bytes=5)) == read_file(str(path), DecodeSettings()) == b"12345"
    with pytest.raises(ImageError, match=r"a\.png has more than 4 bytes\. If you trust it, raise the limit"):
        read_file(path, DecodeSettings(max_bytes=4))
    with pytest.raises(ImageError, match=r"b\.png cannot be opened: No such file"):
        read_file(tmp_path / "b.png", DecodeSettings())
    with pytest.raises(ImageError, match="expected a regular file"):
        read_file(tmp_path, DecodeSettings())
    with pytest.raises(ImageError, match="a{197}… cannot be opened: "):
        read_file("a" * 9_000_000, DecodeSettings())
    with pytest.raises(ImageError, match="cannot be opened: "):
        read_file("a\0b", DecodeSettings())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_a_pipe_or_device_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/zero"):
        with pytest.raises(ImageError, match="it is a folder, pipe or device; expected a regular file"):
            read_file(path, DecodeSettings())
