"""What a caller's picture holds: the frame that it shows, as it shows it, and the others where they can be read."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ..errors import one_line


class Held:
    """The frames of a picture, and the pictures beside them in its file.

    The frame at which a picture stands is taken from the object: somebody may have drawn on it, or written another file
    over its own. The others are decoded from its file, if that can still be read, by a reader of our own, or by a twin
    of the object that shares its decoder. The object's pixels, position, mode and size stay as they are.

    Args:
        picture: As it was opened, or as a caller made it.
        data: The encoded file, if it is at hand.
        warnings: Takes what cannot be looked at, and why.

    Attributes:
        frames: How many frames it has, at least 1.
    """

    def __init__(self, picture: Any, data: bytes | None, warnings: list[str]) -> None:
        self._picture = picture
        self._reader: Any = None
        self._twin = False
        self.frames, self._current = 1, 0
        if _may_have_several(picture):
            self._find_others(data, warnings)
        self._beside = [] if data is None and "exif" not in picture.info else inside(data, picture, warnings)

    def __len__(self) -> int:
        return self.frames + len(self._beside)

    def frame(self, index: int) -> Image.Image:
        """Return a frame, or behind them what is beside them in the file; as it is stored, not turned by its EXIF."""
        if index >= self.frames:
            return self._beside[index - self.frames]
        if index == self._current:
            self._picture.load()
            return self._picture  # type: ignore[no-any-return]
        return self._twin_frame(index) if self._twin else self._read_frame(index)

    def _find_others(self, data: bytes | None, warnings: list[str]) -> None:
        position = self._picture.tell()
        try:
            self._data = _file_of(self._picture) if data is None else data
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
        self._reader = open_picture(self._data or b"")

    def _read_frame(self, index: int) -> Image.Image:
        # Forward only: going back decodes from the start again, which some of Pillow's readers cannot do in place.
        if self._reader is None or self._reader.tell() > index:
            self._open()
        self._reader.seek(index)
        return self._reader.copy()  # type: ignore[no-any-return]

    def _twin_frame(self, index: int) -> Image.Image:
        self._picture.load()
        twin = _twin_of(self._picture)
        twin.seek(index)
        twin.load()
        frame = twin.copy()
        # The decoder is left where the object believes it to be.
        _forget_pixels(twin)
        twin.seek(self._picture.tell())
        twin.load()
        return frame  # type: ignore[no-any-return]


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


def _file_of(picture: Any) -> bytes | None:
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


# TO BE REPLACED at the merge
def open_picture(data):
    import io

    return Image.open(io.BytesIO(data))


def frame_count(picture):
    return max(1, getattr(picture, "n_frames", 1))


def inside(data, picture, warnings):
    return []
