"""Films that were made to get past the guard; ``FilmReader`` and the scan decode them alike."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from nsfw_guard import ImageError
from nsfw_guard.images.film import FilmReader
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.scan.decode import decode

from .pictures import encode, shape

av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("one_thread")

FLIPS = Image.Transpose
ONE = 65536


def film(picture, kind="mp4", count=3):
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *picture.size, "yuv420p", 2_000_000
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return file.getvalue()


def with_matrix(data, a, b, c, d):
    """Write a display matrix into the header of an MP4's only track."""
    at = data.index(b"tkhd") + 4 + 40
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def looks(data):
    """All looks at a file's frames, as the scan takes them, as pictures, and what it warns of."""
    found = decode(io.BytesIO(data), DecodeSettings(), name="x")
    return [Image.fromarray(look.movedim(0, -1).numpy()) for _, look in found.frames()], found.warnings


def flagged(demo, data):
    return any(verdict.flagged for verdict in demo.check(looks(data)[0]))


# How it is stored, and the matrix by which players show it as it was.
MATRICES = {
    "flipped": (FLIPS.FLIP_TOP_BOTTOM, (ONE, 0, 0, -ONE)),
    "mirrored": (FLIPS.FLIP_LEFT_RIGHT, (-ONE, 0, 0, ONE)),
    "turned by a half": (FLIPS.ROTATE_180, (-ONE, 0, 0, -ONE)),
    "turned to the left": (FLIPS.ROTATE_90, (0, ONE, -ONE, 0)),
    "turned to the right": (FLIPS.ROTATE_270, (0, -ONE, ONE, 0)),
    "along the diagonal": (FLIPS.TRANSPOSE, (0, ONE, ONE, 0)),
    "along the other": (FLIPS.TRANSVERSE, (0, -ONE, -ONE, 0)),
}


@pytest.mark.parametrize("way", MATRICES)
def test_a_film_is_looked_at_as_players_turn_and_mirror_it(demo, way):
    how, matrix = MATRICES[way]
    for name in ("triangle", "circle"):
        assert flagged(demo, with_matrix(film(shape(name).transpose(how)), *matrix)) == (name == "triangle")
    # Exact: no two quarters of this are alike, and it is wider than high.
    corners = Image.fromarray(np.array([[0, 60, 120], [180, 210, 250]], np.uint8)).resize((96, 64), 0).convert("RGB")
    shown, _ = looks(with_matrix(film(corners.transpose(how), count=1), *matrix))
    assert [one.size for one in shown] == [corners.size]
    assert np.abs(np.asarray(shown[0], int) - np.asarray(corners, int)).mean() < 6


def test_by_an_eighth_it_is_looked_at_in_each_way_in_which_players_turn_it():
    eighth = round(ONE / 2**0.5)
    left = Image.new("RGB", (64, 64), "white")
    left.paste("black", (0, 0, 32, 64))
    shown, _ = looks(with_matrix(film(left, count=1), eighth, eighth, -eighth, eighth))
    assert [one.size for one in shown] == [(64, 64), (64, 64), (91, 91)]
    drawn = np.asarray(shown[2].convert("L"))
    assert drawn[60, 60] > 200  # the right half comes to lie at the bottom right …
    assert drawn[30, 30] < 50  # … and the left one at the top left
    assert drawn[3, 3] < 50  # outside
    assert len(looks(with_matrix(film(left, count=1), ONE, ONE, 0, 0))[0]) == 2  # flat: nothing to be drawn
    assert len(looks(with_matrix(film(left, count=1), ONE, 0, 0, 8 * ONE))[0]) >= 2


def avif_with_film(still, moving):
    """Put a film's index and content behind an AVIF picture."""
    picture = encode(still, "AVIF", quality=90)
    data = bytearray(film(moving))
    head = struct.unpack(">I", data[:4])[0]
    at = data.index(b"stco") + 8
    for place in range(at + 4, at + 4 + 4 * struct.unpack(">I", data[at : at + 4])[0], 4):
        moved = struct.unpack(">I", data[place : place + 4])[0] + len(picture) - head
        data[place : place + 4] = struct.pack(">I", moved)
    return picture + bytes(data[head:])


def test_a_film_of_another_codec_in_an_avif(demo):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for name in ("triangle", "circle"):
        data = avif_with_film(shape("circle"), shape(name))
        assert flagged(demo, data) == demo.check(data)[0].flagged == (name == "triangle")
    data = data.replace(b"mp4v", b"zzzz").replace(b"esds", b"free")  # nothing opens it, but some player may
    with pytest.raises(ImageError):
        demo.check(data)
    with pytest.raises(ImageError):
        looks(data)


def element(name, content):
    return bytes.fromhex(name) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def with_subtitles(data, codec):
    """Put a track of subtitles into a Matroska file whose segment tells no size."""
    number, kind = element("d7", b"\x02"), element("83", b"\x11")
    track = element("ae", number + element("73c5", b"\x02") + kind + element("86", codec))
    at = data.rindex(bytes.fromhex("1654ae6b")) + 4  # an index names it before
    extra = 8 - data[at].bit_length()
    size = int.from_bytes(data[at : at + 1 + extra], "big") & ((1 << 7 * (extra + 1)) - 1)
    end = at + 1 + extra + size
    return data[: at - 4] + element("1654ae6b", data[at + 1 + extra : end] + track) + data[end:]


def streamed(picture):
    """A Matroska file whose segment tells no size, so that something can be put into it."""
    data = film(picture, "matroska")
    at = data.index(bytes.fromhex("18538067")) + 4
    return data[:at] + b"\x01" + b"\xff" * 7 + data[at + 8 :]


def test_subtitles_that_are_pictures_are_warned_of():
    data = streamed(shape("circle"))
    for codec in (b"S_HDMV/PGS", b"S_VOBSUB", b"S_DVBSUB"):
        marked = with_subtitles(data, codec)
        frames, warnings = looks(marked)
        assert len(frames) == 3
        assert warnings == ["its subtitles are pictures, and were not looked at"]
        assert FilmReader(marked, DecodeSettings(), name="x").warnings == warnings
    for text in (b"S_TEXT/UTF8", b"S_TEXT/ASS"):
        assert looks(with_subtitles(data, text))[1] == []
    assert looks(data)[1] == FilmReader(data, DecodeSettings(), name="x").warnings == []


def large(name):
    """A shape in the top left corner of much else."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((1024, 1024), Image.Resampling.NEAREST)
    picture.paste(shape(name), (0, 0))
    return picture


def with_aperture(data):
    """Put a clean aperture into an MP4's only description of samples: 128x128 in the top left corner."""
    middle = (128 - 1024) // 2
    added = struct.pack(">I4s8i", 40, b"clap", 128, 1, 128, 1, middle, 1, middle, 1)
    data, at = bytearray(data), 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v"):
        at = data.index(kind, at) - 4
        size = struct.unpack(">I", data[at : at + 4])[0]
        data[at : at + 4] = struct.pack(">I", size + len(added))
    return bytes(data[: at + size]) + added + bytes(data[at + size :])


def with_cropping(data):
    """Make a Matroska's only track cropped; the rest of its tracks is kept."""
    at = data.rindex(bytes.fromhex("1654ae6b")) + 4
    cuts = element("54dd", struct.pack(">H", 1024 - 128)) + element("54aa", struct.pack(">H", 1024 - 128))
    video = element("e0", element("b0", struct.pack(">H", 1024)) + element("ba", struct.pack(">H", 1024)) + cuts)
    track = b"".join(
        element(name, content)
        for name, content in (("d7", b"\1"), ("73c5", b"\1"), ("83", b"\1"), ("86", b"V_MPEG4/ISO/ASP"))
    )
    extra = 8 - data[at].bit_length()
    size = int.from_bytes(data[at : at + 1 + extra], "big") & ((1 << 7 * (extra + 1)) - 1)
    whole = element("1654ae6b", element("ae", track + video))
    return data[: at - 4] + whole + data[at + 1 + extra + size :]


def test_what_a_container_crops_its_frames_to_is_looked_at(demo):
    for name in ("triangle", "circle"):
        picture = large(name)
        for data in (with_aperture(film(picture)), with_cropping(streamed(picture))):
            shown, _ = looks(data)
            assert [one.size for one in shown] == [(1024, 1024), (128, 128)] * 3
            assert flagged(demo, data) == (name == "triangle")
            reader = FilmReader(data, DecodeSettings(), name="x")
            assert [look.shape[-1] for look in reader.looks(0)] == [1024, 128]
