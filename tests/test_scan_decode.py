"""Decoding for a scan: the same pixels as the core's, scaled JPEGs, frames, limits, broken files."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from test_pictures import encode, mode_picture

from nsfw_guard import ImageError, SettingError
from nsfw_guard.images import read_images
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.images.sniff import HEAD
from nsfw_guard.scan.decode import decode

RNG = np.random.default_rng(0)


def noise(width=64, height=48):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width, height):
    return Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)


def decoded(data, name="x", **settings):
    return decode(io.BytesIO(data), DecodeSettings(**settings), name=name)


def core(data):
    """What the guard itself makes of a file: its frames in [0, 1]."""
    return list(read_images(data).frames(0))


def unit(frame):
    """A decoded frame as the guard sees it, when it is handed over as a tensor."""
    return next(read_images(frame).frames(0))


FRAMES = [Image.new("RGB", (16, 12), color) for color in ("red", "green", "blue", "white", "black", "red", "lime")]


def animated(kind, frames=FRAMES, **options):
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless, **options)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


EXACT = {
    **{f"png {mode}": encode(mode_picture(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"tiff {mode}": encode(mode_picture(mode), "TIFF") for mode in ("CMYK", "YCbCr", "I;16", "1")},
    **{f"jpeg {mode}": encode(mode_picture(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    **{f"jpeg turned {n}": encode(noise(), "JPEG", exif=exif(n)) for n in range(1, 9)},
    **{kind.lower(): encode(noise(), kind) for kind in ("BMP", "GIF", "WEBP", "AVIF", "JPEG2000", "TGA", "PPM", "ICO")},
    "png with transparent colour": encode(mode_picture("P"), "PNG", transparency=0),
    "large jpeg": encode(smooth(900, 700), "JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(EXACT))
def test_exact_pixels_are_the_cores(case):
    ours = decoded(EXACT[case], size=8, exact=True)
    (expected,) = core(EXACT[case])
    (index, frame), *others = ours.frames()  # other looks, and the smaller pictures of an icon
    assert bool(others) == (case in ("ico", "png with transparent colour"))
    assert index == 0
    assert torch.equal(unit(frame), expected)
    assert (ours.kind, ours.height, ours.width) == ("image", *expected.shape[1:])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
@pytest.mark.parametrize("every", [1, 2, 3, 6, 7, 100])
def test_every_nth_frame_and_the_last_are_the_cores(kind, every):
    data = animated(kind)
    expected = core(data)
    assert len(expected) == 7
    ours = decoded(data, every=every)
    frames = list(ours.frames())
    if kind == "AVIF":  # the still beside the sequence
        assert frames.pop()[0] == 7
    assert [index for index, _ in frames] == sorted({*range(0, 7, every), 6})
    assert all(torch.equal(unit(frame), expected[index]) for index, frame in frames)
    assert (ours.kind, ours.width, ours.height) == ("animation", 16, 12)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(1000, 800, 4), (800, 1000, 4), (799, 1000, 2), (400, 399, 1), (400, 400, 2), (1600, 1601, 8), (3300, 3201, 8),
     (4000, 410, 2), (90, 90, 1)],
)  # fmt: skip
def test_jpegs_are_decoded_at_twice_the_size_of_the_model_or_more(width, height, scale):
    data = encode(smooth(width, height), "JPEG")
    ours = decoded(data, size=100)
    ((_, frame),) = ours.frames()
    assert frame.shape == (3, -(-height // scale), -(-width // scale))
    assert min(frame.shape[1:]) >= min(200, width, height)
    assert (ours.width, ours.height) == (width, height)
    assert decoded(data, size=100, exact=True).frames().__next__()[1].shape == (3, height, width)
    assert decoded(data, size=None).frames().__next__()[1].shape == (3, height, width)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_scaled_jpegs_are_upright_too(orientation, kind):
    options = {"save_all": True, "append_images": [smooth(640, 400)]} if kind == "MPO" else {}
    data = encode(smooth(640, 400), kind, exif=exif(orientation), quality=95, **options)
    full = decoded(data, exact=True)
    small = decoded(data, size=50)
    assert (small.kind, small.width, small.height) == (full.kind, full.width, full.height)
    frames = dict(small.frames())
    whole = dict(full.frames())
    assert frames.keys() == whole.keys()
    resized = torch.nn.functional.interpolate(whole[0][None].float(), frames[0].shape[1:], mode="area")[0]
    assert frames[0].shape[1] in (100, 160)
    assert (frames[0] - resized).abs().mean() < 2
    if kind == "MPO":
        assert torch.equal(frames[1], whole[1])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_always_decoded_in_full(kind):
    ((_, frame),) = decoded(encode(smooth(400, 300), kind), size=10).frames()
    assert frame.shape == (3, 300, 400)


def test_sixteen_bit_gray_keeps_its_bits():
    ramp = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    frame, *other_readings = (frame for _, frame in decoded(encode(Image.fromarray(ramp), "PNG")).frames())
    assert len(other_readings) == 1  # clipped at 255
    assert frame.shape == (1, 4, 6)
    assert torch.allclose(frame[0], torch.from_numpy(ramp.astype(np.float32)) / 65535)


def test_a_sequence_behind_a_still_is_seen():
    data = animated("AVIF")
    data = data.replace(b"ftypavis", b"ftypavif", 1)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 1
    ours = decoded(data, every=3)
    frames = dict(ours.frames())
    assert ours.kind == "animation"
    assert [tuple(frame.float().mean((1, 2)) > 100) for frame in frames.values()][-1] == (False, True, False)  # lime
    assert list(frames) == sorted(frames)


heif = pytest.importorskip("pillow_heif")


def heic(*frames, **options):
    file = io.BytesIO()
    pictures = heif.HeifFile()
    for frame in frames:
        pictures.add_from_pillow(frame)
    pictures.save(file, quality=-1, **options)
    return file.getvalue()


def test_heic_is_opened_without_changing_what_the_process_opens():
    picture = smooth(80, 60)
    data = heic(picture)
    ours = decoded(data)
    ((_, frame),) = ours.frames()
    assert (ours.kind, ours.width, ours.height) == ("image", 80, 60)
    assert (frame.int() - torch.from_numpy(np.array(picture)).int().movedim(-1, 0)).abs().float().mean() < 8
    assert torch.equal(unit(frame), core(data)[0])
    assert "HEIF" not in Image.ID


def test_every_picture_in_a_heic_is_seen():
    data = heic(smooth(80, 60), smooth(40, 90), smooth(64, 64))
    ours = decoded(data)
    assert [(index, *frame.shape[1:]) for index, frame in ours.frames()] == [(0, 60, 80), (1, 90, 40), (2, 64, 64)]
    assert ours.kind == "animation"


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch):
    data = heic(noise())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"a\.heic: HEIC and HEIF need pillow-heif: pip install 'nsfw-guard\[scan\]'"):
        decoded(data, name="a.heic")


def png_header(width, height):
    chunks = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ):
        chunks.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(chunks)


BROKEN = {
    "empty": (b"", r"x is empty\."),
    "one byte": (b"\xff", "x is neither a picture nor a video of a known kind"),
    "text": (b"hello, this is no picture\n" * 100, "x is neither a picture nor a video of a known kind"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "x is neither a picture nor a video of a known kind"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "x is neither a picture nor a video of a known kind"),
    "concat script": (b"ffconcat version 1.0\nfile x.mp4\n", "x is neither a picture nor a video of a known kind"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "x is neither a picture nor a video of a known kind",
    ),
    "huge png": (png_header(200_000, 200_000), "x is refused as a decompression bomb"),
    "large png": (png_header(10_000, 10_000), "bomb: 10000x10000 is more than 89478485 pixels. If you trust"),
    "png without pixels": (png_header(100, 100), "x cannot be decoded: "),
    "jpeg cut": (encode(noise(), "JPEG")[:-300], "x cannot be decoded: image file is truncated"),
    "png cut": (encode(noise(), "PNG")[:3000], "x cannot be decoded: "),
    "webp cut": (encode(noise(), "WEBP")[:-300], "x cannot be (opened as a picture|decoded): "),
    "gif cut": (encode(noise(), "GIF")[:-300], "x cannot be decoded: "),
    "avif cut": (encode(noise(), "AVIF")[:-300], "x is neither a picture .* or broken at its start"),
    "heic cut": (heic(noise())[:-300], "x cannot be (opened|decoded): "),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of bombs
@pytest.mark.parametrize("case", sorted(BROKEN))
@pytest.mark.parametrize("size", [None, 8])
def test_what_cannot_be_decoded_is_an_error_in_one_line(case, size):
    data, message = BROKEN[case]
    with pytest.raises(ImageError, match=message) as caught:
        list(decoded(data, size=size).frames())
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


def test_what_pillow_only_knows_by_name_is_refused(monkeypatch):
    wmf = struct.pack("<IHhhhhHIH", 0x9AC6CDD7, 0, 0, 0, 99, 99, 96, 0, 0) + b"\x01\x00\t\x00" + bytes(40)
    Image.open(io.BytesIO(wmf))
    with pytest.raises(ImageError, match="neither a picture"):
        decoded(wmf)


def _break_gif(data):
    """The second frame, which has a palette of its own, without its data: its first block has no bytes."""
    at = data.index(b",\0\0\0\0\x60\0\x60\0\x87") + 10 + 768 + 1
    return data[:at] + b"\0" + data[at + 1 :]


def _break_webp(data):
    at = data.index(b"VP8L", data.index(b"VP8L") + 4) + 8
    return data[:at] + b"\0" + data[at + 1 :]


def _break_png(data):
    at = data.index(b"fdAT") + 800
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [_break_gif, _break_webp, _break_png])
def test_a_broken_frame_in_the_middle_is_an_error(damage):
    kind = damage.__name__.rpartition("_")[2].upper()
    data = animated(kind, [noise(96, 96) for _ in range(3)])
    assert len(list(decoded(data).frames())) == 3
    seen = []
    with pytest.raises(ImageError, match="x cannot be (opened|decoded)"):
        for index, _ in decoded(damage(data)).frames():
            seen.append(index)
    assert seen in ([], [0])


def test_trailing_garbage_changes_nothing():
    data = encode(noise(), "JPEG")
    assert torch.equal(next(decoded(data + b"\0garbage" * 99).frames())[1], next(decoded(data).frames())[1])


@pytest.mark.parametrize("name", ["x.jpg", "x.mp4", "x", "x.txt"])
def test_the_content_decides_not_the_name(name):
    assert decoded(animated("GIF"), name=name).kind == "animation"


def test_the_limit_of_pixels_counts_for_every_page():
    pages = [Image.new("L", size) for size in ((8, 8), (100, 101))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert len(list(decoded(data, max_pixels=10_100).frames())) == 2
    with pytest.raises(ImageError, match="x is refused as a decompression bomb: 100x101 is more than 10099 pixels"):
        list(decoded(data, max_pixels=10_099).frames())
    with pytest.raises(ImageError, match="8x8 is more than 63 pixels"):
        decoded(data, max_pixels=63)


def test_a_picture_of_too_many_bytes_is_refused():
    data = encode(noise(), "PNG")
    assert decoded(data, max_bytes=len(data)).kind == "image"
    with pytest.raises(ImageError, match=rf"x has more than {len(data) - 1} bytes"):
        decoded(data, max_bytes=len(data) - 1)


def test_no_more_is_read_than_the_limit():
    class Endless(io.BytesIO):
        def read(self, size=-1):
            assert 0 <= size <= HEAD
            return super().read(size)

    with pytest.raises(ImageError, match=f"x has more than {HEAD - 1} bytes"):
        decode(Endless(encode(noise(), "PNG")), DecodeSettings(max_bytes=HEAD - 1), name="x")


def test_too_many_frames_are_refused():
    data = animated("GIF")
    assert len(list(decoded(data, max_frames=4, every=2).frames())) == 4
    with pytest.raises(ImageError, match="x has 7 frames, of which 4 are to be looked at; the limit is 3"):
        decoded(data, max_frames=3, every=2)


def test_ten_thousand_pages_come_one_by_one():
    tags = [(256, 8), (257, 8), (258, 1), (259, 1), (262, 1), (273, 8), (278, 8), (279, 8)]
    at = [16 + (2 + 12 * len(tags) + 4) * index for index in range(10_000)]
    data = b"II*\0" + struct.pack("<I", at[0]) + bytes(range(8))
    for following in [*at[1:], 0]:
        data += struct.pack("<H", len(tags))
        data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + struct.pack("<I", following)
    frames = decoded(data, every=2_500).frames()
    assert [index for index, _ in frames] == [0, 2_500, 5_000, 7_500, 9_999]


@pytest.mark.parametrize("name", ["size", "every", "max_pixels", "max_bytes", "max_frames"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(SettingError, match=f"{name} is .*; expected a whole number of at least 1"):
        DecodeSettings(**{name: value})
