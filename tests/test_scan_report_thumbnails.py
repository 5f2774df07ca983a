"""The small pictures of a report: what they show, how large they are, and what is said where there is none."""

import base64
import dataclasses
import hashlib
import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scan_report_samples import row_of

from nsfw_guard.scan.report import thumbnails as module
from nsfw_guard.scan.report.gallery import Item
from nsfw_guard.scan.report.thumbnails import LONG, MOST_BYTES, SHORT, thumbnail, thumbnails

RED, BLUE = (220, 30, 40), (20, 60, 220)


def item_of(row, *copies):
    return Item(row, row.score, paths=[row.path, *copies])


def small(row, *, redacted=False):
    made = thumbnail(item_of(row), redacted=redacted)
    assert made.why == "", made.why
    return opened(made)


def opened(made):
    head, text = made.data.split(",")
    assert head in ("data:image/webp;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(text)))


def said(row):
    made = thumbnail(item_of(row), redacted=False)
    assert made.data is None
    return made.why


def saved(path, picture, **more):
    picture.save(path, **more)
    return row_of(path, 0.9)


def near(picture, at, colour):
    return np.abs(np.array(picture.convert("RGB").getpixel(at), int) - colour).max() < 25


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1600, 1200), (213, 160)),
        ((300, 900), (107, 320)),
        ((40, 30), (40, 30)),
        ((10, 4000), (1, LONG)),
        ((1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_they_are_small_and_never_enlarged(tmp_path, size, expected, kind):
    picture = small(saved(tmp_path / f"a.{kind}", Image.new("RGB", size, RED)))
    assert picture.size == expected
    assert near(picture, (0, picture.height - 1), RED)


def test_even_noise_is_few_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (600, 1200, 3), dtype=np.uint8)
    made = thumbnail(item_of(saved(tmp_path / "a.png", Image.fromarray(noise))), redacted=False)
    data = base64.b64decode(made.data.split(",")[1])
    assert len(data) <= MOST_BYTES
    assert min(opened(made).size) >= SHORT // 2


def test_they_are_upright_and_carry_nothing_else(tmp_path):
    picture = Image.new("RGB", (400, 200), RED)
    picture.paste(BLUE, (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret"
    row = saved(tmp_path / "a.jpg", picture, exif=exif, comment=b"a secret", icc_profile=b"a secret" * 20)
    shown = small(row)
    assert shown.size == (160, 320)
    assert near(shown, (80, 40), BLUE)
    assert near(shown, (80, 280), RED)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "a secret")
    for one in (row, saved(tmp_path / "a.png", picture, pnginfo=notes, exif=exif)):
        made = thumbnail(item_of(one), redacted=False)
        assert b"secret" not in base64.b64decode(made.data.split(",")[1])


def test_transparency_is_on_white_and_16_bit_gray_is_gray(tmp_path):
    assert near(small(saved(tmp_path / "a.png", Image.new("RGBA", (50, 50), (0, 0, 0, 0)))), (20, 20), (255, 255, 255))
    palette = Image.new("P", (50, 50), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert near(small(saved(tmp_path / "b.gif", palette, transparency=0)), (20, 20), (255, 255, 255))
    gray = Image.fromarray(np.full((50, 50), 32768, np.uint16))
    assert near(small(saved(tmp_path / "c.png", gray)), (20, 20), (128, 128, 128))
    assert near(small(saved(tmp_path / "d.jpg", Image.new("CMYK", (400, 400), (0, 0, 0, 255)))), (20, 20), (0, 0, 0))


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_frame_that_decided_is_shown(tmp_path, kind):
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE, (20, 200, 40))]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    row = dataclasses.replace(row_of(path, 0.9), kind="animation", frames=3, frame=1)
    assert near(small(row), (30, 30), BLUE)
    assert said(dataclasses.replace(row, frame=9))


@pytest.mark.parametrize("counted", [1000, 3])
def test_of_a_video_the_frame_that_decided_is_shown(tmp_path, monkeypatch, counted):
    av = pytest.importorskip("av")
    monkeypatch.setattr("nsfw_guard.images.film._MOST_COUNTED", counted)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.gop_size = 6
        for index in range(30):
            pixels = np.full((64, 64, 3), (RED, BLUE)[index == 17], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    row = dataclasses.replace(row_of(path, 0.9), kind="video", frames=30, frame=17)
    assert near(small(row), (30, 30), BLUE)
    assert near(small(dataclasses.replace(row, frame=16)), (30, 30), RED)
    assert near(small(dataclasses.replace(row, frame=18)), (30, 30), RED)
    assert said(dataclasses.replace(row, frame=99)) == "has no frame 99."
    os.utime(path, (1, 1))  # its content is not hashed again
    assert said(row) == "the file has changed since the scan"


def test_frames_of_videos_are_those_that_the_scan_counted(tmp_path):
    """A phone's film is turned upright; of several streams, covers included, the frames count together."""
    av = pytest.importorskip("av")
    from nsfw_guard.images.settings import DecodeSettings
    from nsfw_guard.scan.decode import decode

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(2)]
        if not hasattr(streams[0], "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        for stream in streams:
            stream.width, stream.height = 64, 48
            stream.set_display_rotation(90)
        for stream, colour in zip(streams, (RED, BLUE), strict=True):
            pixels = np.full((48, 64, 3), 255, np.uint8)
            pixels[:, :32] = colour
            for _ in range(2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    row = dataclasses.replace(row_of(path, 0.9), kind="video")
    seen = dict(decode(io.BytesIO(path.read_bytes()), DecodeSettings(), name="").frames())
    assert sorted(seen) == [0, 1, 2, 3]
    colours = set()
    for index, pixels in seen.items():
        shown = small(dataclasses.replace(row, frame=index))
        assert shown.size == (48, 64)
        off = np.abs(np.asarray(shown.convert("RGB"), int) - pixels.movedim(0, -1).numpy())
        assert off.mean() < 8
        assert near(shown, (24, 4), (255, 255, 255))
        colours |= {colour for colour in (RED, BLUE) if near(shown, (24, 50), colour)}
    assert colours == {RED, BLUE}


def test_a_playlist_in_a_videos_place_is_not_followed(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    path.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")
    why = said(dataclasses.replace(row_of(path, 0.9), kind="video"))
    assert why.startswith("cannot be decoded as a video: Invalid data")


def test_without_pyav_a_video_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    assert said(dataclasses.replace(row_of(path, 0.9), kind="video")) == (
        "videos need PyAV: pip install 'nsfw-guard[scan]'"
    )


def test_redacted_ones_show_eight_cells_and_nothing_more(tmp_path):
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::4] = 255  # far finer than a cell
    row = saved(tmp_path / "a.png", Image.fromarray(stripes).resize((640, 640), Image.Resampling.NEAREST))
    plain, hidden = (np.array(small(row, redacted=how).convert("L"), int) for how in (False, True))
    assert plain.shape == hidden.shape == (160, 160)
    assert np.ptp(plain) > 60
    assert np.ptp(hidden) < 12
    cells = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((20, 20))) * 255  # a board of twice as many
    shown = small(saved(tmp_path / "c.png", Image.fromarray(cells.astype(np.uint8))), redacted=True)
    assert np.ptp(np.array(shown.convert("L"), int)) < 12
    halves = Image.new("RGB", (320, 320), RED)
    halves.paste(BLUE, (160, 0, 320, 320))
    shown = small(saved(tmp_path / "b.png", halves), redacted=True)
    assert near(shown, (20, 80), RED)
    assert near(shown, (140, 80), BLUE)
    filled = dataclasses.replace(row_of(tmp_path / "b.png", 1.0), reason="non_finite")
    assert near(small(filled, redacted=True), (20, 80), (0, 0, 0))


def test_what_is_gone_or_changed_is_not_shown(tmp_path):
    path = tmp_path / "a.png"
    row = saved(path, Image.new("RGB", (50, 50), RED))
    os.utime(path, (1, 1))
    assert near(small(row), (20, 20), RED)  # the content is what was scanned, whatever its time
    assert said(dataclasses.replace(row, sha256=None)) == "the file has changed since the scan"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")  # of the same size
    assert said(row) == "the file has changed since the scan"
    path.write_bytes(data + b"?")
    assert said(row) == "the file has changed since the scan"
    path.unlink()
    assert said(row) == "the file is gone"
    path.mkdir()
    assert said(row) == "it is no file any more"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path):
    row = dataclasses.replace(saved(tmp_path / "a.png", Image.new("RGB", (9, 9))), path=str(tmp_path / "pipe"))
    os.mkfifo(tmp_path / "pipe")
    assert said(row) == "it is no file any more"


def test_a_copy_that_is_still_there_is_shown_instead(tmp_path):
    row = saved(tmp_path / "a.png", Image.new("RGB", (50, 50), BLUE))
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.png").unlink()
    made = thumbnail(item_of(row, str(tmp_path / "copy.png")), redacted=False)
    assert near(opened(made), (20, 20), BLUE)


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20), b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(3000)],
)
def test_what_cannot_be_decoded_says_so(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    why = said(row_of(path, 0.9))
    assert 0 < len(why) <= 120
    assert "\n" not in why


def test_truncated_pictures_and_bombs_say_so(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.effect_noise((400, 400), 90).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    assert "truncated" in said(row_of(path, 0.9))
    bomb = saved(tmp_path / "b.png", Image.new("RGB", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "bomb" in said(bomb)
    monkeypatch.setattr(module, "_MOST_READ", 50)
    assert said(bomb) == "larger than 0 MiB"


def test_a_name_that_is_no_text_is_found(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(path, "wb") as file:
            Image.new("RGB", (50, 50), RED).save(file, "PNG")
    except OSError:
        pytest.skip("this file system wants names to be text")
    from pathlib import Path

    row = row_of(Path(os.fsdecode(path)), 0.9)
    assert row.path.startswith("bytes:")
    assert near(small(row), (20, 20), RED)


def test_members_that_cannot_be_opened_say_so(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.png", picture.getvalue())
    (tmp_path / "any.png").write_bytes(picture.getvalue())
    row = row_of(tmp_path / "any.png", 0.9, sha256=hashlib.sha256(picture.getvalue()).hexdigest())
    gone = dataclasses.replace(row, path=f"zip://b.png::{tmp_path}/z.zip")
    assert said(gone)


def test_many_are_made_in_order_some_at_a_time(tmp_path):
    rows = [saved(tmp_path / f"{n}.png", Image.new("RGB", (8 + n, 20), RED)) for n in range(40)]
    done = []
    made = thumbnails([item_of(row) for row in rows], redacted=False, workers=3, on_done=done.append)
    assert [opened(one).width for one in made] == [8 + n for n in range(40)]
    assert done == list(range(1, 41))


def test_heic_is_shown_and_pillow_is_left_as_it_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.new("RGB", (64, 64), BLUE)).save(path)
    before = set(Image.OPEN)
    assert near(small(row_of(path, 0.9)), (30, 30), BLUE)
    assert not {name for name in set(Image.OPEN) - before if "HEI" in name}
