"""Colour management without a browser: what files say, and what is shown then."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from profiles import (
    ADOBE,
    P3,
    SRGB,
    chrm,
    chunk,
    cicp,
    cmyk_profile,
    columns,
    decoded,
    gama,
    gamma_curve,
    gray_profile,
    iccp,
    matrix_profile,
    matrix_tags,
    profile,
    rgb_lut_tag,
    table_curve,
    text,
    with_chunks,
    xyz,
)

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import icc
from nsfw_guard.images.color import Coding, array_as_shown, as_shown, coding_of, differ, profile_of
from nsfw_guard.images.pictures import pixels_of

RAMP = np.stack([np.tile(np.arange(256, dtype=np.uint8), (16, 1))] * 3, axis=-1)
STEPS = np.linspace(0, 65535, 256)
LINEAR = matrix_profile(SRGB, gamma_curve(1.0))
PICTURE = Image.fromarray(RAMP)


def encode(picture, kind, **more):
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


PNG = encode(PICTURE, "PNG")


def shown_of(data):
    """What a file's picture is shown as; None: as stored."""
    picture = Image.open(io.BytesIO(data))
    return as_shown(picture, profile=profile_of(picture, data), coding=coding_of(picture, data))


def level(shown, stored):
    """What a stored level of gray is shown as."""
    return np.asarray(shown)[0, stored].tolist()


def screen(light):
    """The level at which an sRGB screen shows linear light."""
    return round(255 * (light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055))


def hidden_triangle(exponent):
    """A triangle that is seen where numbers mean light to the power of this; as stored it is nearly white."""
    wanted = np.asarray(draw("triangle", "red", "white", height=128, width=128).mul(255).byte().movedim(0, -1))
    return Image.fromarray(np.round(255 * decoded(wanted / 255) ** (1 / exponent)).clip(1, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("save", "exponent"),
    [
        (lambda picture: encode(picture, "PNG", icc_profile=matrix_profile(SRGB, gamma_curve(90))), 90),
        (lambda picture: encode(picture, "JPEG", quality=98, icc_profile=matrix_profile(SRGB, gamma_curve(90))), 90),
        (lambda picture: encode(picture, "WEBP", lossless=True, icc_profile=matrix_profile(SRGB, gamma_curve(90))), 90),
        (lambda picture: encode(picture, "TIFF", icc_profile=matrix_profile(SRGB, gamma_curve(90))), 90),
        (lambda picture: with_chunks(encode(picture, "PNG"), gama(0.02)), 50),
        (lambda picture: with_chunks(encode(picture, "PNG"), gama(0.02), chrm(P3)), 50),
    ],
)
def test_a_triangle_that_only_managed_colours_show(save, exponent):
    guard = NsfwGuard("demo")
    data = save(hidden_triangle(exponent))
    shown, warning = shown_of(data)
    assert warning is None
    assert guard.check(pixels_of(Image.open(io.BytesIO(data)), "it"))[0].score < 0.5  # as stored
    assert guard.check(shown)[0].score > 0.9
    assert guard.check(data)[0].flagged


@pytest.mark.parametrize(
    "plain",
    [
        matrix_profile(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        matrix_profile(SRGB, table_curve(decoded(np.linspace(0, 1, 1024)))),
        matrix_profile(tags={b"D2B0": rgb_lut_tag(curves=65535 - np.tile(STEPS, (3, 1)))}),  # browsers know no D2B
    ],
)
def test_profiles_of_srgb_change_nothing(plain):
    assert as_shown(PICTURE, profile=plain) == (None, None)


def test_what_a_profile_calls_itself_does_not_count():
    liar = matrix_profile(SRGB, gamma_curve(90), tags={b"desc": text("sRGB IEC61966-2.1"), b"cprt": text("sRGB")})
    shown, _ = as_shown(PICTURE, profile=liar)
    assert level(shown, 200) == [0, 0, 0]
    assert as_shown(PICTURE, profile=matrix_profile(tags={b"desc": text("gamma 90")})) == (None, None)


def spiked(at):
    curve = decoded(np.linspace(0, 1, 256))
    curve[at] = 0
    return curve


@pytest.mark.parametrize("at", [1 << power for power in range(3, 8)] + [3, 77, 254])
def test_one_level_that_is_not_as_stored(at):
    table = np.tile(STEPS, (3, 1))
    table[:, at] = 0
    for one in (
        profile({b"A2B0": rgb_lut_tag(curves=table)}, pcs=b"Lab "),
        profile({b"A2B1": rgb_lut_tag(curves=table)} | matrix_tags(), pcs=b"Lab "),
        matrix_profile(SRGB, table_curve(spiked(at))),
        matrix_profile(SRGB, (table_curve(spiked(at)),) * 3, tags={b"A2B2": rgb_lut_tag()}),
    ):
        shown, _ = as_shown(PICTURE, profile=one)
        assert max(level(shown, at)) <= 2
        assert min(level(shown, at - 1)) >= at - 5


def test_a_matrix_that_hides_behind_clipping():
    # Red takes green away, which is seen only where there is green.
    tags = matrix_tags()
    primaries = columns(SRGB)
    tags[b"rXYZ"], tags[b"gXYZ"] = xyz(primaries[:, 0] - 0.5 * primaries[:, 1]), xyz(1.5 * primaries[:, 1])
    shown, _ = as_shown(PICTURE, profile=profile(tags))
    assert shown is not None


def test_a_table_for_profiles_too_long_for_littlecms():
    shown, warning = as_shown(PICTURE, profile=matrix_profile(SRGB, table_curve(np.linspace(0, 1, 60_000) ** 3)))
    assert warning is None
    assert level(shown, 128)[0] == pytest.approx(screen((128 / 255) ** 3), abs=1)


def test_more_tags_than_littlecms_takes():
    tags = {b"t%03d" % index: text("x") for index in range(300)} | matrix_tags(curve=gamma_curve(1.0))
    shown, warning = as_shown(PICTURE, profile=profile(tags))
    assert warning is None
    assert level(shown, 64)[0] == pytest.approx(screen(64 / 255), abs=1)


def test_kinds_of_profiles_that_littlecms_does_not_take_for_pictures():
    for kind in (b"abst", b"link", b"nmcl", b"zzzz"):
        shown, _ = as_shown(PICTURE, profile=matrix_profile(SRGB, gamma_curve(1.0), kind=kind))
        assert level(shown, 64)[0] == pytest.approx(screen(64 / 255), abs=1)


def changed(data, at, new):
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"", "cut off"),
        (b"\0" * 5000, "no ICC profile"),
        (LINEAR[:100], "cut off"),
        (LINEAR[:-60], "bytes"),
        (changed(LINEAR, 0, b"\xff" * 4), "4294967295 bytes"),
        (changed(LINEAR, 128, b"\xff" * 4), "4294967295 tags"),
        (changed(LINEAR, 132 + 4, b"\xff" * 8), "outside"),
        (changed(LINEAR, 8, b"\5"), "version is 5"),
        (changed(LINEAR, 16, b"XYZ "), "XYZ colours"),
        (changed(LINEAR, 20, b"GRAY"), "connects"),
        (changed(LINEAR, 68, b"\0" * 12), "D50"),
        (profile({name: tag for name, tag in matrix_tags().items() if name != b"gTRC"}), "gTRC"),
        (matrix_profile(SRGB, b"zzzz" + bytes(8)), ""),
        (matrix_profile(SRGB, b"curv" + bytes(4) + b"\xff" * 4), ""),
        (profile({b"A2B0": rgb_lut_tag()[:500]}, pcs=b"Lab "), ""),
        (profile({b"A2B0": b"mft2" + bytes(40)}, pcs=b"Lab "), ""),
        (matrix_profile(tags={b"B2A0": b"zzzz"}), "B2A0"),
    ],
)
def test_broken_profiles_are_named(broken, why):
    shown, warning = as_shown(PICTURE, profile=broken)
    assert shown is None
    assert "refused" in warning and why in warning


@pytest.mark.parametrize(
    ("mode", "one", "kind"),
    [
        ("RGB", gray_profile(gamma_curve(1.0)), "gray"),
        ("RGB", cmyk_profile(grid=3), "CMYK"),
        ("L", cmyk_profile(grid=3), "CMYK"),
        ("CMYK", LINEAR, "RGB"),
        ("CMYK", gray_profile(gamma_curve(1.0)), "gray"),
        ("P", gray_profile(gamma_curve(1.0)), "gray"),
    ],
)
def test_profiles_for_other_pictures_change_nothing(mode, one, kind):
    shown, warning = as_shown(PICTURE.convert(mode), profile=one)
    assert shown is None
    assert f"is for {kind} pictures" in warning


def test_every_mode():
    light = screen(128 / 255)
    alpha = PICTURE.convert("RGBA")
    alpha.putalpha(7)
    exact = (PICTURE, alpha, PICTURE.convert("RGBX"), PICTURE.convert("RGBA").convert("RGBa"), alpha.convert("LA"))
    exact = (*exact, PICTURE.convert("L"), PICTURE.convert("LA").convert("La"), PICTURE.convert("YCbCr"))
    palette = PICTURE.convert("L").convert("P")
    for picture in (*exact, palette, palette.convert("PA"), PICTURE.convert("HSV")):
        shown, _ = as_shown(picture, profile=LINEAR)
        assert (shown.mode, shown.size) == ("RGB", picture.size)
        assert level(shown, 128) == pytest.approx([light] * 3, abs=1), picture.mode
        shown, _ = as_shown(picture, coding=Coding(8))
        assert level(shown, 128) == pytest.approx([light] * 3, abs=1), picture.mode
    gray = gray_profile(gamma_curve(1.0))
    sixteen = Image.fromarray(RAMP[..., 0].astype(np.uint16) * 257)
    for picture in (PICTURE.convert("L"), PICTURE.convert("LA"), sixteen, sixteen.convert("I")):
        shown, _ = as_shown(picture, profile=gray)
        assert level(shown, 128) == pytest.approx([light] * 3, abs=1)
    assert as_shown(Image.new("1", (2, 2)), profile=gray)[0].mode == "RGB"


def test_cmyk():
    ink = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    shown, _ = as_shown(ink, profile=cmyk_profile())
    assert np.abs(level(shown, 0) - np.array([255, 0, 0])).max() < 6
    shown, _ = as_shown(ink, profile=cmyk_profile(invert=True))
    assert np.abs(level(shown, 0) - np.array([0, 255, 255])).max() < 6


def test_wide_primaries():
    green = Image.new("RGB", (2, 2), (0, 200, 0))
    for one in (matrix_profile(P3), matrix_profile(ADOBE, gamma_curve(2.2))):
        red, greens, _ = level(as_shown(green, profile=one)[0], 0)
        assert red == 0 and greens >= 200
    by_codes = as_shown(Image.fromarray(RAMP[:, ::-1] // 2 + RAMP // 3), coding=Coding(13, 12))[0]
    by_profile = as_shown(Image.fromarray(RAMP[:, ::-1] // 2 + RAMP // 3), profile=matrix_profile(P3))[0]
    assert np.abs(np.asarray(by_codes).astype(int) - np.asarray(by_profile)).max() <= 1


def test_the_cache_is_bounded():
    icc._read_cached.cache_clear()
    for index in range(100):
        as_shown(PICTURE, profile=matrix_profile(tags={b"t000": text(str(index))}))
    assert icc._read_cached.cache_info().currsize <= 16
    icc._read_cached.cache_clear()
    as_shown(PICTURE, profile=matrix_profile(tags={b"t000": bytes(icc._CACHED_SIZE)}))
    assert icc._read_cached.cache_info().currsize == 0


def test_the_picture_and_its_info_stay():
    picture = Image.open(io.BytesIO(encode(PICTURE, "PNG", icc_profile=LINEAR)))
    shown, _ = as_shown(picture, profile=profile_of(picture, None))
    assert picture.info["icc_profile"] == LINEAR and "icc_profile" not in shown.info
    assert (np.asarray(picture) == RAMP).all()


@pytest.mark.parametrize(
    ("chunks", "coding"),
    [
        ((), None),
        ((gama(0.45455),), None),
        ((gama(0.45),), None),
        ((chrm(P3),), None),  # says nothing by itself
        ((gama(0.2),), Coding(gamma=0.2)),
        ((gama(0.45455), chrm(P3)), Coding(primaries=P3, gamma=0.45455)),
        ((gama(0.2), gama(1.0)), Coding(gamma=0.2)),
        ((chunk(b"sRGB", b"\0"), gama(0.2)), None),
        ((chunk(b"sRGB", b"\7"), gama(0.2)), Coding(gamma=0.2)),
        ((iccp(matrix_profile()), gama(0.2)), None),
        ((iccp(gray_profile(gamma_curve(1.0))), gama(0.2)), None),
        ((iccp(LINEAR[:-60]), gama(0.2)), Coding(gamma=0.2)),
        ((iccp(changed(matrix_profile(), 0, b"\xff" * 4)), gama(0.2)), Coding(gamma=0.2)),
        ((chunk(b"iCCP", b"x\0\0zzz"), gama(0.2)), Coding(gamma=0.2)),
        ((cicp(9, 16), iccp(LINEAR), gama(0.2)), Coding(16, 9)),
        ((cicp(1, 13), iccp(LINEAR), gama(0.2)), None),
        ((cicp(1, 1), iccp(LINEAR)), Coding(primaries=1, gamma=1 / 2.4)),
        ((cicp(12, 13),), Coding(13, 12)),
        ((cicp(1, 0), gama(0.2)), Coding(gamma=0.2)),
        ((cicp(1, 9), gama(0.2)), Coding(gamma=0.2)),
        ((cicp(2, 8), gama(0.2)), Coding(gamma=0.2)),
        ((cicp(1, 8, 0, 0), gama(0.2)), Coding(gamma=0.2)),
        ((chunk(b"cICP", b"\1"), gama(0.2)), Coding(gamma=0.2)),
    ],
)
def test_chunks_of_png(chunks, coding):
    data = with_chunks(PNG, *chunks)
    assert coding_of(Image.open(io.BytesIO(data)), data) == coding


def test_png_chunks_that_do_not_count():
    picture = Image.open(io.BytesIO(PNG))
    wrong = gama(0.2)[:-1] + bytes([gama(0.2)[-1] ^ 1])
    for data in (with_chunks(PNG, wrong), PNG[:-12] + gama(0.2) + PNG[-12:], with_chunks(PNG, chunk(b"gAMA", b"1"))):
        assert coding_of(picture, data) is None
    two = with_chunks(PNG, iccp(LINEAR), iccp(matrix_profile()))
    assert profile_of(picture, two) == LINEAR
    assert profile_of(picture, with_chunks(PNG, cicp(1, 13), iccp(LINEAR))) is None
    assert profile_of(picture, with_chunks(PNG, cicp(1, 0), iccp(LINEAR))) == LINEAR


def test_what_pillow_knows_without_the_file():
    data = with_chunks(PNG, gama(0.2), chrm(P3))
    coding = coding_of(Image.open(io.BytesIO(data)), None)
    assert coding.gamma == 0.2 and coding.primaries == pytest.approx(P3)
    data = with_chunks(PNG, chunk(b"sRGB", b"\0"), gama(0.2))
    assert coding_of(Image.open(io.BytesIO(data)), None) is None
    picture = PICTURE.copy()
    picture.info["nclx_profile"] = {"color_primaries": 9, "transfer_characteristics": 16}
    assert coding_of(picture, None) == Coding(16, 9)
    picture.info["icc_profile"] = matrix_profile()
    assert coding_of(picture, None) is None
    picture.info |= {"icc_profile": b"none", "nclx_profile": None, "gamma": "x"}
    assert coding_of(picture, None) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_gammas_are_named(bad):
    shown, warning = as_shown(PICTURE, coding=Coding(gamma=bad))
    assert shown is None and "gamma" in warning


@pytest.mark.parametrize(
    "coding",
    [
        Coding(gamma=0.2, primaries=(0.3,) * 8),
        Coding(gamma=0.2, primaries=(0.0,) * 8),
        Coding(gamma=0.2, primaries=(float("nan"),) * 8),
        Coding(gamma=0.2, primaries=(2.0, 3.0, *P3[2:])),
        Coding(gamma=0.2, primaries=P3[:5]),
        Coding(transfer=8, primaries=77),
        Coding(transfer=200),
    ],
)
def test_nonsense_codings_are_named(coding):
    shown, warning = as_shown(PICTURE, coding=coding)
    assert shown is None and "nonsense" in warning
    assert array_as_shown(RAMP, coding) is None


def test_extreme_gammas():
    for exponent in (1e-5, 1e-3, 0.01, 100.0, 40_000.0):
        shown, _ = as_shown(PICTURE, coding=Coding(gamma=exponent))
        assert level(shown, 0) == [0] * 3 and level(shown, 255) == [255] * 3
        assert level(shown, 250)[0] == screen((250 / 255) ** (1 / exponent))


def box(name, *contents, at=0):
    body = bytes(at) + b"".join(contents)
    return struct.pack(">I4s", 8 + len(body), name) + body


def nclx(primaries, transfer):
    return box(b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, 0, 128))


def still(*properties, mine, item=7, wide=False, brand=b"avif"):
    size = ">I" if wide else ">H"
    pitm = box(b"pitm", bytes([wide, 0, 0, 0]) + struct.pack(size, item))
    rows = b"".join(
        struct.pack(size, which)
        + bytes([len(numbers)])
        + b"".join(struct.pack(">H", 0x8000 | number) if wide else bytes([0x80 | number]) for number in numbers)
        for which, numbers in ((1, [1]), (item, mine))
    )
    ipma = box(b"ipma", bytes([wide, 0, 0, wide]) + struct.pack(">I", 2) + rows)
    meta = box(b"meta", pitm, box(b"iprp", box(b"ipco", *properties), ipma), at=4)
    return box(b"ftyp", brand + bytes(4)) + meta


SIZE = box(b"ispe", bytes(12))


@pytest.mark.parametrize(
    ("data", "coding"),
    [
        (still(SIZE, nclx(9, 16), mine=[1, 2]), Coding(16, 9)),
        (still(nclx(1, 13), SIZE, nclx(9, 16), mine=[2, 3]), Coding(16, 9)),  # the first is a thumbnail's
        (still(nclx(9, 16), SIZE, nclx(1, 13), mine=[2, 3]), None),
        (still(nclx(1, 13), SIZE, nclx(9, 18), mine=[2, 3], wide=True, item=70_000), Coding(18, 9)),
        (still(SIZE, nclx(9, 16), mine=[1]), Coding(16, 9)),  # the tiles'
        (still(SIZE, nclx(1, 1), mine=[1, 2]), None),
        (still(SIZE, nclx(2, 2), mine=[1, 2]), None),
        (still(SIZE, box(b"colr", b"prof" + LINEAR), mine=[1, 2]), None),
        (still(SIZE, box(b"colr", b"nclx\0"), mine=[1, 2, 9]), None),
        (still(SIZE, nclx(1, 13), mine=[1, 2], brand=b"avis"), None),
    ],
)
def test_boxes_of_stills(data, coding):
    assert coding_of(PICTURE, data) == coding


def test_boxes_of_sequences():
    entry = box(b"av01", nclx(9, 16), at=78)
    stbl = box(b"stbl", box(b"stsd", entry, at=8))
    moov = box(b"moov", box(b"mvhd"), box(b"trak", box(b"mdia", box(b"minf", stbl))))
    data = still(SIZE, nclx(1, 13), mine=[1, 2], brand=b"avis") + moov
    assert coding_of(PICTURE, data) == Coding(16, 9)
    assert coding_of(PICTURE, still(SIZE, nclx(1, 13), mine=[1, 2]) + moov) is None


def test_the_bitstream_counts_where_no_box_does():
    header = f"000 1 1 00000 0101 0101 {0:012b} 000 000 0 0 1 {9:08b} {16:08b} {9:08b} 1".replace(" ", "")
    stream = int(header.ljust(-(-len(header) // 8) * 8, "0"), 2).to_bytes(-(-len(header) // 8), "big")
    stream = b"\x12\0\x0a" + bytes([len(stream)]) + stream
    head = box(b"ftyp", b"avif" + bytes(4))

    def meta(at):
        return box(b"meta", box(b"iloc", struct.pack(">4x2BHHHHII", 0x44, 0, 1, 1, 0, 1, at, len(stream))), at=4)

    start = len(head) + len(meta(0))
    assert coding_of(PICTURE, head + meta(start) + stream) == Coding(16, 9)
    named = still(SIZE, nclx(1, 13), mine=[1, 2])
    assert coding_of(PICTURE, named + stream) is None
    for cut in range(len(stream)):
        assert coding_of(PICTURE, head + meta(start) + stream[:cut]) in (None, Coding(16, 9))
    for at in (0, start - 1, 2**32 - 1):
        assert coding_of(PICTURE, head + meta(at) + stream) is None


def test_broken_boxes_end():
    whole = still(SIZE, nclx(9, 16), mine=[1, 2])
    for cut in range(len(whole)):
        coding_of(PICTURE, whole[:cut])
        coding_of(PICTURE, whole[:cut] + b"\0" * 64)
        coding_of(PICTURE, whole[:cut] + b"\xff" * 64)
        coding_of(PICTURE, changed(whole, cut, b"\0"))
    endless = box(b"ftyp", b"avif" + bytes(4)) + b"\0\0\0\1meta" + b"\0" * 8 + b"\0\0\0\x08free" * 100_000
    assert coding_of(PICTURE, endless) is None


def test_profiles_in_bmp():
    bmp = encode(PICTURE, "BMP")
    head = bytearray(124)
    head[:40] = bmp[14:54]
    pixels = bmp[54:]
    head[:4], head[56:60] = struct.pack("<I", 124), b"DEBM"
    head[112:120] = struct.pack("<II", 124 + len(pixels), len(LINEAR))
    data = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(LINEAR), 0, 0, 138) + bytes(head) + pixels + LINEAR
    picture = Image.open(io.BytesIO(data))
    assert profile_of(picture, data) == LINEAR
    assert profile_of(picture, bmp) is None
    assert profile_of(picture, data[:120]) is None


@pytest.mark.parametrize("transfer", [None, 1, 2, 6, 13, 14, 15])
@pytest.mark.parametrize("primaries", [None, 1, 2, 5, 6, 7])
def test_ordinary_films_are_shown_as_stored(transfer, primaries):
    assert array_as_shown(RAMP, Coding(transfer, primaries)) is None


@pytest.mark.parametrize(
    ("coding", "stored", "light"),
    [
        (Coding(4), 128, (128 / 255) ** 2.2),
        (Coding(5), 128, (128 / 255) ** 2.8),
        (Coding(8), 128, 128 / 255),
        (Coding(9), 128, 10 ** (2 * (128 / 255 - 1))),
        (Coding(10), 128, 10 ** (2.5 * (128 / 255 - 1))),
        (Coding(17), 128, 52.37 / 48 * (128 / 255) ** 2.6),
        (Coding(17), 255, 1.0),
        (Coding(16, 9), 148, 0.4965 * 203 / 203),  # 58 %: a diffuse white
        (Coding(18, 9), 191, 0.4965 * 203 / 203),  # 75 %
        (Coding(16, 9), 192, 1.0),  # 75 %: some 1000 cd/m²
        (Coding(18, 9), 255, 1.0),
        (Coding(13, 9), 128, decoded(128 / 255)),
    ],
)
def test_films_as_shown(coding, stored, light):
    # Grays stay gray in all primaries.
    assert level(array_as_shown(RAMP, coding), stored) == pytest.approx([screen(light)] * 3, abs=2)


def test_saturated_films_as_shown():
    green = np.full((2, 2, 3), (0, 150, 0), np.uint8)
    for coding in (Coding(1, 9), Coding(1, 12), Coding(13, 11), Coding(None, 10)):
        red, greens, blue = level(array_as_shown(green, coding), 0)
        assert red == 0 and greens > 150 and blue <= 1
    assert (green == (0, 150, 0)).all()


def test_large_frames_are_shown_in_bands():
    frame = np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    shown = array_as_shown(frame, Coding(8, 12))
    for top in (0, 130, 131, 699):
        assert (shown[top : top + 1] == array_as_shown(frame[top : top + 1], Coding(8, 12))).all()


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda picture: picture, False),
        (lambda picture: picture + 4, False),
        (lambda picture: picture + 5, True),
        (lambda picture: picture - 5, True),
        (lambda picture: picture.clone().index_fill_(1, torch.arange(0, 600, 30), 255), True),
    ],
)
def test_pictures_that_differ(change, answer):
    picture = torch.full((3, 600, 500), 100, dtype=torch.uint8)
    assert differ(picture, change(picture)) is answer
    assert differ(change(picture), picture) is answer


def test_a_small_shape_in_a_large_picture_differs():
    picture = torch.full((3, 1000, 1000), 100, dtype=torch.uint8)
    shape = picture.clone()
    shape[:, 400:450, 700:750] = 250
    assert differ(picture, shape)
    speck = picture.clone()
    speck[:, 400, 700] = 250
    assert not differ(picture, speck)


def test_fine_patterns_do_not_cancel_out():
    picture = torch.full((1, 400, 400), 128, dtype=torch.uint8)
    board = ((torch.arange(400)[:, None] + torch.arange(400)) % 2 * 20 + 118)[None].to(torch.uint8)
    assert differ(picture, board)


def test_small_and_gray_pictures_differ():
    for size in ((1, 1), (1, 9), (3, 2), (9, 1)):
        black = torch.zeros(1, *size, dtype=torch.uint8)
        assert differ(black, torch.full((3, *size), 9, dtype=torch.uint8))
        assert not differ(black, torch.zeros(3, *size, dtype=torch.uint8))


def test_a_profile_of_code_points():
    tag = b"cicp" + bytes(4)
    shown, _ = as_shown(PICTURE, profile=matrix_profile(tags={b"cicp": tag + bytes((1, 8, 0, 1))}))
    assert level(shown, 64)[0] == pytest.approx(screen(64 / 255), abs=1)
    plain = matrix_profile(SRGB, gamma_curve(1.0), tags={b"cicp": tag + bytes((1, 13, 0, 1))})
    assert as_shown(PICTURE, profile=plain) == (None, None)
    for codes in ((1, 13, 0, 0), (1, 13, 1, 1), (1, 0, 0, 1), (1, 9, 0, 1), (2, 13, 0, 1)):
        counts_not = matrix_profile(SRGB, gamma_curve(1.0), tags={b"cicp": tag + bytes(codes)})
        assert as_shown(PICTURE, profile=counts_not)[0] is not None
