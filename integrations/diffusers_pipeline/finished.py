"""Looking at finished output: what a call returns, wherever it is, and whatever it has not handed to the guard before.

All that a call returns is walked (`nsfw_guard.walk`). Pictures are found among what has passed during the call, or
looked at now; what `table` declares to be no picture passes; the rest is plain, or an error.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsfw_guard.errors import ImageError
from nsfw_guard.images import ImageBatch
from nsfw_guard.layouts import is_array, layouts, ranges_of
from nsfw_guard.leaves import look_at
from nsfw_guard.verdict import Verdict
from nsfw_guard.walk import Place, is_leaf, is_pictures, walk

from . import table
from .checks import Range, check_images
from .clips import check_clip
from .record import Passed, Record, items_of, merged


class Finish:
    """Looks through what one call returns, and keeps what it found.

    Args:
        record: Of the call.
        cls: Of the pipeline; it says how its output is to be read.
        latents: Whether latents were asked for, and may be returned: tensors where pictures would be are these.
    """

    def __init__(self, record: Record, cls: type, *, latents: bool = False) -> None:
        self._record, self._cls, self._latents = record, cls, latents
        self._known = table.mechanism(cls.__name__) is not None
        self._found: list[tuple[int, Passed]] = []
        # Arrays in lists, each of which is one item, such as the layers of a picture; in a tuple, each is a batch.
        self._listed: set[int] = set()
        self._output: Any = None

    @property
    def found(self) -> list[Passed]:
        """What was found: first what is in the fields for pictures, in the order of ``table.FIELDS``, then the rest."""
        return [entry for _, entry in sorted(self._found, key=lambda one: one[0])]

    @property
    def hides_latents(self) -> bool:
        """Whether latents, masks and embeddings are not to come out."""
        return self._record.attachment.settings.latents == "raise"

    def look_through(self, output: Any, name: str = "output") -> Any:
        """Look at everything in an output.

        Returns:
            The same object; or, if something in it is flagged, a copy.

        Raises:
            ImageError: Something that cannot be looked at.
        """
        self._output = output
        return walk(output, self._visit, name=name, passes=self._passes)

    def look_at_field(self, name: str, value: Any) -> Any:
        """Look at everything in one field of an output."""
        return self.look_through({name: value})[name]

    def _passes(self, value: Any, place: Place) -> bool:
        field, inner = _field(place), place.steps[1:]
        if isinstance(value, list):
            self._listed |= {id(item) for item in value if isinstance(item, (Tensor, np.ndarray))}
        if self._latents and isinstance(value, Tensor) and not inner and (field in table.FIELDS or field == 0):
            return True
        if field in table.FIELDS and all(isinstance(step, int) for step in inner):
            _refuse_what_is_no_picture(value, place)
        if inner:
            return False
        if isinstance(field, str) and table.is_intermediate(field) and not self.hides_latents and is_array(value):
            return True
        held = table.held_in(self._cls, field)
        if held == "latents":
            return not self.hides_latents or self._is_taken_out(field, value)
        return held == "other" and (self._known or not may_be_pictures(value))

    def _is_taken_out(self, field: Any, value: Any) -> bool:
        """Whether latents are where ``finish`` takes them out: in an output of diffusers, or a tuple."""
        output = self._output
        if isinstance(output, OrderedDict):
            return output.get(field) is value and getattr(output, str(field), value) is value
        return isinstance(output, tuple) and output[field] is value

    def _visit(self, leaf: Any, place: Place) -> Any:
        field = _field(place)
        in_field = field in table.FIELDS
        rank = list(table.FIELDS).index(field) if in_field else len(table.FIELDS)
        clips = table.FIELDS[field] if in_field else field == 0 and table.makes_clips(self._cls)
        decoded = isinstance(leaf, Tensor) and leaf.ndim == 5 and table.returns_decoded(self._cls)
        shown = leaf.movedim(1, 2) if decoded else leaf
        signed = decoded or table.returns_signed(self._cls)
        passed = self._record.find([leaf], final=True) if id(leaf) in self._listed else None
        done = shown
        if passed is None:
            done, passed = look(shown, self._record, clips=clips, signed=signed, sure=self._known, name=str(place))
        if not clips:  # an image that a video pipeline made as a clip of one frame
            passed = [replace(entry, frames=None) if len(entry.frames or ()) == 1 else entry for entry in passed]
        known = {id(entry) for _, entry in self._found}
        if not all(id(entry) in known for entry in passed):  # LDM3D: pictures and their depth
            self._found += [(rank, entry) for entry in passed]
        if done is shown:
            return leaf
        return done.movedim(1, 2) if decoded else done


def look(
    images: Any, record: Record, *, clips: bool, signed: bool = False, sure: bool = True, name: str = "output"
) -> tuple[Any, list[Passed]]:
    """Find images among what has passed, or check them; ``signed`` and ``sure`` are about tensors in [-1, 1].

    What is new although something was flagged is taken for a composite of it, and goes with it: in-painting pastes the
    original picture back over the crop that was checked.
    """
    if isinstance(images, (Image.Image, Tensor, np.ndarray)) or is_pictures(images):
        passed = record.find(images, clips=clips, final=True)
        if passed is not None:
            return images, passed
    value_range = (-1, 1) if signed and isinstance(images, Tensor) else (0, 1)
    twice = clips and _is_ordinary(images) and record.come_twice(items_of(images, clips=True))
    before = [] if twice else [entry.verdict for entry in record.passed]
    done, passed = check_any(images, record, clips=clips, value_range=value_range, sure=sure, before=before, name=name)
    return done, [merged(*both) for both in zip(record.passed, passed, strict=True)] if twice else passed


def check_any(
    images: Any,
    record: Record,
    *,
    clips: bool,
    value_range: Range = (0, 1),
    sure: bool = True,
    before: Sequence[Verdict] = (),
    name: str = "output",
) -> tuple[Any, list[Passed]]:
    """Check a leaf of an output.

    Args:
        images: PIL images, clips of them, an array or tensor of one item or many, or whatever ``look_at`` takes.
        record: Of the call.
        clips: Whether a flat list of pictures, or a 4-D array, is one clip.
        value_range: Of arrays and tensors, as far as it is known; see ``ranges_of``.
        sure: Whether (-1, 1) is what the pipeline's class is known for.
        before: What was decided earlier in the call.
        name: What messages call it.

    Returns:
        The same, redacted; one entry per item. Of what can be read in several ways, those by the first of them, and
        what is flagged by the others.

    Raises:
        ImageError: It cannot be checked.
    """
    found: list[list[Passed]] = []

    def check(some: Any) -> Any:
        spans = [value_range]
        if isinstance(some, (Tensor, np.ndarray)):
            spans = ranges_of(some, name, value_range=value_range, sure=sure)
        done, passed = _checked(some, record, clips=clips, spans=spans, before=before)
        found.append([entry for entry in passed if not found or entry.verdict.flagged])
        return done

    done = check(images) if _is_ordinary(images) else look_at(images, check, name)
    return done, [entry for passed in found for entry in passed]


def _checked(
    images: Any, record: Record, *, clips: bool, spans: Sequence[Range], before: Sequence[Verdict]
) -> tuple[Any, list[Passed]]:
    """Check pictures, clips of pictures, or pixels whose channels are where ``read_images`` expects them."""
    value_range, *also = spans

    def of_clip(clip: Any) -> tuple[Any, Passed]:
        return check_clip(clip, record, value_range=value_range, also=tuple(also), before=before)

    def of_images(some: Any) -> tuple[Any, list[Passed]]:
        return check_images(some, record, value_range=value_range, also=tuple(also), before=before)

    if isinstance(images, ImageBatch):
        return of_images(images)
    if isinstance(images, (list, tuple)):
        kind: Callable[[Any], Any] = list if isinstance(images, list) else tuple
        if isinstance(images[0], (list, tuple)):
            done = [of_clip(list(item)) for item in images]
            same = all(
                all(one is other for one, other in zip(clip, item, strict=True))
                for (clip, _), item in zip(done, images, strict=True)
            )
            return (images if same else kind(clip for clip, _ in done)), [passed for _, passed in done]
        if clips and isinstance(images[0], Image.Image):
            clip, one = of_clip(list(images))
            passed = [one]
        else:
            clip, passed = of_images(list(images))
        same = all(one is other for one, other in zip(clip, images, strict=True))
        return (images if same else kind(clip)), passed
    if images.ndim == 3:
        clip, passed = of_images(images[None])
        return (clip[0] if passed[0].verdict.flagged else images), passed
    if images.ndim == 4 and not clips:
        return of_images(images)
    if images.ndim == 4:
        clip, one = of_clip(images)
        return clip, [one]
    given = list(images.reshape(-1, *images.shape[-4:]))
    done = [of_clip(clip) for clip in given]
    passed = [one for _, one in done]
    if all(clip is other for (clip, _), other in zip(done, given, strict=True)):
        return images, passed
    stacked = [clip for clip, _ in done]
    return (torch.stack(stacked) if isinstance(images, Tensor) else np.stack(stacked)).reshape(images.shape), passed


def _is_ordinary(images: Any) -> bool:
    """Whether an array is gray or RGB, in the layout and in numbers that its library is known for."""
    if isinstance(images, Tensor):
        floating = images.is_floating_point() and images.itemsize > 1
        plain = images.layout == torch.strided and (floating or _is_of_levels(images))
        return plain and images.ndim in (3, 4, 5) and images.shape[-3] in (1, 3) and min(images.shape[-2:]) >= 8
    if isinstance(images, np.ndarray):
        plain = (images.dtype.kind == "f" and images.dtype.itemsize <= 8) or _is_of_levels(images)
        return plain and images.ndim in (3, 4, 5) and images.shape[-1] in (1, 3) and min(images.shape[-3:-1]) >= 8
    return is_pictures(images)


def _is_of_levels(images: Any) -> bool:
    """Whether an array is of 8 bits, and no mask of 0 and 1."""
    return images.dtype in (torch.uint8, np.uint8) and bool(math.prod(images.shape)) and int(images.max()) > 1


def may_be_pictures(value: Any) -> bool:
    """Whether an array, or one of a list of them, has the shape of pictures."""
    if isinstance(value, (list, tuple)):
        return any(map(may_be_pictures, value))
    return not is_array(value) or bool(layouts(value, "it"))


def _refuse_what_is_no_picture(value: Any, place: Place) -> None:
    """Where pictures belong, a name or a few numbers are none."""
    if (isinstance(value, str) or is_array(value)) and not is_leaf(value):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise ImageError(
            f"{place} is a {type(value).__name__}{shape}, which cannot be checked; expected images or clips as PIL, "
            'NumPy or tensors. Ask the pipeline for output_type="pil".'
        )


def _field(place: Place) -> Any:
    """The field of an output that a place is in; 0: the first of a tuple, or the only one."""
    return place.steps[0] if place.steps else 0
