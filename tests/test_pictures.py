"""Pillow pictures: modes, rotation, transparency, animation, broken files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from nsfw_guard import ImageError
from nsfw_guard.images import read_images


def pixels_of(picture):
    return next(read_images(picture).frames(0))


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def mode_picture(mode):
    """A 6x4 picture of a mode whose left half is dark and whose right half is light."""
    rgb = Image.new("RGB", (6, 4), "black")
    rgb.paste((255, 255, 255), (3, 0, 6, 4))
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.int32) * 257)
    return rgb.convert(mode)


# What a redacted picture comes back as: the same mode, where that can hold it.
MODES = {
    "1": "RGB", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "CMYK",
    "YCbCr": "YCbCr", "HSV": "HSV", "I;16": "RGB", "I": "RGB",
}  # fmt: skip


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_is_read_and_redacted(mode):
    picture = mode_picture(mode)
    before = picture.tobytes()
    pixels = pixels_of(picture)
    assert pixels.shape == (3, 4, 6)
    assert pixels[:, :, :3].max() < 0.02
    assert pixels[:, :, 3:].min() > 0.98
    batch = read_images(picture)
    assert batch.replace({}) is picture
    out = batch.replace({0: [torch.full((3, 4, 6), 0.5)]})
    assert out.mode == MODES[mode]
    assert out.size == (6, 4)
    assert np.abs(np.asarray(out.convert("RGB")).astype(int) - 128).max() <= 2
    assert picture.tobytes() == before


def test_sixteen_bit_gray_is_not_clipped():
    ramp = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    assert torch.allclose(pixels_of(Image.fromarray(ramp))[0], torch.from_numpy(ramp.astype(np.float32)) / 65535)
    with pytest.raises(ImageError, match="values outside 0 to 65535"):
        pixels_of(Image.fromarray(np.full((2, 2), -5, np.int32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_redacted_is_opaque(mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        picture = Image.open(io.BytesIO(encode(picture.quantize(4), "PNG")))
    else:
        picture = picture.convert(mode)
    assert picture.has_transparency_data
    assert pixels_of(picture)[0].tolist() == [[0.0, 1.0]]
    out = read_images(picture).replace({0: [torch.full((3, 1, 2), 0.5)]})
    assert out.mode == ("RGB" if mode == "P" else mode)
    if mode != "P":
        assert [out.getchannel("A").getpixel((x, 0)) for x in (0, 1)] == [255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = mode_picture("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    if orientation in undo:
        stored = upright.transpose(undo[orientation])
    pixels = pixels_of(encode(stored, "PNG", exif=exif))
    assert pixels.shape == (3, 4, 6)
    assert torch.equal(pixels, pixels_of(upright))


@pytest.mark.parametrize("kind", ["MPO", "PNG", "WEBP"])
def test_exif_rotation_of_pictures_with_several_frames(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = mode_picture("RGB").transpose(Image.Transpose.ROTATE_90)
    file = encode(stored, kind, save_all=True, append_images=[stored.rotate(180)], exif=exif, quality=100)
    pixels = pixels_of(file)
    assert pixels.shape == (3, 4, 6)
    assert pixels[:, :, 0].mean() < 0.1 < 0.9 < pixels[:, :, 5].mean()


def frames(count=3):
    """An animated picture's frames: white, but the second one, which is black."""
    return [Image.new("RGB", (8, 8), "black" if i == 1 else "white") for i in range(count)]


def animated(kind):
    first, *rest = frames()
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(first, kind, save_all=True, append_images=rest, duration=[100, 200, 300], loop=0, **options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_every_frame_of_an_animated_picture_is_seen(kind):
    batch = read_images([mode_picture("RGB"), animated(kind)])
    assert batch.owners == [0, 1, 1, 1]
    assert len(batch) == 2
    assert [round(frame.mean().item()) for frame in batch.frames(1)] == [1, 0, 1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_a_redacted_animated_picture_stays_animated(kind):
    shown = [torch.full((3, 8, 8), value) for value in (0.25, 0.5, 0.75)]
    out = read_images(animated(kind)).replace({0: shown})
    assert out.n_frames == 3
    for index, expected in enumerate((64, 128, 191)):
        out.seek(index)
        assert abs(out.convert("RGB").getpixel((0, 0))[0] - expected) <= 2
    if kind in ("GIF", "PNG"):
        out.seek(1)
        assert out.info["duration"] == 200
    if kind != "TIFF":
        assert out.info["loop"] == 0


def test_a_redacted_webp_animation_is_lossless():
    shown = list(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    again = list(read_images(read_images(animated("WEBP")).replace({0: shown})).frames(0))
    for frame, expected in zip(again, shown, strict=True):
        torch.testing.assert_close(frame, expected, rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_redacted_frames_that_are_alike_are_all_kept(kind):
    first, *rest = frames(3)
    picture = Image.open(io.BytesIO(encode(first, kind, save_all=True, append_images=rest)))
    out = read_images(picture).replace({0: [torch.zeros(3, 8, 8)] * 3})
    assert (out.format, out.n_frames) == (kind, 3)
    for index in range(3):
        out.seek(index)
        assert max(out.convert("RGB").getdata(), key=max) <= (2, 2, 2)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_frames_can_be_read_again_and_in_any_order(kind):
    batch = read_images(animated(kind))
    for index in (2, 1, 0, 1, 2):
        (frames,) = batch.stored(index, index + 1)
        assert round(frames.pixels().mean().item()) == (index != 1)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_callers_picture_stays_at_its_frame_and_can_be_read_on(kind):
    picture = Image.open(io.BytesIO(animated(kind)))
    picture.seek(2)
    list(read_images(picture).frames(0))
    assert picture.tell() == 2
    seen = []
    for index in range(3):
        picture.seek(index)
        seen.append(picture.convert("RGB").getpixel((4, 4))[0])
    assert seen == [255, 0, 255]


def test_pages_of_several_sizes_are_each_seen_whole():
    pages = [Image.new("RGB", size, "white") for size in ((8, 8), (20, 4), (4, 20))]
    file = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert [tuple(frame.shape[1:]) for frame in read_images(file).frames(0)] == [(8, 8), (4, 20), (20, 4)]


def test_no_metadata_survives_a_redaction():
    exif = Image.Exif()
    exif[0x010E] = "what was asked for"
    picture = Image.open(io.BytesIO(encode(mode_picture("RGB"), "JPEG", exif=exif)))
    out = read_images(picture).replace({0: [torch.zeros(3, 4, 6)]})
    assert not out.getexif()
    assert not out.info


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"images \(0 bytes\) cannot be opened as a picture"),
        (b"not a picture at all", r"images \(20 bytes\) cannot be opened as a picture: it is none, or of a kind that"),
    ],
)
def test_what_is_no_picture_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        read_images(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_truncated_files_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError, match="cannot be (decoded|opened)"):
        pixels_of(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of some
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "MPO", "WEBP", "PNG"])
def test_of_truncated_animations_frames_come_out_or_an_image_error(kind):
    rng = np.random.default_rng(0)
    first, *rest = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    data = encode(first, kind, save_all=True, append_images=rest)
    refused = 0
    for stop in {*range(40), *range(40, len(data), 97), len(data) - 1}:
        try:
            assert list(read_images(data[:stop]).frames(0))
        except ImageError as error:
            assert "cannot be" in str(error)
            refused += 1
    assert refused > 40


def test_a_png_with_a_broken_chunk_is_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8))
    data = bytearray(encode(noise, "PNG"))
    at = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[at : at + 4] = b"\x00\x01\x02\x03"
    with pytest.raises(ImageError, match="cannot be decoded"):
        pixels_of(bytes(data))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match="missing.png cannot be opened"):
        read_images(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_images(tmp_path)


def test_decompression_bombs_are_refused(monkeypatch):
    data = encode(Image.new("L", (300, 300)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)  # Pillow itself would only warn here
    with pytest.raises(ImageError, match="refused as a decompression bomb: 300x300 is more than 89999 pixels"):
        read_images(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="refused as a decompression bomb"):
        read_images(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert pixels_of(data).shape == (3, 300, 300)


def test_a_page_that_is_a_bomb_is_refused(monkeypatch):
    pages = [Image.new("L", size, "white") for size in ((8, 8), (300, 300))]
    file = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)
    batch = read_images(file)
    with pytest.raises(ImageError, match="refused as a decompression bomb: 300x300 is more than 89999 pixels"):
        list(batch.frames(0))
