"""Numbers and the light they stand for: transfer curves and primaries, as seen on an sRGB screen.

Code points are those of ITU-T H.273. Where viewers differ, Chromium is followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# x and y of red, green, blue and white; H.273, table 2.
PRIMARIES = {
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, 0.3127, 0.3290),  # BT.709, sRGB
    4: (0.670, 0.330, 0.210, 0.710, 0.140, 0.080, 0.310, 0.316),
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, 0.3127, 0.3290),  # BT.601, 625 lines
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),  # BT.601, 525 lines
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, 0.310, 0.316),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),  # BT.2020
    10: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1 / 3, 1 / 3),  # XYZ
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),  # P3 of cinemas
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),  # Display P3
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, 0.3127, 0.3290),
}
UNSAID = 2
LINEAR, PQ, HLG = 8, 16, 18
# The curves of cameras and of sRGB. They differ by a few levels, and players show their numbers as they are.
ORDINARY = (1, 6, 11, 12, 13, 14, 15)
_GAMMAS = {4: 2.2, 5: 2.8}
_LOGARITHMIC = {9: 2.0, 10: 2.5}  # decades
# Those that Chromium goes by in a PNG or a profile.
SHOWN_TRANSFERS = (1, 6, 11, 13, 14, 15, *_GAMMAS, 7, LINEAR, PQ, 17, HLG)
TRANSFERS = (*SHOWN_TRANSFERS, 12, *_LOGARITHMIC)
# A file's exponents nearer than 5 % to sRGB's are sRGB to Chromium: decoding by 1 / 0.45455 and encoding cancel out.
_PLAIN_GAMMA = 0.45455
_PLAIN_WITHIN = 0.05
# cd/m²: what a diffuse white is mastered at, and the brightest of ordinary masters; ITU-R BT.2408.
_WHITE = 203.0
_PEAK = 1000.0
# How Chromium shows high dynamic range on a screen that has none, measured: a diffuse white is half of the screen's
# light, darker light is in proportion, and brighter light shares the other half.
_WHITE_SHOWN = 0.4965
_SHOULDER = 8.0
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_STEPS = 1 << 14  # of linear light: 0.2 of a level at sRGB's steepest
_AT_ONCE = 1 << 16  # pixels: what fits a core's cache
_LEVELS = np.arange(256) / 255


@dataclass(frozen=True)
class Coding:
    """How stored numbers stand for light, where a file says so without an ICC profile.

    Attributes:
        transfer: H.273's transfer characteristics; ``None``: sRGB's, or ``gamma``.
        primaries: H.273's colour primaries, or x and y of red, green, blue and white, as of PNG's cHRM;
            ``None``: sRGB's.
        gamma: The exponent that made numbers of light, as of PNG's gAMA (0.45455), where there is no transfer.
    """

    transfer: int | None = None
    primaries: int | tuple[float, ...] | None = None
    gamma: float | None = None

    @property
    def ordinary_transfer(self) -> bool:
        """Whether numbers are shown as they are, but for the primaries."""
        if self.transfer is not None:
            return self.transfer == UNSAID or self.transfer in ORDINARY
        if self.gamma is None:
            return True
        # With chromaticities there is a transform anyway, and no such tolerance.
        return self.primaries is None and abs(self.gamma / _PLAIN_GAMMA - 1) < _PLAIN_WITHIN

    @property
    def plain(self) -> bool:
        """Whether numbers are shown as they are."""
        return self.ordinary_transfer and self.primaries in (None, 1, UNSAID)

    def fault(self) -> str | None:
        """Say what is nonsense in it."""
        if self.transfer is not None and self.transfer != UNSAID and self.transfer not in TRANSFERS:
            return f"{self.transfer} is none of H.273's transfer characteristics"
        if self.transfer is None and self.gamma is not None and not (math.isfinite(self.gamma) and self.gamma > 0):
            return f"a gamma of {self.gamma:g}"
        if isinstance(self.primaries, int) and self.primaries != UNSAID and self.primaries not in PRIMARIES:
            return f"{self.primaries} is none of H.273's colour primaries"
        if isinstance(self.primaries, tuple) and _between(self.primaries, PRIMARIES[1]) is None:
            return "its primaries span no colours"
        return None


def levels_as_shown(levels: NDArray[np.uint8], coding: Coding) -> NDArray[np.uint8]:
    """Return what an sRGB screen shows for such numbers.

    PQ and HLG (ITU-R BT.2100) are mapped to a screen's range as Chromium maps them; see ``_WHITE_SHOWN``.

    Args:
        levels: uint8 ``[H, W, 3]``.
        coding: One without ``fault``.

    Returns:
        uint8 ``[H, W, 3]``, of its own.
    """
    if coding.transfer not in (PQ, HLG) and _xy(coding.primaries) == PRIMARIES[1]:
        return np.asarray(_rounded(_curve(_LEVELS, coding))[levels])
    curve, encoding = _curve(_LEVELS, coding).astype(np.float32), _encoding()
    shown = np.empty_like(levels)
    rows = max(1, _AT_ONCE // levels.shape[1])
    for top in range(0, len(levels), rows):
        light = _on_screen(curve[levels[top : top + rows]], coding)
        light *= _STEPS - 1
        light += 0.5
        shown[top : top + rows] = encoding[light.astype(np.uint16)]
    return shown


@lru_cache(maxsize=1)
def _encoding() -> NDArray[np.uint8]:
    return _rounded(np.linspace(0, 1, _STEPS))


def _rounded(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray((_encoded(light) * 255 + 0.5).astype(np.uint8))


def _encoded(light: NDArray[Any]) -> NDArray[Any]:
    """Encode linear light as sRGB."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _curve(value: NDArray[np.float64], coding: Coding) -> NDArray[np.float64]:
    """Numbers as linear light: 1 is the screen's white, for PQ a diffuse white, for HLG the brightest."""
    transfer, gamma = coding.transfer, coding.gamma
    if transfer is None and gamma is not None:
        return np.asarray(value ** min(1 / gamma, 1e9))
    if transfer in _GAMMAS:
        return np.asarray(value ** _GAMMAS[transfer])
    if transfer in _LOGARITHMIC:
        return np.where(value > 0, 10 ** ((value - 1) * _LOGARITHMIC[transfer]), 0)
    if transfer == 7:
        return np.where(value < 4 * 0.0228, value / 4, ((value + 0.1115) / 1.1115) ** (1 / 0.45))
    if transfer == LINEAR:
        return value
    if transfer == PQ:
        root = value ** (1 / 78.84375)
        ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        return np.asarray(10_000 / _WHITE * ratio ** (1 / 0.1593017578125))
    if transfer == 17:
        return np.asarray(52.37 / 48 * value**2.6)
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _on_screen(light: NDArray[np.float32], coding: Coding) -> NDArray[np.float32]:
    """Light in a file's primaries as light of an sRGB screen, clipped to what it can show; ``light`` is used up."""
    primaries = _xy(coding.primaries)
    if coding.transfer in (PQ, HLG):
        # Both are defined for, and mapped in, BT.2020's primaries.
        light = _through(light, primaries, PRIMARIES[9])
        primaries = PRIMARIES[9]
        if coding.transfer == HLG:
            # The display's exponent, 1.2 at 1000 cd/m², is one of luminance.
            luminance = np.maximum(light @ _to_xyz(primaries)[1].astype(np.float32), np.float32(1e-6))
            light *= (np.float32(_PEAK / _WHITE) * luminance ** np.float32(0.2))[..., None]
        brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), np.maximum(light[..., 2], np.float32(1e-6)))
        light *= (_toned(brightest) / brightest)[..., None]
    light = _through(light, primaries, PRIMARIES[1])
    return np.clip(light, 0, 1, out=light)


def _toned(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map light, 1 a diffuse white, to a screen's range."""
    above = np.clip((light - 1) / np.float32(_PEAK / _WHITE - 1), 0, 1)
    share = np.log1p(above * np.float32(_SHOULDER)) / np.float32(math.log1p(_SHOULDER))
    shown: NDArray[np.float32] = np.minimum(light, 1) * np.float32(_WHITE_SHOWN) + share * np.float32(1 - _WHITE_SHOWN)
    return shown


def _xy(primaries: int | tuple[float, ...] | None) -> tuple[float, ...]:
    return primaries if isinstance(primaries, tuple) else PRIMARIES.get(primaries or 1, PRIMARIES[1])


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """The matrix from linear RGB to XYZ with a white of Y = 1; LinAlgError or nonsense where there is none."""
    x, y = np.array(primaries, dtype=np.float64).reshape(4, 2).T
    rays = np.stack([x, y, 1 - x - y])
    return np.asarray(rays[:, :3] * np.linalg.solve(rays[:, :3], rays[:, 3] / y[3]))


def _through(
    light: NDArray[np.float32], primaries: tuple[float, ...], wanted: tuple[float, ...]
) -> NDArray[np.float32]:
    """Linear light in other primaries."""
    matrix = None if primaries == wanted else _between(primaries, wanted)
    return light if matrix is None else np.asarray(light @ matrix.T.astype(np.float32))


@lru_cache(maxsize=32)
def _between(primaries: tuple[float, ...], wanted: tuple[float, ...]) -> NDArray[np.float64] | None:
    """The matrix between linear lights, white to white (Bradford); ``None``: there is none."""
    if not all(0 <= value <= 1 for value in primaries):  # no NaN either
        return None
    try:
        with np.errstate(all="ignore"):
            given, target = _to_xyz(primaries), _to_xyz(wanted)
            cones = (_BRADFORD @ target.sum(1)) / (_BRADFORD @ given.sum(1))
            adapted = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD
            matrix = np.linalg.solve(target, adapted @ given)
    except (np.linalg.LinAlgError, ValueError):
        return None
    return matrix if np.isfinite(matrix).all() and np.abs(matrix).max() < 1e4 else None
