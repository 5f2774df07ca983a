"""Films with alpha: decoders that keep it, and what of a frame people can see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..errors import ImageError
from .color import Coding, array_as_shown, differ
from .settings import DecodeSettings

# FFmpeg's own decoders of these leave alpha out, which lies beside each frame; libvpx's do not.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9", "libvpx": "libvpx", "libvpx-vp9": "libvpx-vp9"}
_ALPHA_BESIDE = "matroska_block_additional"
# HEVC's message (of the type 165) that a second layer is alpha, in a unit of the type 39.
_HEVC_ALPHA = re.compile(rb"\x4e\x01\xa5")


def limits(settings: DecodeSettings) -> dict[str, str]:
    """FFmpeg's own limit, for sizes that change on the way; it counts padding, too."""
    return {"max_pixels": str(2 * settings.max_pixels + 2**16)}


class Decoder:
    """Decodes one stream with its alpha.

    Args:
        container: The stream's.
        packet: The stream's first.
        settings: Its limits count.
        name: What errors call the film.

    Raises:
        ImageError: It says that it has alpha, which nothing here decodes.
    """

    def __init__(self, container: Any, packet: Any, settings: DecodeSettings, name: str) -> None:
        self._name = name
        self._other: Any = None  # decodes instead of the stream's own
        stream = packet.stream
        codec = stream.codec_context.name
        # A tag can hide what the track says, so what lies beside the first frame counts as well.
        told = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode", "0") not in ("", "0")
        beside = codec in _WITH_ALPHA and container.format.name.startswith("matroska")
        if codec in _WITH_ALPHA and (told or (beside and _alpha_beside(packet, unknown=True))):
            self._other = _libvpx(codec, settings, name)
        self._watched = beside and self._other is None
        layered = codec == "hevc" and bool(_HEVC_ALPHA.search(stream.codec_context.extradata or b""))
        self._told = codec if told or layered else None

    def frames(self, packet: Any) -> Iterator[Any]:
        """Decode a packet; the last one, which is empty, brings out what is left."""
        if self._watched and _alpha_beside(packet, unknown=False):
            raise ImageError(f"{self._name} cannot be decoded: its alpha begins later than its frames.")
        if self._other is not None:
            yield from self._other.decode(packet if packet.size else None)
            return
        for frame in packet.decode():
            if self._told and not _may_be_transparent(frame):
                raise ImageError(f"{self._name} cannot be decoded: PyAV leaves out its alpha (codec {self._told}).")
            yield frame


def _alpha_beside(packet: Any, *, unknown: bool) -> bool:
    """Return whether a packet has alpha, or another addition, beside the frame; old PyAVs cannot tell."""
    has = getattr(packet, "has_sidedata", None)
    return unknown if has is None else bool(packet.size and has(_ALPHA_BESIDE))


def _libvpx(codec: str, settings: DecodeSettings, name: str) -> Any:
    import av

    try:
        decoder = av.Codec(_WITH_ALPHA[codec], "r").create()
    except ValueError as error:
        raise ImageError(
            f"{name} cannot be decoded: it has alpha, and this PyAV has no decoder {_WITH_ALPHA[codec]}."
        ) from error
    decoder.options = limits(settings)
    return decoder


def visible(frame: Any) -> list[np.ndarray[Any, Any]]:
    """Return what can be seen of a frame, ``[H, W, 3]``, uint8 each."""
    alpha = None
    if _may_be_transparent(frame):
        pixels = frame.to_ndarray(format="rgba")
        colours, alpha = np.ascontiguousarray(pixels[..., :3]), pixels[..., 3:].astype(np.uint16)
    else:
        colours = frame.to_ndarray(format="rgb24")
    renditions = [colours]
    said = Coding(transfer=getattr(frame, "color_trc", None), primaries=getattr(frame, "color_primaries", None))
    shown = array_as_shown(colours, said)
    if shown is not None and differ(*(torch.from_numpy(one).movedim(-1, 0) for one in (colours, shown))):
        renditions.append(shown)
    if alpha is None or alpha.min() == 255:
        return renditions
    return [look for shown in renditions for look in (shown, _over(shown, alpha, 255), _over(shown, alpha, 0))]


def _over(colours: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any], ground: int) -> np.ndarray[Any, Any]:
    over: np.ndarray[Any, Any] = (colours * alpha + ground * (255 - alpha) + 127) // 255
    return over.astype(np.uint8)


def _may_be_transparent(frame: Any) -> bool:
    # The colours of a palette may be.
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
