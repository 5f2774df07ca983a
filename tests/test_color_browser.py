"""Colours as Chromium shows them: needs playwright, and chromium (or CHROMIUM)."""

from __future__ import annotations

import base64
import io
import os
import struct

import numpy as np
import pytest
from chromium import CHROMIUM, SWITCHES
from PIL import Image, features
from profiles import (
    ADOBE,
    P3,
    SRGB,
    chrm,
    chunk,
    cicp,
    cmyk_profile,
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
)

from nsfw_guard.images.color import as_shown, coding_of, profile_of

pytestmark = pytest.mark.skipif(
    not os.path.exists(CHROMIUM), reason="needs chromium: set CHROMIUM if it is not /usr/bin/chromium"
)
PAGE = "<style>body{{margin:0}} img{{display:block}}</style><img src='data:{kind};base64,{data}'>"
LINEAR = matrix_profile(SRGB, gamma_curve(1.0))
GRAY = gray_profile(gamma_curve(1.0))
INVERSE = rgb_lut_tag(curves=65535 - np.tile(np.linspace(0, 65535, 256), (3, 1)))


def chart():
    """All levels of gray, of each channel and of mixtures, in rows of 8."""
    level = np.arange(256, dtype=np.uint8)
    none, full = np.zeros(256, np.uint8), np.full(256, 255, np.uint8)
    rows = [
        (level,) * 3,
        (level, none, none),
        (none, level, none),
        (none, none, level),
        (level, level[::-1], full // 2),
    ]
    rows += [(full, level, level), (level, full, level), (level, level, full), (level, level // 2, level[::-1])]
    return Image.fromarray(np.repeat(np.stack([np.stack(row, axis=-1) for row in rows]), 8, axis=0))


CHART = chart()


def encode(kind, picture=CHART, **more):
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


def png(*chunks, picture=CHART):
    return with_chunks(encode("PNG", picture), *chunks)


def jpeg(data, mode="RGB"):
    return encode("JPEG", CHART.convert(mode), quality=100, subsampling=0, icc_profile=data)


def avif(primaries, transfer):
    data = encode("AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"nclx") + 4
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def bare_avif(transfer):
    """One whose bitstream names the transfer, and no box."""
    data = avif(1, 13).replace(b"colrnclx", b"freenclx")
    at = data.index(b"mdat") + 4
    bits = f"{int.from_bytes(data[at : at + 64], 'big'):0512b}"
    named = bits.index(f"1{1:08b}{13:08b}{6:08b}") + 9
    bits = bits[:named] + f"{transfer:08b}" + bits[named + 8 :]
    return data[:at] + int(bits, 2).to_bytes(64, "big") + data[at + 64 :]


def code_points(*codes, **more):
    return matrix_profile(tags={b"cicp": b"cicp" + bytes(4) + bytes(codes)}, **more)


def spiked():
    curve = np.linspace(0, 1, 256) ** 2.2
    curve[100] = 1
    return table_curve(curve)


FILES = {
    "PNG of no profile": lambda: png(),
    **{f"PNG gAMA {one}": (lambda one=one: png(gama(one))) for one in (0.01, 0.023, 0.2, 0.43, 0.45, 1, 10, 0)},
    **{f"PNG gAMA {one} cHRM": (lambda one=one: png(gama(one), chrm(P3))) for one in (0.01, 0.45455, 1, 0)},
    "PNG cHRM": lambda: png(chrm(P3)),
    "PNG cHRM nonsense": lambda: png(gama(0.2), chrm((2.0, 3.0, *P3[2:]))),
    "PNG gAMA gray": lambda: png(gama(0.2), picture=CHART.convert("L")),
    "PNG gAMA palette": lambda: png(gama(0.2), picture=CHART.convert("P")),
    "PNG sRGB gAMA": lambda: png(chunk(b"sRGB", b"\0"), gama(0.2)),
    "PNG sRGB nonsense gAMA": lambda: png(chunk(b"sRGB", b"\7"), gama(0.2)),
    "PNG broken iCCP gAMA": lambda: png(iccp(LINEAR[:-60]), gama(0.2)),
    "PNG iCCP of 4 GB gAMA": lambda: png(iccp(b"\xff" * 4 + LINEAR[4:]), gama(0.2)),
    "PNG iCCP version 5 gAMA": lambda: png(iccp(matrix_profile(SRGB, version=0x05000000)), gama(0.2)),
    "PNG gray iCCP gAMA": lambda: png(iccp(GRAY), gama(0.2)),
    "PNG two iCCP": lambda: png(iccp(LINEAR), iccp(matrix_profile())),
    "PNG cICP iCCP": lambda: png(cicp(1, 13), iccp(LINEAR)),
    **{f"PNG cICP {one}, 13": (lambda one=one: png(cicp(one, 13))) for one in (2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 22)},
    **{f"PNG cICP 1, {one}": (lambda one=one: png(cicp(1, one), gama(0.2))) for one in range(19)},
    "PNG cICP 9, 16": lambda: png(cicp(9, 16)),
    "PNG cICP 9, 18": lambda: png(cicp(9, 18)),
    "PNG cICP 12, 16": lambda: png(cicp(12, 16)),
    "PNG cICP narrow": lambda: png(cicp(1, 8, 0, 0), gama(0.2)),
    "PNG RGB profile gray": lambda: png(iccp(LINEAR), picture=CHART.convert("L")),
    "PNG gray profile gray": lambda: png(iccp(GRAY), picture=CHART.convert("L")),
    "PNG CMYK profile": lambda: png(iccp(cmyk_profile(invert=True))),
    "PNG of code points": lambda: png(iccp(code_points(9, 16, 0, 1))),
    "PNG of code points, narrow": lambda: png(iccp(code_points(9, 16, 0, 0))),
    "PNG of code points, gray": lambda: png(
        iccp(profile({b"kTRC": gamma_curve(1), b"cicp": b"cicp" + bytes(4) + bytes((1, 13, 0, 1))}, space=b"GRAY")),
        picture=CHART.convert("L"),
    ),
    "JPEG P3": lambda: jpeg(matrix_profile(P3)),
    "JPEG Adobe RGB": lambda: jpeg(matrix_profile(ADOBE, gamma_curve(563 / 256))),
    "JPEG gamma 90": lambda: jpeg(matrix_profile(SRGB, gamma_curve(90))),
    "JPEG gamma 0.01": lambda: jpeg(matrix_profile(SRGB, gamma_curve(0.01))),
    "JPEG one level": lambda: jpeg(matrix_profile(SRGB, spiked())),
    "JPEG long curve": lambda: jpeg(matrix_profile(SRGB, table_curve(np.linspace(0, 1, 60_000) ** 3))),
    "JPEG many tags": lambda: jpeg(profile({b"t%03d" % one: text("x") for one in range(300)} | matrix_tags(P3))),
    "PNG table": lambda: encode("PNG", icc_profile=profile({b"A2B0": INVERSE}, pcs=b"Lab ")),
    "PNG A2B1": lambda: encode("PNG", icc_profile=profile(matrix_tags() | {b"A2B1": INVERSE}, pcs=b"Lab ")),
    "PNG A2B2": lambda: encode("PNG", icc_profile=profile(matrix_tags() | {b"A2B2": INVERSE}, pcs=b"Lab ")),
    "PNG D2B0": lambda: encode("PNG", icc_profile=profile(matrix_tags() | {b"D2B0": INVERSE})),
    "JPEG abstract": lambda: jpeg(matrix_profile(SRGB, gamma_curve(1), kind=b"abst")),
    "JPEG link": lambda: jpeg(matrix_profile(SRGB, gamma_curve(1), kind=b"link")),
    "JPEG gray, of gray": lambda: jpeg(GRAY, "L"),
    "JPEG gray, of RGB": lambda: jpeg(LINEAR, "L"),
    "JPEG RGB, of gray": lambda: jpeg(GRAY),
    "JPEG CMYK": lambda: jpeg(cmyk_profile(), "CMYK"),
    "JPEG CMYK inverted": lambda: jpeg(cmyk_profile(invert=True), "CMYK"),
    "JPEG CMYK, of RGB": lambda: jpeg(LINEAR, "CMYK"),
    "WEBP P3": lambda: encode("WEBP", lossless=True, icc_profile=matrix_profile(P3)),
    "WEBP of gray": lambda: encode("WEBP", lossless=True, icc_profile=GRAY),
    "AVIF P3": lambda: encode("AVIF", quality=100, subsampling="4:4:4", icc_profile=matrix_profile(P3)),
    "AVIF linear without a box": lambda: bare_avif(8),
    "AVIF PQ without a box": lambda: bare_avif(16),
    **{
        f"AVIF nclx {one}": (lambda one=one: avif(*one))
        for one in ((1, 1), (1, 4), (1, 5), (1, 8), (1, 16), (1, 18), (9, 16), (9, 18), (12, 13), (9, 14), (6, 6))
    },
}


@pytest.fixture(scope="module")
def page():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*SWITCHES, "--force-color-profile=srgb"])
        yield browser.new_page(viewport={"width": CHART.width, "height": CHART.height})
        browser.close()


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_shown_as_chromium_shows_them(page, name):
    kind = "image/" + name.split()[0].lower()
    if kind == "image/avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = FILES[name]()
    page.set_content(PAGE.format(kind=kind, data=base64.b64encode(data).decode()))
    page.evaluate("() => document.images[0].decode()")
    seen = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    picture = Image.open(io.BytesIO(data))
    shown, _ = as_shown(picture, profile=profile_of(picture, data), coding=coding_of(picture, data))
    apart = np.abs(np.asarray(shown or picture.convert("RGB")) - seen)
    # Between the points of a profile's table there are several ways.
    rough = any(word in name for word in ("table", "A2B", "CMYK"))
    assert apart.mean() < (2 if rough else 0.5)
    assert apart.max() <= (32 if rough else 8)
