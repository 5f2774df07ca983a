"""Diffusers' image and video processors, guarded: the one funnel through which nearly every pipeline's tensors pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nsfw_guard.errors import ImageError

from .checks import check_images, within_range
from .clips import check_clip
from .record import Passed, Record, finishing, is_finishing, merged, record_of
from .settings import Attachment


def is_processor(value: Any) -> bool:
    """Whether an object finishes images or videos as diffusers' processors do."""
    return not isinstance(value, (type, torch.nn.Module)) and bool(mixins_for(value))


def parts_of(pipe: Any) -> Iterator[Any]:
    """The processors of a pipeline; of one that wraps another, the inner one."""
    yield from (funnel(value) for value in list(vars(pipe).values()) if is_processor(value))


def funnel(processor: Any) -> Any:
    """The processor itself, or the one that it wraps: what the outer one pastes on top has not been looked at."""
    inner = getattr(processor, "_image_processor", None)
    return inner if is_processor(inner) else processor


def mixins_for(processor: Any) -> tuple[type, ...]:
    """The mixins that guard a processor: one for each of its methods that finish something."""
    found = (mixin for name, mixin in _MIXINS.items() if callable(getattr(type(processor), name, None)))
    return tuple(found)


class _Guarded:
    """What the mixins share."""

    _nsfw_guard: Attachment
    config: Any

    def _finish_clips(self, finish: Any, video: Any, output_type: str, **kwargs: Any) -> Any:
        record = self._record()
        if record is None or output_type == "latent" or not isinstance(video, Tensor) or video.ndim != 5:
            return finish(video, output_type, **kwargs)
        value_range = self._range(None, len(video))
        checked = [check_clip(clip.movedim(0, 1), record, value_range=value_range) for clip in video]
        passed = [entry for _, entry in checked]
        if any(entry.verdict.flagged for entry in passed):
            video = torch.stack([clip.movedim(1, 0) for clip, _ in checked])
        if record.come_twice([clip for clip, _ in checked]):
            passed = [merged(one, other) for one, other in zip(record.passed, passed, strict=True)]
        shown = value_range == (-1, 1) or within_range(video)
        return self._finish(record, passed, lambda: finish(video, output_type, **kwargs), shown=shown)

    def _finish(self, record: Record, passed: list[Passed], finish: Any, *, shown: bool = True) -> Any:
        """Finish what has passed; ``shown`` tells whether it comes out as it was looked at."""
        with finishing():
            output = finish()
        # What a processor of somebody else's makes of it is looked at again at the end.
        if type(self)._unguarded.__module__.startswith("diffusers."):  # type: ignore[attr-defined]
            record.add(output if shown else [], passed)
        return output

    def _record(self) -> Record | None:
        """The record of the call, or one of our own outside of any; ``None`` inside of what was looked at already."""
        if is_finishing():
            return None
        return record_of(self._nsfw_guard) or Record(self._nsfw_guard, None)

    def _range(self, do_denormalize: list[bool] | None, count: int) -> tuple[int, int]:
        """The range of what is handed in: what will be denormalised is in [-1, 1]."""
        wanted = set(self._denormalized(do_denormalize, count))
        if len(wanted) != 1:
            raise ImageError(
                "Some of the images handed to postprocess are in [-1, 1] and some in [0, 1], and the guard has seen "
                "none of them; hand them over in one range."
            )
        return (-1, 1) if wanted.pop() else (0, 1)

    def _denormalized(self, do_denormalize: list[bool] | None, count: int) -> list[bool]:
        """Which images will be denormalised."""
        if do_denormalize is None or not count:
            return [bool(getattr(self.config, "do_normalize", True))] * max(1, count)
        return [bool(value) for value in do_denormalize]


class GuardedImages(_Guarded):
    """Mixed into the class of a processor that has ``postprocess``."""

    def postprocess(
        self, image: Any, output_type: str = "pil", do_denormalize: list[bool] | None = None, **kwargs: Any
    ) -> Any:
        """Check images ``[B, C, H, W]``, redact what is flagged, and finish them as the processor does."""
        record = self._record()
        finish = super().postprocess  # type: ignore[misc]
        if do_denormalize is not None:  # not every processor has it
            kwargs["do_denormalize"] = do_denormalize
        if record is None or output_type == "latent" or not isinstance(image, Tensor):
            return finish(image, output_type, **kwargs)
        passed = record.find(image)
        if passed is None:
            value_range = self._range(do_denormalize, len(image))
            image, passed = check_images(image, record, value_range=value_range)
            shown = value_range == (-1, 1) or within_range(image)
        else:
            # What was looked at in [-1, 1] and is not denormalised comes out as another picture, unless it is redacted.
            kept = zip(self._denormalized(do_denormalize, len(image)), passed, strict=False)
            shown = all(denormalized or entry.verdict.flagged for denormalized, entry in kept)
        return self._finish(record, passed, lambda: finish(image, output_type, **kwargs), shown=shown)


class GuardedClips(_Guarded):
    """Mixed into the class of a processor that has ``postprocess_video``."""

    def postprocess_video(self, video: Any, output_type: str = "np", **kwargs: Any) -> Any:
        """Check clips ``[B, C, F, H, W]``, redact frames, and finish them as the processor does."""
        return self._finish_clips(super().postprocess_video, video, output_type, **kwargs)  # type: ignore[misc]


class GuardedHdrClips(_Guarded):
    """Mixed into the class of a processor that has ``postprocess_hdr_video``."""

    def postprocess_hdr_video(self, video: Any, output_type: str = "np", **kwargs: Any) -> Any:
        """Check clips in their compressed range, [-1, 1], before they are expanded to linear light."""
        return self._finish_clips(super().postprocess_hdr_video, video, output_type, **kwargs)  # type: ignore[misc]


_MIXINS = {
    "postprocess": GuardedImages,
    "postprocess_video": GuardedClips,
    "postprocess_hdr_video": GuardedHdrClips,
}
