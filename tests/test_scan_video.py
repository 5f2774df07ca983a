"""Videos, made here with PyAV: which frames are looked at, upright, and what is refused."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scanning import rows_of

from nsfw_guard import ImageError
from nsfw_guard.demo.shapes import draw
from nsfw_guard.images.film import FilmReader, count_frames, film_support
from nsfw_guard.images.film_alpha import Decoder
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.images.sniff import HEAD
from nsfw_guard.scan.decode import decode
from nsfw_guard.scan.kinds import looks_like_video
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources

av = pytest.importorskip("av")

KINDS = {
    "mp4": "mpeg4", "mov": "mpeg4", "matroska": "mpeg4", "avi": "mpeg4", "mpegts": "mpeg2video", "webm": "libvpx",
    "flv": "flv", "asf": "msmpeg4", "mpeg": "mpeg1video",
}  # fmt: skip


def gray(value, width=64, height=48):
    return np.full((height, width, 3), value, np.uint8)


def video(kind, frames, *, codec=None, rotation=None, pixels="yuv420p", options=None, more=(), rate=2_000_000):
    """Encode frames; ``more`` are further streams, a list of frames each."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, container_options=options or {}) as container:
        streams = []
        for pictures in (frames, *more):
            stream = container.add_stream(codec or KINDS[kind], rate=25)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = pixels
            stream.bit_rate = rate
            if rotation is not None:
                stream.set_display_rotation(rotation)
            streams.append((stream, pictures))
        for stream, pictures in streams:
            layout = "rgb24" if pictures[0].shape[2] == 3 else "rgba"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=layout)))
            container.mux(stream.encode())
    return file.getvalue()


def decoded(data, name="x", **settings):
    return decode(io.BytesIO(data), DecodeSettings(**settings), name=name)


def brightness(frames):
    return {index: round(frame.float().mean().item()) for index, frame in frames}


RAMP = [gray(10 + 20 * index) for index in range(11)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_frames_of_every_container(kind):
    data = video(kind, RAMP)
    assert looks_like_video(data[:HEAD], "x")
    ours = decoded(data)
    assert (ours.kind, ours.width, ours.height) == ("video", 64, 48)
    seen = brightness(ours.frames())
    assert list(seen) == list(range(11))
    assert all(abs(value - (10 + 20 * index)) < 6 for index, value in seen.items())


@pytest.mark.parametrize("every", [1, 3, 5, 10, 11, 1000])
def test_every_nth_frame_and_always_the_last(every):
    frames = [*RAMP[:10], gray(250)]
    seen = brightness(decoded(video("mp4", frames), every=every).frames())
    assert sorted(seen) == sorted({*range(0, 11, every), 10})
    assert seen[10] > 230


def test_one_frame_is_first_and_last():
    assert list(brightness(decoded(video("mp4", RAMP[:1]), every=7).frames())) == [0]


def test_frames_are_decoded_as_they_are_asked_for():
    reads = []

    class Watched(io.BytesIO):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    noise = np.random.default_rng(0).integers(0, 256, (60, 192, 256, 3), dtype=np.uint8)
    data = video("mpegts", list(noise), rate=20_000_000)
    assert len(data) > 3_000_000
    frames = decode(Watched(data), DecodeSettings(), name="x").frames()
    next(frames)
    assert sum(reads) < len(data) * 3 // 4
    assert len(list(frames)) == 59


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_is_applied(rotation):
    stored = gray(0)
    stored[:, :16] = 255  # the left quarter is white
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    ours = decoded(video("mp4", [stored] * 3, rotation=rotation))
    frame = next(ours.frames())[1].float()
    assert (ours.width, ours.height) == ((64, 48) if rotation in (0, 180) else (48, 64))
    edges = {"left": frame[..., :4], "right": frame[..., -4:], "top": frame[:, :4], "bottom": frame[:, -4:]}
    # Counterclockwise, as PyAV says: what was on the left comes to be at the bottom.
    expected = {0: "left", 90: "bottom", 180: "right", -90: "top"}[rotation]
    assert max(edges, key=lambda edge: edges[edge].mean()) == expected


def test_every_stream_is_looked_at():
    data = video("matroska", RAMP[:4], more=[[gray(250)] * 5])
    seen = brightness(decoded(data, every=3).frames())
    assert len(seen) == 2 + 3
    assert sum(value > 230 for value in seen.values()) == 3


def cover(kind="PNG"):
    """A sound file with a cover picture, as music libraries have."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, kind)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        still = container.add_stream("png", rate=1)
        still.width, still.height, still.pix_fmt = 40, 30, "rgb24"
        still.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.rate = 44100
        container.mux(still.encode(av.VideoFrame.from_image(Image.new("RGB", (40, 30), "red"))))
        container.mux(still.encode())
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return file.getvalue()


def test_covers_are_looked_at():
    ((_, frame),) = decoded(cover()).frames()
    assert frame.shape == (3, 30, 40)
    assert frame[0].min() > 240 > 10 > frame[1].max()


def test_sound_alone_holds_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(ImageError, match=r"x holds no video\."):
        decoded(file.getvalue())


def test_transparent_frames_are_seen_as_their_colours_on_white_and_on_black():
    frame = np.full((48, 64, 4), 60, np.uint8)
    frame[:, 32:, 3] = 255
    frame[:, :32, 3] = 0
    ((_, colours), (_, white), (_, black)) = decoded(video("mov", [frame], codec="png", pixels="rgba")).frames()
    assert [look[:, :, :32].unique().tolist() for look in (colours, white, black)] == [[60], [255], [0]]
    assert all(look[:, :, 32:].unique().tolist() == [60] for look in (colours, white, black))


def test_opaque_frames_with_an_alpha_channel_are_seen_once():
    frame = np.full((48, 64, 4), 255, np.uint8)
    assert len(list(decoded(video("mov", [frame] * 3, codec="png", pixels="rgba")).frames())) == 3


WITH_ALPHA = {
    "prores": ("mov", "prores_ks", "yuva444p10le"), "animation": ("mov", "qtrle", "argb"),
    "png": ("mov", "png", "rgba"), "ffv1 rgb": ("matroska", "ffv1", "bgra"), "ffv1": ("matroska", "ffv1", "yuva420p"),
    "raw": ("avi", "rawvideo", "bgra"), "cineform": ("mov", "cfhd", "gbrap12le"),
    "vp8": ("webm", "libvpx", "yuva420p"), "vp9": ("webm", "libvpx-vp9", "yuva420p"),
}  # fmt: skip


def hidden(shape, size=96):
    """Plain colours, and a shape in alpha."""
    picture = draw(shape, "red", "white", height=size, width=size, flat=True)
    mask = ((picture[1] < 0.6).numpy() * 255).astype(np.uint8)
    return np.dstack([np.full((size, size, 3), (200, 30, 30), np.uint8), mask])


def vpx(kind, frame, count=3, *, said="1"):
    """A WebM as browsers take it: its track says that there is alpha, if it is said."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream(kind, rate=25, options={"auto-alt-ref": "0"})
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = "yuva420p"
        stream.metadata["alpha_mode"] = said
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode())
    return file.getvalue()


def alpha_film(name, frame):
    kind, codec, pixels = WITH_ALPHA[name]
    return vpx(codec, frame) if kind == "webm" else video(kind, [frame] * 3, codec=codec, pixels=pixels)


@pytest.mark.parametrize("shape", ["triangle", "circle"])
@pytest.mark.parametrize("name", sorted(WITH_ALPHA))
def test_a_shape_in_alpha_is_seen(demo, name, shape):
    try:
        data = alpha_film(name, hidden(shape))
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV does not encode {name}: {error}")
    frames = list(decoded(data).frames())
    assert [index for index, _ in frames] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert any(verdict.flagged for verdict in demo.check([frame for _, frame in frames])) == (shape == "triangle")


@pytest.mark.skipif(not hasattr(av.Packet, "has_sidedata"), reason="this PyAV does not show what is beside a frame")
@pytest.mark.parametrize("kind", ["libvpx", "libvpx-vp9"])
def test_a_tag_that_says_there_is_no_alpha_hides_none(demo, kind):
    data = vpx(kind, hidden("triangle"), said="0")
    with av.open(io.BytesIO(data)) as container:
        assert {key.lower(): value for key, value in container.streams.video[0].metadata.items()}["alpha_mode"] == "0"
    assert any(verdict.flagged for verdict in demo.check([frame for _, frame in decoded(data).frames()]))


def test_alpha_without_a_decoder_that_keeps_it_is_an_error(monkeypatch):
    from nsfw_guard.images import film_alpha

    data = vpx("libvpx-vp9", hidden("circle"))
    monkeypatch.setitem(film_alpha._WITH_ALPHA, "vp9", "libvpx-of-tomorrow")
    with pytest.raises(
        ImageError, match="x cannot be decoded: it has alpha, and this PyAV has no decoder libvpx-of-tomorrow"
    ):
        decoded(data)


def test_alpha_that_the_track_tells_of_and_that_does_not_come_out_is_an_error():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.metadata["alpha_mode"] = "1"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(gray(9), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(ImageError, match=r"x cannot be decoded: PyAV leaves out its alpha \(codec mpeg4\)"):
        decoded(file.getvalue())


def test_alpha_in_a_further_layer_of_hevc_is_an_error_where_it_is_left_out():
    """No encoder here writes one; what the stream says, and frames without alpha, are enough."""
    with av.open(io.BytesIO(video("mp4", RAMP[:1]))) as container:
        packet = next(container.demux(video=0))
        context = SimpleNamespace(name="hevc", extradata=bytes(22) + b"\x4e\x01\xa5\x04\0\0\x7f\x90\x80")
        stream = SimpleNamespace(index=0, codec_context=context, metadata={})
        layered = SimpleNamespace(stream=stream, decode=lambda: packet.decode() + packet.stream.decode(None))
        decoder = Decoder(container, layered, DecodeSettings(), "x")
        with pytest.raises(ImageError, match=r"x cannot be decoded: PyAV leaves out its alpha \(codec hevc\)"):
            list(decoder.frames(layered))


def test_a_rows_frames_are_frames_not_looks(demo, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mov").write_bytes(alpha_film("png", hidden("triangle")))
    run_scan(demo, parse_sources([str(tmp_path / "in")]), tmp_path / "out", ScanSettings(workers=2))
    (row,) = rows_of(tmp_path / "out").values()
    assert (row.flagged, row.frames, row.kind) == (True, 3, "video")


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "mpegts"])
def test_frames_are_counted_and_read_by_index(kind):
    data = video(kind, RAMP)
    reader = FilmReader(data, DecodeSettings(), name="x")
    assert count_frames(data, DecodeSettings(), name="x") == reader.count == 11
    for index in (0, 1, 5, 10, 3, 10):
        (look,) = reader.looks(index)
        assert abs(look.float().mean() - (10 + 20 * index)) < 6
    with pytest.raises(ImageError, match=r"x has no frame 11\."):
        reader.looks(11)
    with pytest.raises(ImageError, match="x has 11 frames to be looked at; the limit is 10"):
        count_frames(data, DecodeSettings(max_frames=10), name="x")


@pytest.mark.parametrize(("count", "came"), [(10, "10 frames, of which more"), (12, "12 frames, of which only 11")])
def test_other_frames_than_counted_are_an_error(count, came):
    reader = FilmReader(video("mp4", RAMP), DecodeSettings(), name="x")
    reader.count = count
    with pytest.raises(ImageError, match=f"x cannot be decoded: it counts {came} came out"):
        reader.looks(count - 1)


def test_whether_films_can_be_decoded(monkeypatch):
    assert film_support()
    monkeypatch.setitem(sys.modules, "av", None)
    assert not film_support()


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "webm", "avi"])
@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_videos_that_are_cut_off_are_errors(kind, options):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    data = video(kind, list(noise), options=options if kind in ("mp4", "mov") else {})
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        with pytest.raises(ImageError) as caught:
            list(decoded(data[: int(len(data) * share)]).frames())
        assert "\n" not in str(caught.value) and "<" not in str(caught.value)


def test_a_damaged_frame_is_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    data = bytearray(video("mp4", list(noise)))
    at = len(data) // 2
    data[at : at + 400] = bytes(400)
    with pytest.raises(ImageError, match="x cannot be decoded"):
        list(decoded(bytes(data)).frames())


def test_a_transport_stream_with_a_gap_is_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (12, 192, 256, 3), dtype=np.uint8)
    data = video("mpegts", list(noise))
    at = len(data) // 188 // 2 * 188
    with pytest.raises(ImageError, match=r"x cannot be decoded: frame \d+ is damaged"):
        list(decoded(data[:at] + data[at + 188 :]).frames())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_matroska_whose_parts_are_not_where_it_says_is_an_error(share):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    data = video("webm", list(noise))
    at = int(len(data) * share)
    with pytest.raises(ImageError, match="x is a video that is (damaged|cut off)"):
        decoded(data[:at] + b"inserted" + data[at:])


def test_a_block_of_a_matroska_that_is_none_is_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    data = bytearray(video("webm", list(noise)))
    block = data.index(b"\xe7\x81\x00\xa3") + 3  # after the time of the cluster
    extra = 8 - data[block + 1].bit_length()  # bytes of the length beyond its first
    length = int.from_bytes(data[block + 1 : block + 2 + extra], "big") & (2 ** (7 * (extra + 1)) - 1)
    following = block + 2 + extra + length
    assert data[following] == 0xA3
    data[following] = 0x91
    with pytest.raises(ImageError, match="x is a video that is damaged: its parts are not where it says"):
        decoded(bytes(data))


def test_frames_that_do_not_come_out_are_an_error():
    data = bytearray(video("mp4", RAMP))
    at = data.index(b"stsc") + 4 + 8 + 4
    assert int.from_bytes(data[at : at + 4], "big") == 11  # frames in the one chunk that there is
    data[at : at + 4] = (6).to_bytes(4, "big")
    with pytest.raises(ImageError, match="x cannot be decoded: 6 of 11 frames of stream 0 came out"):
        list(decoded(bytes(data)).frames())


def test_what_an_edit_list_leaves_out_is_looked_at_too():
    data = bytearray(video("mp4", [gray(250)] * 5 + [gray(20)] * 6))
    at = data.index(b"elst") + 4 + 8
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    data[at + 4 : at + 8] = (scale * 6 // 25).to_bytes(4, "big")  # begins with the seventh frame
    seen = brightness(decoded(bytes(data)).frames())
    assert len(seen) == 11
    assert seen[0] > 230


@pytest.mark.parametrize("start", [b"#EXTM3U\n#EXTINF:1,\n", b"ffconcat version 1.0\nfile "])
def test_playlists_open_nothing(start, tmp_path):
    (tmp_path / "inner.mp4").write_bytes(video("mp4", RAMP))
    data = start + f"{tmp_path}/inner.mp4\n".encode()
    for name in ("x.mp4", "x.m3u8", "x"):
        with pytest.raises(ImageError, match="x.* is neither a picture nor a video"):
            decoded(data, name=name)


def test_limits():
    data = video("mp4", RAMP)
    with pytest.raises(ImageError, match="x has more than 3 frames to be looked at"):
        list(decoded(data, max_frames=3).frames())
    assert len(list(decoded(data, max_frames=3, every=5).frames())) == 3
    with pytest.raises(ImageError, match="x has frames of 64x48, more than 3071 pixels"):
        decoded(data, max_pixels=64 * 48 - 1)
    assert decoded(data, max_pixels=64 * 48, max_bytes=1).kind == "video"


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.mp4", "x.gif"])
def test_the_content_decides_not_the_name(name):
    assert decoded(video("mp4", RAMP), name=name).kind == "video"


def test_without_pyav_the_error_says_what_to_install(monkeypatch):
    data = video("mp4", RAMP)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"a\.mp4: videos need PyAV: pip install 'nsfw-guard\[scan\]'"):
        decoded(data, name="a.mp4")


def test_frames_are_tensors_that_the_guard_takes():
    ((_, frame), *_) = decoded(video("mp4", RAMP)).frames()
    assert frame.dtype == torch.uint8
    assert frame.shape == (3, 48, 64)
