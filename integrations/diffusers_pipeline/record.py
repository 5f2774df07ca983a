"""What passed the guard during one call of a pipeline, and the search for it in what the call returns."""

from __future__ import annotations

import hashlib
import io
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

from . import table
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
        exact: Whether tensors on a GPU are compared with a copy of what passed, at the end; otherwise their count of
            writes tells, which ``.data`` goes past.
    """

    def __init__(
        self, attachment: Attachment, device: torch.device | None, *, pipe: Any = None, exact: bool = False
    ) -> None:
        self.attachment = attachment
        self.device = device
        self.pipe = pipe
        self.exact = exact
        self.aborted = False
        self.passed: list[Passed] = []
        # What passed, how it is known again (a digest, a count of writes, or a copy), and one entry per item.
        self._arrays: list[tuple[Any, Any, list[Passed]]] = []
        # By the pictures' ids, which are theirs for as long as they are kept.
        self._pictures: dict[int, tuple[Image.Image, Any, Passed]] = {}
        # Whether something on a GPU was changed after it passed: not read yet, for that is a wait.
        self._differs: list[Tensor] = []

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
            kept = output.detach().clone() if self.exact and is_elsewhere(output) else _state(output)
            self._arrays.append((output, kept, passed))

    def find(self, images: Any, *, clips: bool = False, final: bool = False) -> list[Passed] | None:
        """Look up what was handed on.

        Args:
            images: Whatever a pipeline hands on or returns.
            clips: Whether a flat list of pictures, or a 4-D array, is one clip.
            final: Whether it is what the caller gets: then what is on a GPU is compared, all in one wait.

        Returns:
            One entry per item; or ``None`` if any of them is not, bit by bit, what has passed.
        """
        known = next((entry for entry in self._arrays if entry[0] is images), None)
        if known is not None:
            _, kept, passed = known
            if isinstance(kept, Tensor):
                same = (kept.shape, kept.dtype) == (images.shape, images.dtype)
                self._differs.append((kept != images).any() if same else torch.ones((), dtype=torch.bool))
            elif _state(images) != kept:
                known = None
        if final and self._differs:
            changed = any(torch.stack([one.to(self._differs[-1].device) for one in self._differs]).tolist())
            self._differs = []
            if changed:  # nobody knows by whom, or how much
                self._arrays.clear()
                self._pictures.clear()
                return None
        if known is not None:
            return passed
        items = items_of(images, clips=clips)
        found: list[Passed] = []
        for item in items:
            entry = self._find_item(item, found)
            if entry is None:
                return None
            found.append(entry)
        return found

    def come_twice(self, clips: list[Any]) -> bool:
        """Whether these are the clips that have passed, once more: Cosmos takes them to 8 bits and back in between.

        What was flagged before is redacted in them by then, frame by frame.
        """
        again = [len(clip) for clip in clips] == [len(entry.frames or ()) for entry in self.passed]
        return again and table.mechanism_of(type(self.pipe)) == "cosmos"

    def _find_item(self, item: Any, taken: list[Passed]) -> Passed | None:
        """The entry of an item; of several that are equal, one that is not taken yet."""
        if isinstance(item, Image.Image):
            _, state, entry = self._pictures.get(id(item), (None, None, None))
            return entry if entry is not None and _state(item) == state else None
        if isinstance(item, list):
            return _together([self._find_item(part, []) for part in item])
        equal: list[Passed] = []
        for array, kept, passed in self._arrays:
            if type(array) is not type(item) or item.shape not in (array.shape[1:], array.shape[2:]):
                continue
            if isinstance(kept, Tensor):
                array = kept
            elif _state(array) != kept:
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


def is_elsewhere(output: Any) -> bool:
    """Whether to read an object is a wait: a tensor on a GPU."""
    return isinstance(output, Tensor) and output.device.type != "cpu"


def digest(value: Any) -> Any:
    """What changes when a picture, an array or other data is written to; see ``_state``."""
    if isinstance(value, (list, tuple)):
        return [digest(item) for item in value]
    if isinstance(value, io.BytesIO):
        value = value.getvalue()
    return _state(value) if isinstance(value, (Image.Image, Tensor, np.ndarray)) else value


def _state(output: Any) -> bytes | int:
    """What changes when an object is written to in place: a digest; of a picture, of what its bytes stand for, too.

    On a GPU that would be a wait: there it is a tensor's count of writes.
    """
    if isinstance(output, Tensor):
        # On a CPU its memory can be written to past the count, through ``.numpy()`` or ``.data``.
        if is_elsewhere(output) and not output.is_inference():
            return output._version
        output = output.detach().contiguous().view(torch.uint8).cpu().numpy()
    digest = hashlib.sha256()
    if isinstance(output, Image.Image):
        palette = output.getpalette() if output.palette is not None else None
        digest.update(repr((output.mode, output.size, palette, sorted(output.info.items(), key=repr))).encode())
        digest.update(output.tobytes())
        return digest.digest()
    for part in output:  # one at a time: clips are large
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()


def items_of(images: Any, *, clips: bool) -> list[Any]:
    """The items of a batch; see ``Record.find`` and ``split``."""
    return [images] if clips and _is_one_clip(images) else split(images)


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
