"""Videos, frame by frame, by PyAV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError, why
from .containers import container_fault
from .settings import DecodeSettings

# The only containers that are opened. FFmpeg knows many more: playlists and scripts among them, which would make it
# open other files and addresses, and pictures, which Pillow decodes.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,live_flv,asf,ogg,mxf,rm,h264,hevc,m4v,dv,ivf"
)
_OPTIONS = {
    "format_whitelist": _CONTAINERS,
    "protocol_whitelist": "none",
    # What an edit list leaves out is in the file all the same.
    "ignore_editlist": "1",
}
# Of these the number of frames is written down; of others it is a guess, or not there.
_COUNTED = "mov"
# Counting frames up to one is exact, but decodes all of them.
_MOST_COUNTED = 1000


class Film:
    """A video whose first frame could be decoded.

    Attributes:
        width: Of the first frame, upright, in pixels.
        height: Of the first frame, upright, in pixels.
    """

    def __init__(self, width: int, height: int, frames: Iterator[tuple[int, Tensor]]) -> None:
        self.width = width
        self.height = height
        self._frames = frames

    def frames(self) -> Iterator[tuple[int, Tensor]]:
        """Decode the frames that are to be looked at, one by one, once; see ``open_film``."""
        return self._frames


def is_film(file: BinaryIO) -> bool:
    """Return whether PyAV finds a video stream in a file."""
    try:
        import av

        with av.open(file, mode="r", options=_OPTIONS) as container:
            return bool(container.streams.video)
    except Exception:
        return False


def open_film(file: BinaryIO, settings: DecodeSettings, *, name: str) -> Film:
    """Open a video, and decode its first frame.

    All streams of pictures are decoded, covers included; the indices count their frames in the order in the file.

    Raises:
        ImageError: It is broken, cut off, over a limit, or holds no frame.
    """
    container = _opened(file, settings, name)
    frames = _frames(container, settings, name)
    first = next(frames, None)
    if first is None:
        raise ImageError(f"{name} is a video without frames.")

    def all_frames() -> Iterator[tuple[int, Tensor]]:
        yield first
        yield from frames

    height, width = first[1].shape[1:]
    return Film(width, height, all_frames())


def film_frame(file: BinaryIO, index: int, settings: DecodeSettings, *, name: str) -> Tensor:
    """Return one frame of a video: the pixels ``[3, H, W]``, uint8, upright.

    Args:
        file: As for ``open_film``.
        index: As ``open_film`` counts. Far from the start of a video of one stream it is told by the frames' times.
        settings: Its limits count.
        name: What errors call it.

    Raises:
        ImageError: As ``open_film``; or it has no such frame.
    """
    with _opened(file, settings, name) as container, _reading(name):
        for number, frame in _numbered(container, index, name):
            if number >= index:
                return _taken(index, frame, 1, settings, name)[1]
    raise ImageError(f"{name} has no frame {index}.")


def _numbered(container: Any, index: int, name: str) -> Iterator[tuple[int, Any]]:
    """Yield frames with their indices, from the start, or from the key frame before a far one."""
    first, *others = container.streams.video
    if index <= _MOST_COUNTED or others or not first.average_rate:
        yield from ((number, frame) for number, _, frame in _in_order(container, name))
        return
    start = first.start_time or 0
    container.seek(start + int(index / first.average_rate / first.time_base), stream=first)
    for frame in container.decode(first):
        if frame.pts is not None:
            yield round((frame.pts - start) * first.time_base * first.average_rate), frame


def _opened(file: BinaryIO, settings: DecodeSettings, name: str) -> Any:
    """Open a container that is whole and holds pictures within the limits."""
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{name}: videos need PyAV: pip install 'nsfw-guard[scan]'") from error
    with _reading(name):
        fault = container_fault(file)
        if fault is not None:
            raise ImageError(f"{name} is a video that {fault}.")
        file.seek(0)
        container = av.open(file, mode="r", options=_OPTIONS)
        try:
            if not container.streams.video:
                raise ImageError(f"{name} holds no video.")
            for stream in container.streams.video:
                _refuse_large(stream, settings, name)
                # FFmpeg's own limit, for sizes that change on the way; it counts padding, too.
                stream.codec_context.options = {"max_pixels": str(2 * settings.max_pixels + 2**16)}
        except BaseException:
            container.close()
            raise
    return container


def _in_order(container: Any, name: str) -> Iterator[tuple[int, int, Any]]:
    """Yield the index, the stream's index and the frame of all frames, in the order in the file."""
    index = 0
    for packet in container.demux(container.streams.video):
        if packet.is_corrupt:
            raise ImageError(f"{name} cannot be decoded: frame {index} is damaged.")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ImageError(f"{name} cannot be decoded: frame {index} is damaged.")
            yield index, packet.stream.index, frame
            index += 1


def _frames(container: Any, settings: DecodeSettings, name: str) -> Iterator[tuple[int, Tensor]]:
    """Yield the frames that are to be looked at, and their indices; the last one of a stream is always one of them."""
    seen: Counter[int] = Counter()
    held: dict[int, tuple[int, Any]] = {}
    taken = 0
    with container, _reading(name):
        for index, stream, frame in _in_order(container, name):
            held[stream] = index, frame
            if seen[stream] % settings.every == 0:
                taken += 1
                yield _taken(*held.pop(stream), taken, settings, name)
            seen[stream] += 1
        for last in sorted(held.values(), key=lambda pair: pair[0]):
            taken += 1
            yield _taken(*last, taken, settings, name)
        for stream in container.streams.video:
            expected = stream.frames if container.format.name.startswith(_COUNTED) else 1
            if seen[stream.index] < max(expected, 1):
                raise ImageError(
                    f"{name} cannot be decoded: {seen[stream.index]} of {max(expected, 1)} frames of stream "
                    f"{stream.index} came out."
                )


def _taken(index: int, frame: Any, taken: int, settings: DecodeSettings, name: str) -> tuple[int, Tensor]:
    """Return the pixels ``[3, H, W]``, uint8, upright, transparent ones on white."""
    if settings.max_frames is not None and taken > settings.max_frames:
        raise ImageError(f"{name} has more than {settings.max_frames} frames to be looked at, which is the limit.")
    _refuse_large(frame, settings, name)
    if any(component.is_alpha for component in frame.format.components):
        pixels = frame.to_ndarray(format="rgba").astype(np.uint16)
        alpha = pixels[..., 3:]
        array = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        array = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # how far it is to be turned, counterclockwise
    return index, torch.from_numpy(np.ascontiguousarray(np.rot90(array, turns))).movedim(-1, 0)


def _refuse_large(sized: Any, settings: DecodeSettings, name: str) -> None:
    if sized.width * sized.height > settings.max_pixels:
        raise ImageError(
            f"{name} has frames of {sized.width}x{sized.height}, more than {settings.max_pixels} pixels. "
            "If you trust it, raise the limit."
        )


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Make whatever PyAV raises an ``ImageError``."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and not getattr(error, "errno", None):
            raise  # the machine's, not what FFmpeg calls a frame over its limits
        raise ImageError(f"{name} cannot be decoded as a video: {why(error)}") from error
