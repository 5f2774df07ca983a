"""Pictures that a caller opened, loaded, moved or drew on: what the object shows counts, and it stays as it is."""

import io
import logging

import pytest
from PIL import Image

from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import to_picture

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"]
TRIANGLE, CIRCLE, SQUARE = (to_picture(draw(name, "red", "white")) for name in ("triangle", "circle", "square"))


def file_of(*frames, kind):
    options = {"quality": 95} if kind in ("AVIF", "MPO") else {"lossless": True} if kind == "WEBP" else {}
    file = io.BytesIO()
    first, *rest = (frame.copy() for frame in frames)  # writers leave settings behind in them
    first.save(file, kind, save_all=True, append_images=rest, **options)
    file.seek(0)
    return file


def state(picture):
    return picture.tobytes(), picture.tell(), picture.mode, picture.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("path", [False, True])
def test_after_load_all_frames_are_looked_at_and_the_object_stays(demo, tmp_path, kind, position, path):
    file = file_of(CIRCLE, SQUARE, TRIANGLE, kind=kind)
    if path:
        (tmp_path / "a").write_bytes(file.getvalue())
        file = tmp_path / "a"
    picture = Image.open(file)
    picture.seek(position)
    picture.load()
    before = state(picture)
    assert demo.check(picture)[0].flagged
    assert state(picture) == before
    assert not demo.check(Image.open(file_of(CIRCLE, SQUARE, CIRCLE, kind=kind)))[0].flagged
    for index, expected in ((2, TRIANGLE), (1, SQUARE), (0, CIRCLE)):  # it can still be read on
        picture.seek(index)
        assert demo.check(picture.convert("RGB"))[0].flagged == (expected is TRIANGLE)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_were_counted_before(demo, kind):
    picture = Image.open(file_of(CIRCLE, TRIANGLE, kind=kind))
    assert picture.n_frames == 2
    assert demo.check(picture)[0].flagged


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_drawn_on_it_counts_and_is_not_thrown_away(demo, kind):
    picture = Image.open(file_of(CIRCLE, SQUARE, kind=kind))
    picture.load()
    picture.paste(TRIANGLE.convert(picture.mode))
    before = state(picture)
    assert demo.check(picture)[0].flagged
    assert state(picture) == before
    picture.paste(CIRCLE.convert(picture.mode))
    before = state(picture)
    result = demo.apply(picture)
    assert result.images is picture
    assert state(picture) == before


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "MPO"])
def test_frames_that_cannot_be_read_any_more_are_named(demo, caplog, kind):
    file = file_of(CIRCLE, SQUARE, kind=kind)
    picture = Image.open(file)
    picture.load()
    file.seek(0)
    file.truncate()
    file.write(b"somebody else's")
    with caplog.at_level(logging.WARNING, logger="nsfw_guard"):
        assert not demo.check(picture)[0].flagged
    assert "only the frame that it shows was looked at; the others cannot be read" in caplog.text


def test_a_file_that_was_written_anew_after_load(demo, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(file_of(TRIANGLE, SQUARE, kind="TIFF").getvalue())
    picture = Image.open(path)
    picture.load()
    path.write_bytes(file_of(CIRCLE, SQUARE, kind="TIFF").getvalue())
    assert demo.check(picture)[0].flagged


def test_a_closed_picture_of_one_frame(demo):
    file = io.BytesIO()
    TRIANGLE.save(file, "JPEG")
    with Image.open(file) as picture:
        picture.load()
    file.close()
    assert demo.check(picture)[0].flagged
