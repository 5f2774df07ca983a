"""What passed the guard during one call of a pipeline, and the search for it in what the call returns."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsfw_guard.verdict import Verdict, worst

from .settings import Attachment


@dataclass(frozen=True)
class Passed:
    """One image or clip that the guard has let out, redacted if it is flagged.

    Attributes:
        verdict: On the image; of a clip, that of its worst frame.
        frames: Of a clip: one verdict per frame, ``None`` for those that ``every`` skipped.
        original: Before redaction, if it was flagged and somebody wants to see it: ``[3, H, W]`` in [0, 1], or the
            flagged frames, ``[N, 3, H, W]``.
    """

    verdict: Verdict
    frames: tuple[Verdict | None, ...] | None = None
    original: Tensor | None = None


class Record:
    """What passed during one call: the objects that were handed on, each item with its verdict.

    Args:
        attachment: Whose call it is.
        device: Where the pipeline computes.
        pipe: The pipeline that was called.
        quantises: Whether the pipeline takes its clips to 8 bits and back after the check, as Cosmos does.
    """

    def __init__(
        self, attachment: Attachment, device: torch.device | None, *, pipe: Any = None, quantises: bool = False
    ) -> None:
        self.attachment = attachment
        self.device = device
        self.pipe = pipe
        self.quantises = quantises
        self.aborted = False
        self.passed: list[Passed] = []
        self._arrays: list[tuple[Any, int, list[Passed]]] = []
        # By the pictures' ids, which are theirs for as long as they are kept.
        self._pictures: dict[int, tuple[Image.Image, int, Passed]] = {}

    def add(self, output: Any, passed: list[Passed]) -> None:
        """Note what is handed on: a list of pictures or clips, an array or tensor of them; one entry for each item."""
        known = {id(entry) for entry in self.passed}
        self.passed += [entry for entry in passed if id(entry) not in known]
        if isinstance(output, tuple):  # LDM3D: pictures and their depth
            for part in output:
                self.add(part, passed)
        elif not hasattr(output, "__len__") or len(output) != len(passed):
            return  # whatever it is, it is looked at again at the end
        elif isinstance(output, list):
            for item, entry in zip(output, passed, strict=True):
                for picture in item if isinstance(item, list) else [item]:
                    if isinstance(picture, Image.Image):
                        self._pictures[id(picture)] = (picture, _state(picture), entry)
        else:
            self._arrays.append((output, _state(output), passed))

    def find(self, images: Any, *, clips: bool = False) -> list[Passed] | None:
        """Look up what was handed on.

        Args:
            images: Whatever a pipeline hands on or returns.
            clips: Whether a flat list of pictures, or a 4-D array, is one clip.

        Returns:
            One entry per item; or ``None`` if any of them is not, bit by bit, what has passed.
        """
        for array, state, passed in self._arrays:
            if array is images and _state(array) == state:
                return passed
        items = [images] if clips and _is_one_clip(images) else split(images)
        found: list[Passed] = []
        for item in items:
            entry = self._find_item(item, found) or (self._find_rounded(item) if self.quantises and clips else None)
            if entry is None:
                return None
            found.append(entry)
        return found

    def find_quantised(self, video: Tensor, value_range: tuple[int, int]) -> list[Passed] | None:
        """Look up clips ``[B, C, F, H, W]`` that passed as an array and come back rounded to 8 bits."""
        if not self.quantises:
            return None
        video = video.float() if value_range == (0, 1) else video.float() / 2 + 0.5
        arrays = video.movedim(1, -1).cpu().numpy()
        return next((passed for output, _, passed in self._arrays if _rounds_to(output, arrays)), None)

    def _find_rounded(self, clip: Any) -> Passed | None:
        """Look up a clip that passed and comes back rounded to 8 bits, in the form in which it passed."""
        known = [(part, entry) for array, _, passed in self._arrays for part, entry in zip(array, passed, strict=True)]
        for entry in self.passed:
            known.append(([picture for picture, _, owner in self._pictures.values() if owner is entry], entry))
        return next((entry for part, entry in known if _rounds_to(part, clip)), None)

    def _find_item(self, item: Any, taken: list[Passed]) -> Passed | None:
        """The entry of an item; of several that are equal, one that is not taken yet."""
        if isinstance(item, Image.Image):
            _, state, entry = self._pictures.get(id(item), (None, None, None))
            return entry if entry is not None and _state(item) == state else None
        if isinstance(item, list):
            return _together([self._find_item(part, []) for part in item])
        equal: list[Passed] = []
        for array, state, passed in self._arrays:
            alike = type(array) is type(item) and item.shape in (array.shape[1:], array.shape[2:])
            if not alike or _state(array) != state:
                continue
            for part, entry in zip(array, passed, strict=True):
                if any(_equal(frame, item) for frame in (part if part.ndim > item.ndim else [part])):
                    equal.append(entry)
        if equal:
            return next((entry for entry in equal if not any(entry is other for other in taken)), equal[0])
        return _together([self._find_item(part, []) for part in item]) if _rank(item) >= 4 else None


def _together(parts: list[Passed | None]) -> Passed | None:
    """One entry for pictures that are one item: the frames of a clip, the layers of a picture."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    if known[0].frames is not None and len(known[0].frames) == len(known) and all(p is known[0] for p in known):
        return known[0]
    distinct = list({id(part): part for part in known}.values())
    originals = [part.original for part in distinct if part.original is not None]
    return Passed(
        worst([part.verdict for part in known]),
        frames=tuple(part.verdict for part in known),
        original=torch.cat([o if o.ndim == 4 else o[None] for o in originals]) if originals else None,
    )


def merged(before: Passed, after: Passed) -> Passed:
    """One entry for a clip that was looked at twice, the second time with what was flagged the first time redacted."""
    frames = tuple(
        one if one is not None and one.flagged else other
        for one, other in zip(before.frames or (), after.frames or (), strict=True)
    )
    originals = [entry.original for entry in (before, after) if entry.original is not None]
    return Passed(worst([before.verdict, after.verdict]), frames, torch.cat(originals) if originals else None)


_current: ContextVar[Record | None] = ContextVar("nsfw_guard_record", default=None)


def current_record() -> Record | None:
    """The record of the innermost guarded call that is under way in this thread."""
    return _current.get()


def record_of(attachment: Attachment) -> Record | None:
    """The current record, if it is of a call that this attachment guards."""
    record = current_record()
    return record if record is not None and record.attachment is attachment else None


@contextmanager
def recording(record: Record | None) -> Iterator[None]:
    """Make this the current record, until the end of the block."""
    token = _current.set(record)
    try:
        yield
    finally:
        _current.reset(token)


_finishing: ContextVar[bool] = ContextVar("nsfw_guard_finishing", default=False)


def is_finishing() -> bool:
    """Whether a processor is at work on what has been looked at already."""
    return _finishing.get()


@contextmanager
def finishing() -> Iterator[None]:
    """Let processors work on what has been looked at already, until the end of the block."""
    token = _finishing.set(True)
    try:
        yield
    finally:
        _finishing.reset(token)


def split(images: Any) -> list[Any]:
    """The items of a batch: pictures, clips (lists of pictures), ``[C, H, W]`` or ``[F, C, H, W]`` of a tensor, …."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim >= 4:
        return list(images)
    return [images]


def _state(output: Any) -> int:
    """What changes when an object is written to in place: a checksum; of a picture, of what its bytes stand for, too.

    On a GPU that would be a wait: there it is a tensor's count of writes.
    """
    if isinstance(output, Tensor):
        # On a CPU its memory can be written to past the count, through ``.numpy()`` or ``.data``.
        if output.device.type != "cpu" and not output.is_inference():
            return output._version
        output = output.detach().contiguous().view(torch.uint8).cpu().numpy()
    if isinstance(output, Image.Image):
        palette = output.getpalette() if output.palette is not None else None
        meant = repr((output.mode, output.size, palette, sorted(output.info.items(), key=repr)))
        return zlib.crc32(meant.encode(), zlib.crc32(output.tobytes()))
    total = 0
    for part in output:  # one at a time: clips are large
        total = zlib.crc32(np.ascontiguousarray(part).data, total)
    return total


def _rounds_to(one: Any, other: Any) -> bool:
    """Whether two clips, or arrays of them, are of one kind and differ by no more than 8 bits can hold."""
    if type(one) is not type(other):
        return False
    one, other = _levels(one), _levels(other)
    return one.shape == other.shape and bool(np.abs(one - other).max() < 1.01 / 255)


def _levels(clip: Any) -> Any:
    """In [0, 1]."""
    if isinstance(clip, list):
        return np.stack([np.asarray(frame, dtype=np.float32) / 255 for frame in clip]) if clip else np.zeros(0)
    return clip.float().cpu().numpy() if isinstance(clip, Tensor) else clip


def _rank(item: Any) -> int:
    return item.ndim if isinstance(item, (Tensor, np.ndarray)) else 0


def _is_one_clip(images: Any) -> bool:
    if isinstance(images, list):
        return bool(images) and isinstance(images[0], Image.Image)
    return _rank(images) == 4


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return same and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return False
