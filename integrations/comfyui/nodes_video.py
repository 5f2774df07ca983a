"""The node for videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import Input, InputImpl, io

from nsfw_guard.clips import decide_frames, frames_to_redact
from nsfw_guard.errors import ImageError, SettingError
from nsfw_guard.images import ImageBatch
from nsfw_guard.policy import Policy
from nsfw_guard.redact import Redaction
from nsfw_guard.verdict import Verdict

from . import classifier, options, redaction, report
from .nodes_image import ClassifyingNode, blocker

FRAMES, CLIP = "runs of flagged frames", "the whole video"
# Of ranges and of frames on the node: more than that hide the graph.
_LINES = 4


class GuardVideo(ClassifyingNode):
    """NSFW Video Guard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Video",
            display_name="NSFW Video Guard",
            category="video",
            description="Looks at the frames of a video, and redacts runs of frames or all of it. No frame is dropped; "
            "sound, frame rate and bit depth stay.",
            search_aliases=["nsfw video", "video moderation", "censor video"],
            inputs=[
                io.Video.Input("video", tooltip="All of its frames are decoded; they are looked at a few at a time."),
                *options.guard_inputs(),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="Look at every n-th frame, and at each one next to a flagged one.",
                ),
                io.Combo.Input(
                    "redact", options=[FRAMES, CLIP], default=FRAMES, optional=True, tooltip="What is redacted."
                ),
                io.Int.Input(
                    "min_run",
                    default=8,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="The shortest run of redacted frames, and the shortest gap between two, so that nothing "
                    "flickers.",
                ),
            ],
            outputs=[
                io.Video.Output("videos", display_name="video", tooltip="With as many frames as it had."),
                io.Boolean.Output("flagged", tooltip="Whether any frame is flagged."),
                io.String.Output("report", tooltip="JSON: the redacted ranges in seconds, one verdict per frame seen."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def check_lazy_status(
        cls,
        video: Any,
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Any = None,
        every: Any = 1,
        replacement: Any = options.UNLINKED,
        **_: Any,
    ) -> list[str]:
        """Ask for the replacement picture only when something is flagged.

        A file is decoded once more for that. What was decided is not kept: other nodes run before ``execute``.
        """

        def flagged() -> bool:
            given, node_id = options.plain(sensitivity), cls.hidden.unique_id
            return decide_video(video, given, classifier, policy, every=every, node_id=node_id).flagged

        return options.needed({"replacement": replacement}, action, flagged)

    @classmethod
    def execute(
        cls,
        video: Input.Video,
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Policy | None = None,
        every: int = 1,
        redact: str = FRAMES,
        min_run: int = 8,
        replacement: Any = None,
    ) -> io.NodeOutput:
        """Look, decide, redact."""
        node_id = cls.hidden.unique_id
        decided = decide_video(
            video, sensitivity, classifier, policy, every=every, redact=redact, min_run=min_run, node_id=node_id
        )
        done = options.action_of(action, replacement, flagged=decided.flagged)
        guarded, became = redact_video(decided, done)
        text, verdicts_json = describe(decided, done, became)
        return io.NodeOutput(guarded, decided.flagged, verdicts_json, ui=report.as_ui(text, verdicts_json))


@dataclass(frozen=True)
class Decided:
    """What was decided on a video.

    Attributes:
        video: The video.
        components: Its decoded parts.
        loaded: The classifier that was asked.
        policy: By which it was decided.
        verdicts: One per frame; ``None`` for those that were not looked at.
        runs: The frames to redact, from the first one of a run to the one after its last.
    """

    video: Any
    components: Any
    loaded: classifier.LoadedClassifier
    policy: Policy
    verdicts: list[Verdict | None]
    runs: list[tuple[int, int]]

    @property
    def seen(self) -> list[Verdict]:
        """The verdicts on the frames that were looked at."""
        return [verdict for verdict in self.verdicts if verdict is not None]

    @property
    def flagged(self) -> bool:
        """Whether any frame is flagged."""
        return any(verdict.flagged for verdict in self.seen)


def decide_video(
    video: Any,
    sensitivity: Any,
    given: Any,
    policy: Policy | None,
    *,
    every: int = 1,
    redact: str = FRAMES,
    min_run: int = 8,
    node_id: str | None,
) -> Decided:
    """Look at the frames of a video; the arguments are the inputs of the node.

    Raises:
        ImageError: It has no frames, or is no video.
        SettingError: A setting out of its range.
    """
    if redact not in (FRAMES, CLIP):
        raise SettingError(f"redact is {redact!r}; expected {FRAMES!r} or {CLIP!r}.")
    for name, value in (("every", every), ("min_run", min_run)):
        # ComfyUI checks no range of what comes over a link.
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingError(f"{name} is {value!r}; expected a whole number of frames, at least 1.")
    if not hasattr(video, "get_components"):
        raise ImageError(f"The input is a {type(video).__name__}; expected a VIDEO.")
    components = video.get_components()
    frames = components.images
    if not len(frames):
        raise ImageError("The video has no frames; expected at least one.")
    classifier.check_images(frames)
    alpha = getattr(components, "alpha", None)
    if alpha is not None:  # looked at as transparent images are
        alpha = alpha[..., None] if alpha.ndim == 3 else alpha
        frames = torch.cat([frames[..., :3], alpha.to(frames)], dim=-1)
    loaded = classifier.given_or_default(given)
    chosen = options.policy_of(loaded.card, sensitivity, policy)

    def decide(indices: list[int]) -> list[Verdict]:
        return chosen.decide(loaded.score(frames, indices, node_id=node_id)) if indices else []

    verdicts = decide_frames(len(frames), decide, chosen, every=every)
    runs = frames_to_redact(verdicts, min_run=min_run)
    return Decided(video, components, loaded, chosen, verdicts, [(0, len(frames))] if runs and redact == CLIP else runs)


def redact_video(decided: Decided, action: options.Action, *, rebuild: bool = False) -> tuple[Any, list[Redaction]]:
    """Redact the runs of a video.

    Args:
        decided: What was decided on it.
        action: What to do.
        rebuild: Hand on the frames that were looked at, in [0, 1], rather than have a file read again later.

    Returns:
        The video itself if nothing is redacted, what blocks it, or another one with as many frames; and what each run
        became.
    """
    held = blocker(action, decided.flagged)
    if held is not None:
        return held, []
    components = decided.components
    became: list[Redaction] = []
    if decided.runs and action.redaction.kind != "none":
        components, became = _redacted(decided, action.redaction)
    if rebuild:
        components = _clamped(components)
    from_file = isinstance(decided.video, InputImpl.VideoFromFile)
    if components is decided.components and not (from_file and (rebuild or _carries_more(decided.video))):
        return decided.video, became
    return InputImpl.VideoFromComponents(components, bit_depth=decided.video.get_bit_depth()), became


def _redacted(decided: Decided, how: Redaction) -> tuple[Any, list[Redaction]]:
    """Redact the runs, opaque."""

    def judge(batch: ImageBatch) -> list[bool]:
        return decided.loaded.passes(batch, decided.policy)

    components = decided.components
    frames, became = redaction.redacted_runs(components.images, decided.verdicts, decided.runs, how, judge)
    alpha = getattr(components, "alpha", None)
    if alpha is None:
        return replace(components, images=frames), became
    alpha = alpha.clone()
    for start, stop in decided.runs:
        alpha[start:stop] = 1
    return replace(components, images=frames, alpha=alpha), became


def _clamped(components: Any) -> Any:
    """The very same if nothing is outside of [0, 1]."""
    parts = {"images": components.images, "alpha": getattr(components, "alpha", None)}
    inside = {name: redaction.clamped(part) for name, part in parts.items() if part is not None}
    return components if all(part is parts[name] for name, part in inside.items()) else replace(components, **inside)


def _carries_more(video: Any) -> bool:
    """Whether a file holds more to see than the stream that was looked at: ComfyUI copies all of it when it saves."""
    import av

    with av.open(video.get_stream_source()) as container:
        kinds = [stream.type for stream in container.streams]
    return kinds.count("video") > 1 or not set(kinds) <= {"video", "audio"}


def describe(decided: Decided, action: options.Action, became: list[Redaction]) -> tuple[str, str]:
    """Return the text for the node and the report; ``became`` is what each run became."""
    rate = decided.components.frame_rate
    ranges = [[_seconds(start, rate), _seconds(stop, rate)] for start, stop in decided.runs]
    seen = [index for index, verdict in enumerate(decided.verdicts) if verdict is not None]
    of_frames = {
        index: redaction.told(step, verified=True)
        for run, step in zip(decided.runs, became, strict=bool(became))
        for index in range(*run)
    }
    verdicts_json = report.as_json(
        decided.seen,
        decided.policy,
        action.kind,
        of_frames,
        indices=seen,
        checkpoint=decided.loaded.name,
        frames=len(decided.verdicts),
        frame_rate=float(rate),
        seen_frames=seen,
        redacted_seconds=ranges,
        redactions=[redaction.in_words(step) for step in became],
    )
    head, *frames = report.as_text(
        decided.seen,
        action.kind,
        checkpoint=decided.loaded.name,
        indices=seen,
        total=len(decided.verdicts),
        noun="frame",
        most=_LINES,
    ).split("\n")
    words = [f": {redaction.in_words(step)}" for step in became] or [""] * len(ranges)
    told = [f"{start:.2f} to {stop:.2f} s{word}" for (start, stop), word in zip(ranges, words, strict=True)]
    more = [f"... and {len(ranges) - _LINES} more"] if len(ranges) > _LINES else []
    return "\n".join([head, *told[:_LINES], *more, *frames]), verdicts_json


def _seconds(frame: int, rate: Fraction | float) -> float:
    return round(float(frame / rate), 3)


NODES = [GuardVideo]
