"""Nodes for images: guard in one, or classify and censor apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from nsfw_guard.errors import ImageError, SettingError
from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Scores, Verdict

from . import checkpoints, classifier, options, redaction, report
from .classifier import WireScores

EACH, ANY = "each image by itself", "one flags all"


def decide(
    scores: Scores, sensitivity: Any, policy: Policy | None, *, batch: str = EACH
) -> tuple[Policy, list[Verdict]]:
    """Return the policy that a node's inputs say, and its verdicts."""
    chosen = options.policy_of(scores.card, sensitivity, policy)
    if batch_rule(batch) == "any":
        chosen = replace(chosen, batch="any")
    return chosen, chosen.decide(scores)


def batch_rule(batch: str) -> str:
    """Return the rule of a ``Policy`` that the input of a node says."""
    if batch not in (EACH, ANY):
        raise SettingError(f"batch is {batch!r}; expected {EACH!r} or {ANY!r}.")
    return "any" if batch == ANY else "each"


def needed_if_flagged(
    linked: dict[str, Any], action: Any, sensitivity: Any, policy: Any, scores: Callable[[], Scores]
) -> list[str]:
    """Ask for the lazy inputs that the action needs only when something is flagged: for ``check_lazy_status``.

    The arguments are what that gets, and ``scores``, which is called only if it matters.
    """

    def flagged() -> bool:
        _, verdicts = decide(scores(), options.plain(sensitivity), policy)
        return any(verdict.flagged for verdict in verdicts)

    return options.needed(linked, action, flagged)


def blocker(action: options.Action, flagged: bool) -> Any:
    """What goes out in the place of images that are blocked; ``None`` if they are not."""
    return ExecutionBlocker(action.message) if flagged and action.kind == options.BLOCK else None


class ClassifyingNode(io.ComfyNode):
    """A node that takes the default checkpoint if no classifier is linked to it."""

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        """Changes when another checkpoint is the default one."""
        return checkpoints.default_stamp()


class RedactingNode(ClassifyingNode):
    """A node that classifies images, ``image`` or ``images``, and redacts what is flagged."""

    @classmethod
    def check_lazy_status(
        cls,
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Any = None,
        replacement: Any = options.UNLINKED,
        **given: Any,
    ) -> list[str]:
        """Ask for the replacement picture only when something is flagged."""
        images = given["images"] if "images" in given else given["image"]
        return needed_if_flagged(
            {"replacement": replacement},
            action,
            sensitivity,
            policy,
            lambda: scores_of(images, classifier, cls.hidden.unique_id),
        )


class Guard(RedactingNode):
    """NSFW Safety Guard: everything in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Guard",
            display_name="NSFW Safety Guard",
            category="image/safety",
            description="Looks at every image of a batch with an NSFW classifier, and blurs, pixelates, fills, "
            "replaces or blocks what is flagged. Images that are not flagged pass bit by bit as they are.",
            search_aliases=["nsfw", "nsfw filter", "safety checker", "content filter", "moderation", "censor"],
            inputs=[
                io.Image.Input("image", tooltip="Every image of the batch is looked at."),
                *options.guard_inputs(),
                io.Combo.Input(
                    "batch",
                    options=[EACH, ANY],
                    default=EACH,
                    optional=True,
                    advanced=True,
                    tooltip="Whether one flagged image flags the whole batch.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="image", tooltip="Of the same size, type and number."),
                io.Boolean.Output("flagged", tooltip="Whether any image is flagged."),
                io.Mask.Output("mask", tooltip="White all over each flagged image."),
                io.String.Output("report", tooltip="JSON: one verdict per image."),
                options.ScoresType.Output("scores", tooltip="For NSFW Censor and Split by Safety."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Policy | None = None,
        batch: str = EACH,
        replacement: Any = None,
    ) -> io.NodeOutput:
        """Classify, decide, redact."""
        scores = scores_of(image, classifier, cls.hidden.unique_id)
        chosen, verdicts = decide(scores, sensitivity, policy, batch=batch)
        done = censored(image, scores, chosen, verdicts, action, replacement)
        return io.NodeOutput(*done.outputs(image), scores, ui=done.ui)


class Classify(ClassifyingNode):
    """NSFW Classify."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Classify",
            display_name="NSFW Classify",
            category="image/safety",
            description="Runs an NSFW classifier over a batch. Decide with NSFW Censor or Split by Safety: to move a "
            "threshold there runs no classifier again.",
            search_aliases=["nsfw score", "nsfw detector", "image classification"],
            inputs=[
                io.Image.Input("image", tooltip="Every image of the batch is looked at."),
                options.classifier_input(),
            ],
            outputs=[
                options.ScoresType.Output("scores", tooltip="For NSFW Censor and Split by Safety."),
                io.Float.Output("max_score", tooltip="The highest score of the batch by the model's balanced preset."),
                io.String.Output("report", tooltip="JSON: one entry per image."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, image: Tensor, classifier: Any = None) -> io.NodeOutput:
        """Classify."""
        scores = scores_of(image, classifier, cls.hidden.unique_id)
        policy = scores.card.policy()
        verdicts = policy.decide(scores)
        text = report.as_text(verdicts, "nothing done", checkpoint=scores.checkpoint)
        verdicts_json = report.as_json(verdicts, policy, "none", checkpoint=scores.checkpoint)
        highest = max(verdict.score for verdict in verdicts)
        return io.NodeOutput(scores, highest, verdicts_json, ui=report.as_ui(text, verdicts_json))


class Censor(io.ComfyNode):
    """NSFW Censor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Censor",
            display_name="NSFW Censor",
            category="image/safety",
            description="Decides on the scores of NSFW Classify, and redacts what is flagged, all of it or where a "
            "mask says. The classifier runs for what is flagged only: over what is shown instead.",
            search_aliases=["censor", "blur nsfw", "pixelate", "mosaic"],
            inputs=[
                io.Image.Input("image", tooltip="The images that were classified, or the same ones at another size."),
                options.ScoresType.Input("scores", tooltip="From NSFW Classify: one for each image."),
                options.sensitivity_input(),
                options.action_input(),
                options.replacement_input(),
                options.policy_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    lazy=True,
                    tooltip="Redact flagged images only where this is white. Made only when something is flagged.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="image", tooltip="Of the same size, type and number."),
                io.Boolean.Output("flagged", tooltip="Whether any image is flagged."),
                io.Mask.Output("flagged_mask", display_name="mask", tooltip="White all over each flagged image."),
                io.String.Output("report", tooltip="JSON: one verdict per image."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def check_lazy_status(
        cls,
        scores: Any,
        sensitivity: Any = None,
        action: Any = None,
        policy: Any = None,
        replacement: Any = options.UNLINKED,
        mask: Any = options.UNLINKED,
        **_: Any,
    ) -> list[str]:
        """Ask for the replacement picture and the mask only when something is flagged."""
        linked = {"replacement": replacement, "mask": mask}
        return needed_if_flagged(linked, action, sensitivity, policy, lambda: scores)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        scores: WireScores,
        sensitivity: Any = None,
        action: Any = None,
        policy: Policy | None = None,
        mask: Tensor | None = None,
        replacement: Any = None,
    ) -> io.NodeOutput:
        """Decide, redact."""
        check_scores(scores, image)
        chosen, verdicts = decide(scores, sensitivity, policy)
        done = censored(image, scores, chosen, verdicts, action, replacement, mask=mask)
        return io.NodeOutput(*done.outputs(image), ui=done.ui)


@dataclass(frozen=True)
class Censored:
    """What a node has decided and done.

    Attributes:
        verdicts: On what came in.
        action: What was to be done.
        shown: The images, and what became of them.
        text: For the node.
        report: For programs.
    """

    verdicts: list[Verdict]
    action: options.Action
    shown: redaction.Shown
    text: str
    report: str

    @property
    def flagged(self) -> bool:
        """Whether any image is."""
        return any(verdict.flagged for verdict in self.verdicts)

    @property
    def ui(self) -> dict[str, Any]:
        """What the page and the history get."""
        return report.as_ui(self.text, self.report)

    def outputs(self, image: Tensor) -> tuple[Any, bool, Tensor, str]:
        """The images, whether any is flagged, the mask, the report."""
        images = blocker(self.action, self.flagged) or self.shown.images
        return images, self.flagged, report.as_mask(self.verdicts, image), self.report


def censored(
    image: Tensor,
    scores: WireScores,
    policy: Policy,
    verdicts: list[Verdict],
    action: Any,
    replacement: Any,
    *,
    mask: Tensor | None = None,
) -> Censored:
    """Do what the inputs say, and tell of it."""
    chosen = options.action_of(action, replacement, flagged=any(verdict.flagged for verdict in verdicts))
    shown = redaction.redacted(image, verdicts, chosen, scores.judge(policy), mask)
    text = report.as_text(verdicts, chosen.kind, shown.told(), checkpoint=scores.checkpoint)
    verdicts_json = report.as_json(verdicts, policy, chosen.kind, shown.told(), checkpoint=scores.checkpoint)
    return Censored(verdicts, chosen, shown, text, verdicts_json)


def scores_of(image: Any, given: Any, node_id: str | None) -> WireScores:
    """Classify with the classifier that is linked, or the default one; once for each batch."""
    return classifier.given_or_default(given).score(image, node_id=node_id)


def check_scores(scores: Any, image: Any) -> None:
    """Refuse scores that are none, or of another number of images."""
    classifier.check_images(image)
    if not isinstance(scores, WireScores):
        raise SettingError(f"scores is a {type(scores).__name__}; expected what NSFW Classify puts out.")
    if len(scores) != len(image):
        raise ImageError(
            f"There are {len(image)} images and the scores of {len(scores)}; expected those of the same batch."
        )


NODES = [Guard, Classify, Censor]
