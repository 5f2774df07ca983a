"""Nodes that the others take their settings from: the classifier, the policy."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.latest import io

from nsfw_guard.errors import SettingError
from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Level

from . import checkpoints, classifier, options
from .nodes_image import ANY, EACH, batch_rule


class LoadClassifier(io.ComfyNode):
    """Load NSFW Classifier."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_LoadClassifier",
            display_name="Load NSFW Classifier",
            category="image/safety",
            description="Loads an NSFW image classifier from models/nsfw_guard: a checkpoint folder, or a single "
            "safetensors file with its config beside it. The demo model knows drawn shapes only: it is no NSFW model.",
            search_aliases=["nsfw model", "safety checker", "falconsai", "freepik", "marqo", "adamcodd"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[*checkpoints.installed(), checkpoints.DEMO],
                    tooltip="What is in models/nsfw_guard. Fetch one: nsfw-guard download freepik --to "
                    "ComfyUI/models/nsfw_guard/freepik",
                ),
                io.Combo.Input(
                    "device",
                    options=list(classifier.DEVICES),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto: where ComfyUI runs its models.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(classifier.PRECISIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto: that of the file, or a faster one that the device runs natively.",
                ),
            ],
            outputs=[options.ClassifierType.Output("classifier", tooltip="For the other NSFW nodes.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **_: Any) -> Any:
        """Changes when the file is replaced."""
        return checkpoints.stamp(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str, device: str = "auto", precision: str = "auto") -> io.NodeOutput:
        """Load it."""
        return io.NodeOutput(classifier.load(checkpoint, device=device, precision=precision))


class MakePolicy(io.ComfyNode):
    """NSFW Policy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Policy",
            display_name="NSFW Policy",
            category="image/safety",
            description="When an image is flagged, in full: from which level on labels count, and thresholds of single "
            "labels besides.",
            search_aliases=["nsfw threshold", "sensitivity"],
            inputs=[
                io.Combo.Input(
                    "level",
                    options=[level.name.lower() for level in Level if level],
                    default="medium",
                    tooltip="The least severe level that counts. low: suggestive pictures too.",
                ),
                options.threshold_input("Of the sum of the probabilities of all labels that count."),
                io.String.Input(
                    "per_label",
                    default="",
                    optional=True,
                    multiline=True,
                    tooltip="One line for each label with a threshold of its own, such as: porn = 0.3",
                ),
                io.Combo.Input(
                    "batch",
                    options=[EACH, ANY],
                    default=EACH,
                    optional=True,
                    tooltip="Whether one flagged image flags all.",
                ),
            ],
            outputs=[options.PolicyType.Output("policy", tooltip="For the other NSFW nodes.")],
        )

    @classmethod
    def execute(cls, level: str, threshold: float, per_label: str = "", batch: str = EACH) -> io.NodeOutput:
        """Make it."""
        rule = batch_rule(batch)
        pairs = [_threshold_of(line) for line in per_label.splitlines() if line.strip()]
        thresholds = dict(pairs)
        if len(thresholds) < len(pairs):
            raise SettingError(f"per_label has a label twice: {[label for label, _ in pairs]}.")
        return io.NodeOutput(Policy(Level.parse(level), threshold, thresholds, rule))


def _threshold_of(line: str) -> tuple[str, float]:
    found = re.fullmatch(r"\s*(.*\S)\s*[=:]\s*(\S+)\s*", line)
    try:
        if found is not None:
            return found[1], float(found[2])
    except ValueError:
        pass
    raise SettingError(f"per_label has the line {line!r}; expected a label and a threshold: porn = 0.3")


NODES = [LoadClassifier, MakePolicy]
