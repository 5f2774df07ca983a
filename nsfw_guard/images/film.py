"""Videos, frame by frame, by PyAV."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError, why
from .containers import container_fault
from .film_alpha import Decoder, limits, visible
from .film_cropped import Crop, crops_of
from .film_turned import as_displayed
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
# What is looked at of one frame: uint8 ``[3, H, W]`` each, upright.
Looks = tuple[Tensor, ...]


class Film:
    """A video whose first frame could be decoded.

    Attributes:
        width: Of the first frame, upright, in pixels.
        height: Of the first frame, upright, in pixels.
        warnings: What of it is not looked at, and why; further on in the file there may be more.
    """

    def __init__(self, width: int, height: int, frames: Iterator[tuple[int, Looks]], warnings: list[str]) -> None:
        self.warnings = warnings
        self.width = width
        self.height = height
        self._frames = frames

    def frames(self) -> Iterator[tuple[int, Looks]]:
        """Decode the frames that are to be looked at, one by one, once; see ``open_film``.

        Yields:
            The index, and the looks ``[3, H, W]``, uint8: one of an opaque frame; of others the colours alone, over
            white and over black. A part to which the container crops it comes as well, and one that is to be turned
            by less than a quarter comes in each way in which players do it.
        """
        return self._frames


class FilmReader:
    """All frames of a film in memory by their indices, as ``open_film`` counts; read forward, it decodes each once.

    Args:
        data: The film.
        settings: Its limits count; ``every`` does not.
        name: What errors call it.

    Attributes:
        count: How many frames there are, at least 1.
        warnings: What of it is not looked at, and why.

    Raises:
        ImageError: As ``open_film``.
    """

    def __init__(self, data: bytes, settings: DecodeSettings, *, name: str) -> None:
        self.warnings: list[str] = []
        self.count = count_frames(data, settings, name=name, warnings=self.warnings)
        with _reading(name):
            self._crops = crops_of(io.BytesIO(data))
        self._data, self._settings, self._name = data, settings, name
        self._frames: Iterator[tuple[int, int, Any]] = iter(())
        self._next = self.count

    def looks(self, index: int) -> Looks:
        """Return the looks of a frame; see ``Film.frames``.

        Raises:
            ImageError: It is broken; or other than ``count`` frames come out.
        """
        if not 0 <= index < self.count:
            raise ImageError(f"{self._name} has no frame {index}.")
        if index < self._next:
            self._frames, self._next = self._all(), 0
        with _reading(self._name):
            for number, _, frame in self._frames:
                self._next = number + 1
                if number == index:
                    looks = _taken(frame, 1, self._settings, self._name, self._crops)
                    if self._next == self.count and next(self._frames, None) is not None:
                        break
                    return looks
        came = f"only {self._next}" if self._next < self.count else "more"
        raise ImageError(f"{self._name} cannot be decoded: it counts {self.count} frames, of which {came} came out.")

    def _all(self) -> Iterator[tuple[int, int, Any]]:
        with _opened(io.BytesIO(self._data), self._settings, self._name) as container:
            yield from _in_order(container, self._settings, self._name)


def film_support() -> bool:
    """Return whether PyAV, which decodes films, is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def count_frames(data: bytes, settings: DecodeSettings, *, name: str, warnings: list[str] | None = None) -> int:
    """Return how many frames the streams of pictures of a film have; an MP4's are not decoded for it.

    Args:
        data: The film.
        settings: Its limits count.
        name: What errors call it.
        warnings: Takes what of it is not looked at, and why.

    Raises:
        ImageError: As ``open_film``.
    """
    with _reading(name), _opened(io.BytesIO(data), settings, name) as container:
        if container.format.name.startswith(_COUNTED):
            count = sum(1 for packet in container.demux(container.streams.video) if packet.size)
        else:
            count = sum(1 for _ in _in_order(container, settings, name))
        if warnings is not None:
            _warn_of_subtitles(container, warnings)
    if settings.max_frames is not None and count > settings.max_frames:
        raise ImageError(f"{name} has {count} frames to be looked at; the limit is {settings.max_frames}.")
    if not count:
        raise ImageError(f"{name} is a video without frames.")
    return count


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
    with _reading(name):
        crops = crops_of(file)
    container = _opened(file, settings, name)
    warnings: list[str] = []
    frames = _frames(container, settings, name, warnings, crops)
    first = next(frames, None)
    if first is None:
        raise ImageError(f"{name} is a video without frames.")

    def all_frames() -> Iterator[tuple[int, Looks]]:
        yield first
        yield from frames

    height, width = first[1][0].shape[1:]
    return Film(width, height, all_frames(), warnings)


def film_frame(file: BinaryIO, index: int, settings: DecodeSettings, *, name: str) -> Tensor:
    """Return one frame of a video: the pixels ``[3, H, W]``, uint8, upright, without alpha.

    Args:
        file: As for ``open_film``.
        index: As ``open_film`` counts. Far from the start of a video of one stream it is told by the frames' times.
        settings: Its limits count.
        name: What errors call it.

    Raises:
        ImageError: As ``open_film``; or it has no such frame.
    """
    with _opened(file, settings, name) as container, _reading(name):
        for number, frame in _numbered(container, index, settings, name):
            if number >= index:
                return _taken(frame, 1, settings, name)[0]
    raise ImageError(f"{name} has no frame {index}.")


def _numbered(container: Any, index: int, settings: DecodeSettings, name: str) -> Iterator[tuple[int, Any]]:
    """Yield frames with their indices, from the start, or from the key frame before a far one."""
    first, *others = container.streams.video
    if index <= _MOST_COUNTED or others or not first.average_rate:
        yield from ((number, frame) for number, _, frame in _in_order(container, settings, name))
        return
    start = first.start_time or 0
    container.seek(start + int(index / first.average_rate / first.time_base), stream=first)
    for _, _, frame in _in_order(container, settings, name):
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
                stream.codec_context.options = limits(settings)
        except BaseException:
            container.close()
            raise
    return container


def _in_order(container: Any, settings: DecodeSettings, name: str) -> Iterator[tuple[int, int, Any]]:
    """Yield the index, the stream's index and the frame of all frames, in the order in the file."""
    index = 0
    decoders: dict[int, Decoder] = {}
    for packet in container.demux(container.streams.video):
        if packet.is_corrupt:
            raise ImageError(f"{name} cannot be decoded: frame {index} is damaged.")
        stream = packet.stream.index
        if stream not in decoders:
            decoders[stream] = Decoder(container, packet, settings, name)
        for frame in decoders[stream].frames(packet):
            if frame.is_corrupt:
                raise ImageError(f"{name} cannot be decoded: frame {index} is damaged.")
            yield index, stream, frame
            index += 1


def _frames(
    container: Any, settings: DecodeSettings, name: str, warnings: list[str], crops: list[Crop]
) -> Iterator[tuple[int, Looks]]:
    """Yield the frames that are to be looked at, and their indices; the last one of a stream is always one of them."""
    seen: Counter[int] = Counter()
    held: dict[int, tuple[int, Any]] = {}
    taken = 0
    with container, _reading(name):
        _warn_of_subtitles(container, warnings)
        for index, stream, frame in _in_order(container, settings, name):
            held[stream] = index, frame
            if seen[stream] % settings.every == 0:
                taken += 1
                held.pop(stream)
                yield index, _taken(frame, taken, settings, name, crops)
            seen[stream] += 1
        _warn_of_subtitles(container, warnings)  # some containers tell of a stream where it begins
        for last in sorted(held.values(), key=lambda pair: pair[0]):
            taken += 1
            yield last[0], _taken(last[1], taken, settings, name, crops)
        for stream in container.streams.video:
            expected = stream.frames if container.format.name.startswith(_COUNTED) else 1
            if seen[stream.index] < max(expected, 1):
                raise ImageError(
                    f"{name} cannot be decoded: {seen[stream.index]} of {max(expected, 1)} frames of stream "
                    f"{stream.index} came out."
                )


def _taken(frame: Any, taken: int, settings: DecodeSettings, name: str, crops: Sequence[Crop] = ()) -> Looks:
    """Return the looks of a frame; see ``Film.frames``."""
    if settings.max_frames is not None and taken > settings.max_frames:
        raise ImageError(f"{name} has more than {settings.max_frames} frames to be looked at, which is the limit.")
    _refuse_large(frame, settings, name)
    return tuple(
        torch.from_numpy(np.ascontiguousarray(shown)).movedim(-1, 0)
        for array in visible(frame)
        for part in (array, *(array[crop.of(frame.width, frame.height)] for crop in crops))
        for shown in as_displayed(frame, part)
    )


def _warn_of_subtitles(container: Any, warnings: list[str]) -> None:
    """Warn, once, of subtitles that are not known to be text."""
    told = "its subtitles are pictures, and were not looked at"
    for stream in container.streams.subtitles if told not in warnings else ():
        codec = getattr(stream.codec_context, "codec", None)
        if not getattr(codec, "text_sub", False):
            warnings.append(told)
            return


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
