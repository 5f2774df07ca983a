"""The node for videos."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from comfy_api.latest import Input, InputImpl, Types, io
from torch import Tensor

from nsfw_guard.clips import decide_frames, frames_to_redact
from nsfw_guard.errors import ImageError, SettingError
from nsfw_guard.policy import Policy
from nsfw_guard.redact import FILLED_REASONS
from nsfw_guard.verdict import Verdict

from . import classifier, options, report
from .nodes_image import blocker, show

FRAMES, CLIP = "runs of flagged frames", "the whole video"


class GuardVideo(io.ComfyNode):
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
                options.sensitivity_input(),
                options.action_input(),
                options.classifier_input(),
                options.policy_input(),
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
    ) -> io.NodeOutput:
        """Look, decide, redact."""
        guarded = guard_video(
            video, sensitivity, action, classifier, policy, every, redact, min_run, node_id=cls.hidden.unique_id
        )
        return io.NodeOutput(*guarded[:3], ui=show(cls, guarded[3], guarded[2]))


def guard_video(
    video: Any,
    sensitivity: Any,
    action: Any,
    given: Any,
    policy: Policy | None,
    every: int,
    redact: str,
    min_run: int,
    *,
    node_id: str | None,
) -> tuple[Any, bool, str, str]:
    """Guard a video; the arguments are the inputs of the node.

    Returns:
        The video (itself if nothing is redacted) or what blocks it; whether any frame is flagged; the report; the text.

    Raises:
        ImageError: It has no frames, or is no video.
        SettingError: A setting out of its range.
    """
    if redact not in (FRAMES, CLIP):
        raise SettingError(f"redact is {redact!r}; expected {FRAMES!r} or {CLIP!r}.")
    if not hasattr(video, "get_components"):
        raise ImageError(f"The input is a {type(video).__name__}; expected a VIDEO.")
    components = video.get_components()
    frames = components.images
    if not len(frames):
        raise ImageError("The video has no frames; expected at least one.")
    classifier.check_images(frames)
    loaded = classifier.load() if given is None else given
    chosen = options.policy_of(loaded.card, sensitivity, policy)
    count = len(frames)

    def decide(indices: list[int]) -> list[Verdict]:
        if not indices:
            return []
        # Without a copy where every frame is looked at.
        part = frames if len(indices) == count else frames[indices]
        return chosen.decide(loaded.score(part, node_id=node_id))

    verdicts = decide_frames(count, decide, chosen, every=every)
    seen = [verdict for verdict in verdicts if verdict is not None]
    flagged = any(verdict.flagged for verdict in seen)
    runs = frames_to_redact(verdicts, min_run=min_run)
    if flagged and redact == CLIP:
        runs = [(0, count)]
    done = options.action_of(action, flagged=flagged)
    rate = components.frame_rate
    verdicts_json = report.as_json(
        seen,
        chosen,
        done.kind,
        frames=count,
        frame_rate=float(rate),
        seen_frames=[index for index, verdict in enumerate(verdicts) if verdict is not None],
        redacted_seconds=[[_seconds(start, rate), _seconds(stop, rate)] for start, stop in runs],
    )
    text = report.as_text(seen, done.kind, noun="frame")
    if runs:
        text += "\n" + ", ".join(f"{_seconds(start, rate):.2f}-{_seconds(stop, rate):.2f} s" for start, stop in runs)
    held = blocker(done, seen)
    if held is not None:
        return held, True, verdicts_json, text
    images = _redacted(frames, verdicts, runs, done)
    if images is frames:
        return video, flagged, verdicts_json, text
    rebuilt = Types.VideoComponents(
        images=images,
        frame_rate=rate,
        audio=components.audio,
        metadata=components.metadata,
        alpha=getattr(components, "alpha", None),
    )
    depth = video.get_bit_depth() if hasattr(video, "get_bit_depth") else 8
    return InputImpl.VideoFromComponents(rebuilt, bit_depth=depth), flagged, verdicts_json, text


def _redacted(
    frames: Tensor, verdicts: list[Verdict | None], runs: list[tuple[int, int]], action: options.Action
) -> Tensor:
    """The frames with those of the runs redacted, whether or not each of them is flagged itself."""
    worst = max((v for v in verdicts if v is not None), key=lambda v: (v.flagged, v.score))
    others = worst if worst.reason in FILLED_REASONS else replace(worst, reason="clip")
    covered = {index for run in runs for index in range(*run)}
    unflagged = replace(others, flagged=False, reason=None)
    each = [
        (verdict if verdict is not None and verdict.flagged else others) if index in covered else unflagged
        for index, verdict in enumerate(verdicts)
    ]
    return options.redacted(frames, each, action)


def _seconds(frame: int, rate: Fraction | float) -> float:
    return round(float(frame / rate), 3)


NODES = [GuardVideo]
