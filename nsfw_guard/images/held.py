"""What a caller's picture holds: the frame that it shows, as it shows it, and the others where they can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from ..errors import one_line
from .browsers import Shown, may_differ
from .inside import Inner, inside
from .settings import DecodeSettings
from .sniff import frame_count, open_picture

_AHEAD = 2**24  # pixels of frames that are kept: 64 MB


class Held:
    """The frames of a picture, and the pictures beside them in its file.

    The frame at which a picture stands is taken from the object: somebody may have drawn on it, or written another file
    over its own. The others are decoded from its file, if that can still be read, by a reader of our own, or by a twin
    of the object that shares its decoder. The object's pixels, position, mode and size stay as they are.

    Args:
        picture: As it was opened, or as a caller made it.
        data: The encoded file, if it is at hand.
        settings: Its limits count.
        name: What errors call it.
        warnings: Takes what cannot be looked at, and why.

    Attributes:
        frames: How many frames it has, at least 1.
        films: The files of the films beside them.
        holds_sequence: Whether a picture beside them is a sequence.

    Raises:
        ImageError: Its file, or a picture beside its frames, is broken or over a limit.
    """

    def __init__(
        self, picture: Any, data: bytes | None, settings: DecodeSettings, name: str, warnings: list[str]
    ) -> None:
        self._picture = picture
        self._name = name
        self._reader: Any = None
        self._twin = False
        self._ahead: dict[int, Image.Image] = {}
        self.frames, self._current = 1, 0
        if _may_have_several(picture):
            self._find_others(data, warnings)
        self.films: list[bytes] = []
        self.holds_sequence = False
        self._beside: list[tuple[Any, int]] = []
        kept = 0
        for inner in inside(data, picture, settings, name=name):
            if (film := inner.film) is not None:  # it is cut out anew each time
                self.films.append(film)
            elif (opened := inner.open()) is None:
                warnings.append(f"the {inner.name} in it cannot be opened, and was not looked at")
            else:
                count = frame_count(opened)
                self.holds_sequence |= count > 1
                kept += opened.width * opened.height
                # Small files may hold much: what is too much to be kept is decoded again when it is looked at.
                one = inner if count == 1 and kept > _AHEAD else opened
                self._beside += [(one, frame) for frame in range(count)]
        self._shown = Shown(self._file(data), picture, settings, name)

    def __len__(self) -> int:
        return self.frames + len(self._beside) + len(self._shown)

    def frame(self, index: int) -> Image.Image:
        """Return a frame, or behind them what is beside them in the file; as it is stored, not turned by its EXIF."""
        if index >= self.frames + len(self._beside):
            return self._shown.frame(index - self.frames - len(self._beside))
        if index >= self.frames:
            beside, frame = self._beside[index - self.frames]
            if isinstance(beside, Inner):
                return beside.open()  # type: ignore[return-value]
            if frame:
                beside.seek(frame)
                return beside.copy()  # type: ignore[no-any-return]
            return beside  # type: ignore[no-any-return]
        if index == self._current:
            self._picture.load()
            return self._picture  # type: ignore[no-any-return]
        return self._twin_frame(index) if self._twin else self._read_frame(index)

    def _file(self, data: bytes | None) -> bytes | None:
        """The file whose frames count; of a caller's still picture, only if it shows what the object does."""
        if data is not None or not may_differ(self._picture):
            return data
        try:
            data = file_of(self._picture)
            if data is None or self.frames > 1:
                return data
            stored = open_picture(data, name=self._name)
            return data if stored.mode == self._picture.mode and stored.tobytes() == self._picture.tobytes() else None
        except Exception:
            return None

    def _find_others(self, data: bytes | None, warnings: list[str]) -> None:
        # Layers are no frames: of those the composite is looked at.
        position = self._picture.tell() if self._picture.format != "PSD" else 0
        try:
            self._data = file_of(self._picture) if data is None else data
            self._twin = self._data is None and _decoder_lives(self._picture)
            count = self._count()
        except Exception as error:
            if data is not None:
                raise
            self._twin = False
            warnings.append(f"only the frame that it shows was looked at; the others cannot be read: {one_line(error)}")
            return
        if count > position:
            self.frames, self._current = count, position
        elif count > 1:
            warnings.append(f"only the frame that it shows was looked at; its file has {count} frames now")

    def _count(self) -> int:
        if self._twin:
            return int(self._picture.n_frames)
        if self._data is None:
            raise ValueError("its file is closed")
        self._open()
        return frame_count(self._reader)

    def _open(self) -> None:
        self._reader = open_picture(self._data or b"", name=self._name)

    def _read_frame(self, index: int) -> Image.Image:
        # Forward only: going back decodes from the start again, which some of Pillow's readers cannot do in place.
        if self._reader is None or self._reader.tell() > index:
            self._open()
        self._reader.seek(index)
        return self._reader.copy()  # type: ignore[no-any-return]

    def _twin_frame(self, index: int) -> Image.Image:
        # Some decoders go forward only, so as many frames as fit are taken on one way.
        if index not in self._ahead:
            self._picture.load()
            many = max(1, _AHEAD // max(1, self._picture.width * self._picture.height))
            wanted = [one for one in range(index, min(index + many, self.frames)) if one != self._current]
            self._ahead = {}  # the old ones first: both would be too much
            self._ahead = dict(zip(wanted, self._twin_frames(wanted), strict=True))
        return self._ahead[index].copy()

    def _twin_frames(self, wanted: list[int]) -> Iterator[Image.Image]:
        twin = _twin_of(self._picture)
        try:
            for index in wanted:
                twin.seek(index)
                twin.load()
                yield twin.copy()
                _forget_pixels(twin)
        finally:
            # The decoder is left where the object believes it to be.
            _forget_pixels(twin)
            twin.seek(self._picture.tell())
            twin.load()


def _decoder_lives(picture: Any) -> bool:
    """Whether a decoder has a picture's file in memory, though the file is closed: WebP, AVIF, HEIF."""
    return any(vars(picture).get(name) is not None for name in ("_decoder", "_heif_file"))


def _twin_of(picture: Any) -> Any:
    twin = object.__new__(type(picture))
    twin.__dict__.update(vars(picture))
    twin.info = dict(picture.info)
    _forget_pixels(twin)
    return twin


def _forget_pixels(twin: Any) -> None:
    """Let the next frame be decoded into memory of its own."""
    for name in ("im", "_im"):  # before Pillow 11, and since
        if name in vars(twin):
            twin.__dict__[name] = None


def _may_have_several(picture: Any) -> bool:
    """Whether a picture can have frames, asked without moving it: to count them, some of Pillow's readers move."""
    own = vars(picture).get("n_frames")
    return own > 1 if isinstance(own, int) else hasattr(type(picture), "n_frames")


def file_of(picture: Any) -> bytes | None:
    """The encoded file that a picture reads from; ``None`` if it is closed."""
    for name in ("fp", "_fp"):
        file = vars(picture).get(name)
        if file is None or getattr(file, "closed", True) or not hasattr(file, "read"):
            continue
        at = file.tell()
        try:
            file.seek(0)
            return bytes(file.read())
        finally:
            file.seek(at)
    if _decoder_lives(picture):
        return None
    filename = getattr(picture, "filename", "")
    if filename:
        with open(filename, "rb") as file:
            return file.read()
    return None
