"""Files whose parts overlap or lead on and on: they are refused before anything large is copied or walked."""

import io
import struct
import tracemalloc

import pytest
from PIL import Image
from test_sniff import encoded, psd, resource, shape

from nsfw_guard import ImageError
from nsfw_guard.images import held
from nsfw_guard.images.budget import Budget
from nsfw_guard.images.held import Held
from nsfw_guard.images.inside import inside
from nsfw_guard.images.pictures import Picture
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.images.sniff import open_picture

SETTINGS = DecodeSettings()
SIZE = 2**20
SMALL = Image.new("L", (8, 8))


def listed(data):
    """What is found in a file, and how many bytes that took at most."""
    picture = open_picture(data, name="x")
    tracemalloc.start()
    try:
        found = inside(data, picture, SETTINGS, name="x")
    except ImageError as error:
        found = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, peak


def tiff_with(*tags, behind=b"", size=SIZE):
    """A TIFF with further entries, which may be doubled, each of tag, kind, count and value."""
    data = encoded(SMALL, "TIFF")
    first = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[first : first + 2])[0]
    entries = data[first + 2 : first + 2 + 12 * count] + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data += behind
    directory = struct.pack("<H", count + len(tags)) + entries + bytes(4)
    return (data[:4] + struct.pack("<I", len(data)) + data[8:] + directory).ljust(size, b"\0")


def film_starts(count):
    start = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + struct.pack(">I4s", 0, b"moov")
    return (encoded(SMALL, "JPEG") + count * start).ljust(SIZE, b"\0")


def test_films_that_overlap():
    found, peak = listed(film_starts(4000))
    assert found == "x cannot be looked into: its parts overlap, or are too many."
    assert peak < SIZE
    found, peak = listed(film_starts(3))
    assert [len(inner.film) > SIZE // 2 for inner in found] == [True] * 3
    assert peak < SIZE  # nothing is cut out before it is looked at


def test_directories_below_others():
    below = len(encoded(SMALL, "TIFF"))
    places = b"".join(struct.pack("<I", 8 + index) for index in range(256))
    empty = b"".join(struct.pack("<I", SIZE // 2 + 16 * index) for index in range(256))
    found, peak = listed(tiff_with((330, 4, 256, below), behind=places))
    assert found == "x cannot be looked into: a directory has 256 below it."
    assert peak < SIZE
    twice = ((330, 4, 60, below), (330, 4, 60, below + 240))
    found, peak = listed(tiff_with(*twice, behind=empty))
    assert "more than 64 directories below others" in found
    found, peak = listed(tiff_with(*twice[:1], behind=empty))
    assert len(found) == 60
    assert peak < SIZE


@pytest.mark.parametrize("count", [60, 1000])
def test_photoshops_parts_that_overlap(count):
    tags = [(34377, 7, SIZE - index, index) for index in range(count)]
    found, peak = listed(tiff_with(*tags))
    assert "cannot be looked into" in found
    assert peak < SIZE
    assert listed(tiff_with(*[(34377, 7, SIZE, 0)] * 60))[0] == []  # the same one


def test_directories_with_far_too_many_entries_and_far_too_many_directories():
    exif = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65535) + b"\xff" * 30_000
    found, _ = listed(encoded(SMALL.convert("RGB"), "PNG", exif=exif))
    assert found == "x cannot be looked into: a directory has 2500 entries."
    one = struct.pack("<H", 1000) + struct.pack("<HHII", 0xFFFF, 7, 1, 0) * 1000
    chain = b"II*\0" + struct.pack("<I", 8)
    for _ in range(270):
        chain += one + struct.pack("<I", len(chain) + len(one) + 4)
    found, peak = listed(encoded(SMALL.convert("RGB"), "PNG", exif=chain))
    assert found == "x cannot be looked into: its parts overlap, or are too many."
    assert peak < 3 * len(chain)


def test_an_ordinary_file_of_many_pages():
    pages = [Image.new("L", (8, 8), index) for index in range(200)]
    assert listed(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))[0] == []


def test_what_is_spent():
    budget = Budget(10, "x")
    budget.spend(10)
    with pytest.raises(ImageError, match="^x cannot be looked into: its parts overlap, or are too many.$"):
        budget.spend(1)


def test_a_raw_thumbnail_costs_what_there_is_of_it():
    head = struct.pack(">6IHH", 0, 4096, 4096, 3 * 4096, 3 * 4096 * 4096, 100, 24, 1)
    found, _ = listed(psd(shape("circle"), resources=resource(1036, head + bytes(100))))
    assert found[0].open().size == (4096, 1)


def test_the_layers_of_a_photoshop_file_are_warned_of():
    def warnings(data):
        return Picture(open_picture(data, name="x"), "x", data=data).warnings

    told = ["the stack of layers in it cannot be opened, and was not looked at"]
    circle, triangle = shape("circle"), shape("triangle")
    data = psd(circle, [circle, triangle])
    assert warnings(data) == told
    at = data.index(b"8BIMnorm") + 10
    one_hidden = data[:at] + b"\2" + data[at + 1 :]
    assert warnings(one_hidden) == told
    at = data.index(b"8BIMnorm", at) + 10
    assert warnings(one_hidden[:at] + b"\2" + one_hidden[at + 1 :]) == []
    assert warnings(psd(circle)) == warnings(psd(circle, resources=resource(1005, b"odd"))) == []


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_frames_that_only_a_decoder_holds_are_read_on_one_way(kind, monkeypatch):
    file = io.BytesIO()
    pages = [Image.new("RGB", (16, 16), (20 * index,) * 3) for index in range(10)]
    pages[0].save(file, kind, save_all=True, append_images=pages[1:])
    picture = Image.open(file)
    picture.seek(4)
    picture.load()
    frames = Held(picture, None, SETTINGS, "x", [])
    ways = []
    twin_of = held._twin_of
    monkeypatch.setattr(held, "_twin_of", lambda own: ways.append(own) or twin_of(own))

    def seen(index):
        return round(frames.frame(index).convert("L").getpixel((8, 8)) / 20)

    assert [seen(index) for index in range(10)] == list(range(10))
    assert len(ways) == 1
    monkeypatch.setattr(held, "_AHEAD", 3 * 16 * 16)
    assert [seen(index) for index in (0, 1, 2, 3, 9, 8, 4)] == [0, 1, 2, 3, 9, 8, 4]
    assert picture.tell() == 4
    for index in (5, 3, 9):
        picture.seek(index)
        assert round(picture.convert("L").getpixel((8, 8)) / 20) == index


def test_large_pictures_beside_are_decoded_again_instead_of_kept(monkeypatch):
    data = encoded(shape("circle"), "JPEG") + encoded(shape("triangle"), "JPEG") * 3
    kept = Held(open_picture(data, name="x"), data, SETTINGS, "x", [])
    monkeypatch.setattr(held, "_AHEAD", 64 * 64 + 1)
    again = Held(open_picture(data, name="x"), data, SETTINGS, "x", [])
    assert len(kept) == len(again) == 4
    assert [kept.frame(index) is kept.frame(index) for index in range(4)] == [True] * 4
    assert [again.frame(index) is again.frame(index) for index in range(4)] == [True, True, False, False]
    assert [again.frame(index).tobytes() for index in range(4)] == [kept.frame(index).tobytes() for index in range(4)]
