"""Nodes that send what is flagged another way, or no way at all."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from nsfw_guard.errors import GuardError, SettingError
from nsfw_guard.policy import Policy

from . import options, report
from .classifier import WireScores
from .nodes_image import check_scores, decide


class Split(io.ComfyNode):
    """Split by Safety."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Split",
            display_name="Split by Safety",
            category="image/safety",
            description="Sorts a batch into safe and flagged images. What comes after an empty side is left out.",
            search_aliases=["nsfw filter", "separate", "sort nsfw"],
            inputs=[
                io.Image.Input("image", tooltip="The images that were classified."),
                options.ScoresType.Input("scores", tooltip="From NSFW Classify: one for each image."),
                options.sensitivity_input(),
                options.policy_input(),
            ],
            outputs=[
                io.Image.Output("safe", tooltip="The images that are not flagged."),
                io.Image.Output("flagged", tooltip="The flagged ones, AS THEY ARE."),
                io.String.Output("safe_indices", tooltip="Their places in the batch, such as [0, 2]."),
                io.String.Output("flagged_indices", tooltip="Likewise."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, image: Tensor, scores: WireScores, sensitivity: Any = None, policy: Policy | None = None
    ) -> io.NodeOutput:
        """Sort."""
        check_scores(scores, image)
        chosen, verdicts = decide(scores, sensitivity, policy)
        safe = [index for index, verdict in enumerate(verdicts) if not verdict.flagged]
        flagged = [index for index, verdict in enumerate(verdicts) if verdict.flagged]
        text = report.as_text(verdicts, "split off", checkpoint=scores.checkpoint)
        verdicts_json = report.as_json(verdicts, chosen, "split", checkpoint=scores.checkpoint)
        batches = (image[side] if side else ExecutionBlocker(None) for side in (safe, flagged))
        return io.NodeOutput(*batches, str(safe), str(flagged), ui=report.as_ui(text, verdicts_json))


class Gate(io.ComfyNode):
    """NSFW Gate."""

    SILENT, MESSAGE, STOP = "leave out silently", "leave out with an error", "stop the whole prompt"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        template = io.MatchType.Template("anything")
        return io.Schema(
            node_id="NSFWG_Gate",
            display_name="NSFW Gate",
            category="image/safety",
            description="Lets anything through unless something is flagged: for what must not be saved or sent then.",
            search_aliases=["block", "stop", "switch"],
            inputs=[
                io.MatchType.Input("value", template=template, tooltip="Whatever is to be held back."),
                io.Boolean.Input("flagged", force_input=True, tooltip="From a guard."),
                io.Combo.Input(
                    "mode",
                    options=[cls.SILENT, cls.MESSAGE, cls.STOP],
                    default=cls.SILENT,
                    tooltip="What happens to what comes after this node.",
                ),
                io.String.Input(
                    "message", default="Held back: flagged as NSFW.", optional=True, tooltip="Of the error."
                ),
            ],
            outputs=[
                io.MatchType.Output(
                    template=template, id="passed", display_name="value", tooltip="The same, unless it is held back."
                )
            ],
        )

    @classmethod
    def execute(cls, value: Any, flagged: bool, mode: str, message: str = "") -> io.NodeOutput:
        """Let it through or not."""
        if not isinstance(flagged, bool):
            raise SettingError(f"flagged is {flagged!r}; expected the BOOLEAN of a guard.")
        if mode not in (cls.SILENT, cls.MESSAGE, cls.STOP):
            raise SettingError(f"mode is {mode!r}; expected one of {cls.SILENT!r}, {cls.MESSAGE!r}, {cls.STOP!r}.")
        if not flagged:
            return io.NodeOutput(value)
        message = message.strip() or "Held back: flagged as NSFW."
        if mode == cls.STOP:
            raise GuardError(message)
        return io.NodeOutput(ExecutionBlocker(message if mode == cls.MESSAGE else None))


NODES = [Split, Gate]
