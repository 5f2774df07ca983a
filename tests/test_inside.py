"""What else can be seen of a picture's file: each hides a triangle behind a circle, and the demo model finds it."""

import io
import random
import struct
import sys

import numpy as np
import pytest
from PIL import Image, features
from test_sniff import encoded, icon, psd, resource, shape

from nsfw_guard import ImageError
from nsfw_guard.images.film import FilmReader
from nsfw_guard.images.inside import holds_sequence, inside
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.images.sniff import frame_count, open_picture
from nsfw_guard.scan.decode import decode

SETTINGS = DecodeSettings()
CIRCLE, TRIANGLE = shape("circle"), shape("triangle")
av = pytest.importorskip("av")


def listed(data, settings=SETTINGS):
    return inside(data, open_picture(data, name="x"), settings, name="x")


def pictures(inner):
    """All frames of one part, as RGB; ``None`` if it is left out."""
    if inner.film is not None:
        reader = FilmReader(inner.film, SETTINGS, name="x")
        return [look.movedim(0, -1).numpy() for index in range(reader.count) for look in reader.looks(index)]
    picture = inner.open()
    if picture is None:
        return None
    frames = []
    for index in range(frame_count(picture)):
        if frame_count(picture) > 1:
            picture.seek(index)
        frames.append(np.asarray(picture.convert("RGB")))
    return frames


def flagged(demo, data):
    """Of each part its name, and whether a frame of it is flagged."""
    found = {}
    for inner in listed(data):
        frames = [Image.fromarray(frame) for frame in pictures(inner) or []]
        found[inner.name] = found.get(inner.name, False) or any(one.flagged for one in demo.check(frames))
    return found


def film(picture=TRIANGLE, count=3, kind="mp4"):
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *picture.size, "yuv420p", 2_000_000
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return file.getvalue()


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


def tiff(*directories):
    """A TIFF of directories that follow each other; each is of tag → number, or bytes, which are put behind."""
    data = b"II*\0" + struct.pack("<I", 8)
    for number, tags in enumerate(directories):
        at = len(data) + 2 + 12 * len(tags) + 4
        entries, behind = b"", b""
        for tag, value in sorted(tags.items()):
            if isinstance(value, bytes):
                entries += struct.pack("<HHII", tag, 4, 1, at + len(behind))
                behind += value
            else:
                entries += struct.pack("<HHII", tag, 4, 1, value)
        following = at + len(behind) if number + 1 < len(directories) else 0
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + behind
    return data


def exif_with_jpeg(picture, orientation=1):
    jpeg = encoded(picture, "JPEG")
    return b"Exif\0\0" + tiff({0x0112: orientation}, {0x0103: 6, 0x0201: jpeg, 0x0202: len(jpeg)})


def exif_with_strips(picture):
    pixels = picture.tobytes()
    strip = {
        0x0100: picture.width, 0x0101: picture.height, 0x0102: 8, 0x0103: 1, 0x0106: 2, 0x0111: pixels, 0x0115: 3,
        0x0116: picture.height, 0x0117: len(pixels),
    }  # fmt: skip
    del strip[0x0102]  # one number for three samples; Pillow takes 8 bits only if it stands there thrice
    at = 8 + 2 + 12 + 4 + 2 + 12 * (len(strip) + 1) + 4
    data = tiff({0x0112: 1}, strip)
    ifd = struct.unpack("<I", data[18 + 4 : 22 + 4])[0]
    count = struct.unpack("<H", data[ifd : ifd + 2])[0]
    entries = [data[ifd + 2 + 12 * n : ifd + 14 + 12 * n] for n in range(count)]
    moved = []
    for entry in entries:
        tag, kind, number, value = struct.unpack("<HHII", entry)
        moved.append(struct.pack("<HHII", tag, kind, number, at + 6 if tag == 0x0111 else value))
    moved.append(struct.pack("<HHII", 0x0102, 3, 3, at))
    moved.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    body = struct.pack("<H", len(moved)) + b"".join(moved) + struct.pack("<I", 0)
    return b"Exif\0\0" + data[:ifd] + body + struct.pack("<3H", 8, 8, 8) + pixels


EXIF_KINDS = ["JPEG", "PNG", "WEBP", "AVIF"]


def with_exif(kind, exif):
    if kind == "AVIF":
        if not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
        # Pillow writes EXIF anew, without thumbnails: it is put over one that it does write.
        tags = Image.Exif()
        tags[0x010E] = "a" * len(exif)
        data = encoded(CIRCLE, kind, exif=tags)
        assert data.count(tags[0x010E].encode()) == 1
        return data.replace(tags[0x010E].encode(), exif)
    return encoded(CIRCLE, kind, exif=exif)


@pytest.mark.parametrize("make", [exif_with_jpeg, exif_with_strips])
@pytest.mark.parametrize("kind", EXIF_KINDS)
def test_exif_thumbnails(demo, kind, make):
    data = with_exif(kind, make(TRIANGLE))
    assert flagged(demo, data) == {"thumbnail": True}
    assert flagged(demo, with_exif(kind, make(CIRCLE))) == {"thumbnail": False}
    if kind == "AVIF":
        return
    picture = open_picture(data, name="x")
    picture.load()
    (inner,) = inside(None, picture, SETTINGS)  # of an object whose file is not at hand
    assert demo.check(inner.open().convert("RGB"))[0].flagged


def test_thumbnails_are_turned_as_the_picture_is():
    data = encoded(CIRCLE, "JPEG", exif=exif_with_jpeg(TRIANGLE, 6))
    (inner,) = listed(data)
    assert inner.open().getexif()[0x0112] == 6


def test_a_heic_with_exif_thumbnail_thumbnail_and_alpha(demo):
    heif = pytest.importorskip("pillow_heif")
    pictures_of = heif.from_pillow(TRIANGLE.resize((256, 256)))
    pictures_of[0].info["thumbnails"] = [64]
    file = io.BytesIO()
    pictures_of.save(file, quality=-1)
    assert flagged(demo, file.getvalue()) == {"auxiliary picture": True}
    plain = Image.new("RGB", (64, 64), "white")
    plain.putalpha(TRIANGLE.getchannel("G"))
    file = io.BytesIO()
    heif.from_pillow(plain).save(file, quality=-1)
    assert [inner.name for inner in listed(file.getvalue())] == ["auxiliary picture"]
    file = io.BytesIO()
    heif.from_pillow(CIRCLE).save(file, quality=-1, exif=exif_with_jpeg(TRIANGLE))
    assert flagged(demo, file.getvalue()) == {"thumbnail": True}


CONTAINERS = {
    "JPEG": lambda inner: encoded(CIRCLE, "JPEG") + inner,
    "samsung": lambda inner: encoded(CIRCLE, "JPEG") + b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + inner + b"SEFHSEFT",
    "PNG": lambda inner: encoded(CIRCLE, "PNG") + inner,
    "WEBP": lambda inner: encoded(CIRCLE, "WEBP") + inner,
    "GIF": lambda inner: encoded(CIRCLE, "GIF") + inner,
    "HEIC": lambda inner: heic(CIRCLE) + box(b"mpvd", inner),
    "AVIF": lambda inner: encoded(CIRCLE, "AVIF") + box(b"mpvd", inner),
}


def heic(picture):
    file = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(picture).save(file, quality=-1)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize("case", sorted(CONTAINERS))
def test_the_film_of_a_motion_photo(demo, case, kind):
    if case == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = CONTAINERS[case](film(kind=kind))
    (inner,) = listed(data)
    assert (inner.name, len(pictures(inner))) == ("film", 3)
    assert flagged(demo, data) == {"film": True}
    assert flagged(demo, CONTAINERS[case](film(CIRCLE, kind=kind))) == {"film": False}


def test_without_pyav_the_still_is_judged_and_a_warning_names_the_extra(demo, monkeypatch, caplog):
    data = encoded(CIRCLE, "JPEG") + film()
    assert demo.check(data)[0].flagged
    monkeypatch.setitem(sys.modules, "av", None)
    with caplog.at_level("WARNING", logger="nsfw_guard"):
        assert not demo.check(data)[0].flagged
    assert "the film in it was not looked at: that needs PyAV: pip install 'nsfw-guard[scan]'" in caplog.text
    with pytest.raises(ImageError, match=r"videos need PyAV: pip install 'nsfw-guard\[scan\]'"):  # a scan has it
        decode(io.BytesIO(data), DecodeSettings(), name="a.jpg")


def test_the_second_of_two_films_and_one_behind_a_decoy(demo):
    still = encoded(CIRCLE, "JPEG")
    assert [inner.name for inner in listed(still + film(CIRCLE) + film())] == ["film", "film"]
    assert flagged(demo, still + film(CIRCLE) + film()) == {"film": True}
    decoy = box(b"ftyp", b"isom" + bytes(4)) + box(b"free", film())
    assert flagged(demo, still + decoy) == {"film": True}


def test_sound_behind_a_picture_is_no_film():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    assert listed(encoded(CIRCLE, "JPEG") + file.getvalue()) == []


def test_letters_are_no_film_and_a_broken_film_is_an_error():
    still = encoded(CIRCLE, "JPEG")
    assert listed(still + b"\0\0\0\x18ftypisom and no more" * 9) == []
    (inner,) = listed(still + film()[:-100])
    with pytest.raises(ImageError):
        pictures(inner)
    with pytest.raises(ImageError, match="x has more than 4096 places at which a film may begin"):
        listed(still + box(b"ftyp", b"isom" + bytes(4)) * 5000)


@pytest.mark.parametrize("form", ["png", "bmp"])
def test_smaller_pictures_of_an_icon(demo, form):
    small = TRIANGLE.resize((48, 48))
    data = encoded(CIRCLE, "ICO", sizes=[(64, 64), (48, 48)], append_images=[small], bitmap_format=form)
    assert flagged(demo, data) == {"icon 48x48": True}
    cursor = data[:2] + b"\2" + data[3:]
    assert flagged(demo, cursor) == {"icon 48x48": True}


def test_of_two_pictures_of_one_size_in_an_icon_both_are_seen(demo):
    one, two = (icon(one, alpha=0, mask=np.zeros((64, 64), bool)) for one in (CIRCLE, TRIANGLE))
    head = bytearray(one[:22] + two[6:22])
    head[4] = 2
    head[18:22] = struct.pack("<I", 38)
    head[34:38] = struct.pack("<I", 38 + len(one) - 22)
    data = bytes(head) + one[22:] + two[22:]
    shown = demo.check(open_picture(data, name="x").convert("RGB"))[0].flagged
    assert [shown, *flagged(demo, data).values()].count(True) == 1


def test_smaller_pictures_of_an_apple_icon(demo):
    png = {edge: encoded(CIRCLE.resize((edge, edge)), "PNG") for edge in (256, 64)}
    png[64] = encoded(TRIANGLE, "PNG")
    raw = b"".join(band.tobytes() for band in CIRCLE.resize((32, 32)).split())
    blocks = {b"ic08": png[256], b"icp6": png[64], b"il32": raw, b"l8mk": b"\xff" * 1024, b"ic05": b"ARGB"}
    body = b"".join(kind + struct.pack(">I", 8 + len(content)) + content for kind, content in blocks.items())
    data = b"icns" + struct.pack(">I", 8 + len(body)) + body
    found = flagged(demo, data)
    assert found.pop("icon 64x64")
    assert found == {"icon 256x256": False, "icon 32x32": False, "icon of the kind ic05": False}
    assert {inner.name: inner.open() for inner in listed(data)}["icon of the kind ic05"] is None


def test_gain_maps_and_other_jpegs_behind_a_jpeg(demo):
    behind = encoded(TRIANGLE, "JPEG")
    assert flagged(demo, encoded(CIRCLE, "JPEG") + behind) == {"further picture": True}
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:hdrgm="x"><a hdrgm:Version="1.0"/></x:xmpmeta>'
    still = encoded(CIRCLE, "JPEG")
    still = still[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(xmp)) + xmp + still[2:]
    assert flagged(demo, still + b"\0\0" + behind) == {"gain map": True}


def test_the_pictures_of_an_mpo_are_its_frames():
    data = encoded(CIRCLE, "MPO", save_all=True, append_images=[TRIANGLE])
    picture = open_picture(data, name="x")
    assert frame_count(picture) == 2
    assert inside(data, picture, SETTINGS) == []
    assert [inner.name for inner in listed(data + encoded(TRIANGLE, "JPEG"))] == ["further picture"]


def test_the_still_beside_a_sequence_and_the_sequence_beside_a_still(demo):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(CIRCLE, "AVIF", save_all=True, append_images=[CIRCLE, TRIANGLE], quality=90)
    assert data[8:12] == b"avis" and holds_sequence(data)
    assert flagged(demo, data) == {"still": False}
    assert flagged(demo, data[:8] + b"avif" + data[12:]) == {"sequence": True}
    data = encoded(TRIANGLE, "AVIF", save_all=True, append_images=[CIRCLE, CIRCLE], quality=90)
    assert flagged(demo, data) == {"still": True}
    assert not holds_sequence(encoded(CIRCLE, "AVIF"))


def photoshop_thumbnail(picture, *, raw=False):
    width, height = picture.size
    content = picture.tobytes() if raw else encoded(picture, "JPEG")
    return (
        struct.pack(">6IHH", 0 if raw else 1, width, height, 3 * width, 3 * width * height, len(content), 24, 1)
        + content
    )


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["PSD", "JPEG", "TIFF"])
def test_photoshops_thumbnails(demo, kind, raw):
    found = resource(1036, photoshop_thumbnail(TRIANGLE, raw=raw))
    if kind == "PSD":
        data = psd(CIRCLE, resources=resource(1005, b"odd") + found)
    elif kind == "TIFF":
        data = encoded(CIRCLE, "TIFF", tiffinfo={34377: found})
    else:
        data = encoded(CIRCLE, "JPEG")
        segment = b"Photoshop 3.0\0" + found
        data = data[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(segment)) + segment + data[2:]
    assert flagged(demo, data) == {"thumbnail": True}


def test_jfif_and_jfxx_thumbnails(demo):
    data = encoded(CIRCLE, "JPEG")
    assert data[2:4] == b"\xff\xe0" and data[18:20] == b"\0\0"  # no thumbnail yet
    segment = data[6:18] + bytes(TRIANGLE.size) + TRIANGLE.tobytes()
    jfif = data[:4] + struct.pack(">H", 2 + len(segment)) + segment + data[20:]
    assert flagged(demo, jfif) == {"thumbnail": True}
    palette = TRIANGLE.quantize(256)
    colours = bytes(palette.getpalette("RGB")).ljust(768, b"\0")
    jpeg = encoded(TRIANGLE, "JPEG")
    for content in (
        b"\x10" + jpeg,
        b"\x11" + bytes(TRIANGLE.size) + colours + palette.tobytes(),
        b"\x13" + bytes(TRIANGLE.size) + TRIANGLE.tobytes(),
    ):
        segment = b"JFXX\0" + content
        jfxx = data[:20] + b"\xff\xe0" + struct.pack(">H", 2 + len(segment)) + segment + data[20:]
        assert flagged(demo, jfxx) == {"thumbnail": True}, content[:1]


@pytest.mark.parametrize("big", [False, True])
def test_sub_directories_of_a_tiff(demo, big):
    """A second page that the first names as its part, and that follows none, is in no reader's row of pages."""
    data = bytearray(
        encoded(
            CIRCLE.copy(), "TIFF", save_all=True, append_images=[TRIANGLE.copy()], tiffinfo={65000: 7}, big_tiff=big
        )
    )
    if big and data[2] != 43:
        pytest.skip("this Pillow writes no BigTIFF")
    wide = 8 if big else 4
    number = lambda at, size: int.from_bytes(data[at : at + size], "little")  # noqa: E731
    first = number(wide, wide)
    entries, size, start = (number(first, 8), 20, first + 8) if big else (number(first, 2), 12, first + 2)
    following = start + entries * size
    second = number(following, wide)
    place = next(at for at in range(start, following, size) if number(at, 2) == 65000) + size - wide
    data[place - wide - 4 : place] = struct.pack("<HHQ" if big else "<HHI", 330, 16 if big else 4, 1)
    data[place : place + wide] = second.to_bytes(wide, "little")
    data[following : following + wide] = bytes(wide)
    assert frame_count(open_picture(bytes(data), name="x")) == 1
    assert flagged(demo, bytes(data)) == {"further picture": True}


def test_what_nothing_opens_is_left_out_and_what_is_cut_off_is_an_error():
    still = encoded(CIRCLE, "JPEG")
    (inner,) = listed(still + b"\xff\xd8\xff\xe0\0\4ab\xff\xd9")
    assert inner.open() is None
    (inner,) = listed(still + encoded(TRIANGLE.resize((300, 300)), "JPEG", quality=95)[:-900])
    with pytest.raises(ImageError, match="the further picture cannot be decoded: "):
        inner.open()
    (inner,) = listed(still + encoded(TRIANGLE, "JPEG"), DecodeSettings(max_pixels=4095))
    with pytest.raises(ImageError, match="the further picture is refused as a decompression bomb: 64x64"):
        inner.open()


def test_more_than_64_are_refused():
    still, small = encoded(CIRCLE, "JPEG"), encoded(CIRCLE.resize((8, 8)), "JPEG")
    assert len(listed(still + 64 * small)) == 64
    with pytest.raises(ImageError, match="x holds more than 64 further pictures and films"):
        listed(still + 65 * small)


def test_ordinary_pictures_hold_nothing():
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA"):
        assert listed(encoded(CIRCLE, kind)) == []
    assert inside(None, CIRCLE, SETTINGS) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "ICO", "ICNS", "PSD", "AVIF", "HEIC"])
def test_damage_is_an_error_or_nothing(kind):
    """No traceback, and no end that does not come."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    found = resource(1036, photoshop_thumbnail(TRIANGLE))
    whole = {
        "PSD": lambda: psd(CIRCLE, [CIRCLE], found),
        "TIFF": lambda: encoded(CIRCLE, "TIFF", tiffinfo={34377: found, 330: 8}),
        "HEIC": lambda: heic(CIRCLE) + box(b"mpvd", film()),
        "JPEG": lambda: encoded(CIRCLE, "JPEG", exif=exif_with_jpeg(TRIANGLE)) + film(),
        "ICNS": lambda: encoded(CIRCLE, "ICNS"),
        "ICO": lambda: encoded(CIRCLE, "ICO", sizes=[(64, 64), (32, 32)]),
    }.get(kind, lambda: encoded(CIRCLE, kind, exif=exif_with_jpeg(TRIANGLE)))()
    chance = random.Random(0)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 5, 50))):
            data[chance.randrange(min(len(data), chance.choice((400, 10**6))))] = chance.randrange(256)
        data = bytes(data[: chance.choice((len(data), len(data), chance.randrange(30, len(data))))])
        try:
            parts = listed(data)
        except ImageError:
            continue
        for inner in parts:
            try:
                pictures(inner)
            except (ImageError, EOFError, OSError, SyntaxError, ValueError):
                continue
