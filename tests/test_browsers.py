"""Files of which viewers show different pictures: what browsers show is looked at, what contradicts itself refused."""

import crafted
import numpy as np
import pytest
from PIL import Image

from nsfw_guard import ImageError
from nsfw_guard.images.browsers import Shown
from nsfw_guard.images.icons import windows_icons
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.images.sniff import open_picture

pytestmark = pytest.mark.usefixtures("one_thread")

BLUE, WHOLE, CORNER = crafted.BLUE, crafted.WHOLE, crafted.CORNER
TWO = [(WHOLE, 0, BLUE), (WHOLE, 0, BLUE)]
PIXELS = np.zeros((128, 128), np.uint8)
KEY = crafted.chunk(b"tRNS", b"\0\1")


def shown(data):
    held = Shown(data, open_picture(data, name="x"), DecodeSettings(), "x")
    return [held.frame(index) for index in range(len(held))]


def behind_pixels(data, chunk):
    return data[:-12] + chunk + data[-12:]


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of some
@pytest.mark.parametrize(
    "data",
    [
        crafted.apng(TWO, repeat=2),
        crafted.apng(TWO, count=1),
        crafted.apng(TWO, count=0),
        crafted.apng(TWO, count=3),
        crafted.apng(TWO, count=2**31 + 1),
        crafted.apng(TWO, repeat=0),
        crafted.apng(TWO, first=1),
        crafted.apng([(CORNER, 0, BLUE), *TWO]),
        crafted.apng([*TWO, ((100, 0, 100, 1), 0, BLUE)]),
        crafted.apng([(WHOLE, 3, BLUE), *TWO]),
        behind_pixels(crafted.png(8, 0, PIXELS), KEY),
        crafted.png(8, 0, PIXELS, KEY, KEY),
        crafted.icon(65),
        crafted.icon(64, overlapping=True),
    ],
)
def test_what_viewers_show_differently_is_refused(demo, data):
    with pytest.raises(ImageError):
        demo.check(data)


@pytest.mark.parametrize("make", [crafted.apng, lambda frames: crafted.gif([frame[:2] for frame in frames])])
def test_ordinary_animations_are_as_pillow_shows_them(demo, make):
    data = make([*TWO, ((8, 8, 20, 20), 0, BLUE)])
    assert shown(data) == []
    assert not demo.check(data)[0].flagged


def test_icons_of_64_pictures_are_opened(demo):
    assert len(windows_icons(crafted.icon(64))) == 64
    assert not demo.check(crafted.icon(64))[0].flagged


def test_what_is_cleared_or_restored_is_transparent():
    boxes = [(0, 0, 64, 128), (0, 0, 32, 32), (32, 0, 32, 32)]
    first, second, third = shown(crafted.gif(zip(boxes, (1, 2, 3), strict=True)))
    assert first.getpixel((100, 9)) == (0, 0, 0, 0)
    assert first.getpixel((9, 9)) == (*BLUE, 255) == second.getpixel((9, 9))
    assert third.getpixel((9, 9)) == (0, 0, 0, 0)
    *_, last = shown(
        crafted.apng([(WHOLE, 0, BLUE), ((0, 0, 9, 9), 2, (1, 2, 3)), (CORNER, 1, BLUE), (CORNER, 0, BLUE)])
    )
    assert last.getpixel((4, 4)) == (*BLUE, 255)


@pytest.mark.parametrize("data", [crafted.wide_key("triangle", 2), crafted.gray_key("triangle", 4)])
def test_the_alpha_of_a_transparent_colour_is_exact(data):
    (frame,) = shown(data)
    inside = crafted.mask("triangle", frame.width)
    clear = np.asarray(frame)[..., 3] == 0
    rows, columns = np.indices(inside.shape)
    assert (clear == (inside if frame.width == 128 else inside & ((rows + columns) % 2 == 1))).all()


def test_a_callers_object_that_was_drawn_on_counts_as_it_is(demo, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(crafted.wide_key("triangle", 2))
    assert demo.check(Image.open(path))[0].flagged
    drawn = Image.open(path)
    drawn.paste((9, 9, 9), (0, 0, 128, 128))
    assert not demo.check(drawn)[0].flagged
