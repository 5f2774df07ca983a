"""For operators: with ``NSFW_GUARD_ENFORCE=1``, a guard stands before everything that a prompt saves or shows.

What is not covered: nodes that write or show pictures without saying so in their schema, outputs that nodes add while
they run (node expansion), previews that nodes make of their own, latents that are saved as such, and prompts that other
extensions put into the queue by themselves.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import comfy.cli_args
import latent_preview
import nodes
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from server import PromptServer
from torch import Tensor

from nsfw_guard.errors import GuardError, SettingError

from . import checkpoints, classifier, options, redaction
from .nodes_image import blocker, decide
from .nodes_video import decide_video, redact_video

logger = logging.getLogger(__name__)

ENFORCE, MODEL, POLICY, ACTION = (
    "NSFW_GUARD_ENFORCE",
    "NSFW_GUARD_MODEL",
    "NSFW_GUARD_POLICY",
    "NSFW_GUARD_ACTION",
)
_OFF = ("", "0", "false", "no", "off")
_ACTIONS = ("blur", "pixelate", "fill", options.BLOCK)


class Enforced(io.ComfyNode):
    """The guard that is put before outputs. It looks at images, masks and videos, and hands anything else on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Enforced",
            display_name="NSFW Guard (enforced)",
            category="image/safety",
            description="Put before outputs by the operator of this server.",
            inputs=[io.AnyType.Input("value")],
            outputs=[io.AnyType.Output("guarded")],
            hidden=[io.Hidden.unique_id],
            is_dev_only=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        """Changes with the operator's checkpoint."""
        try:
            return checkpoints.stamp(_settings()[0])
        except GuardError:
            return None  # the node itself will say it

    @classmethod
    def execute(cls, value: Any = None) -> io.NodeOutput:
        """Guard it by the operator's settings."""
        return io.NodeOutput(guarded(value, cls.hidden.unique_id))


class Refused(io.ComfyNode):
    """What is left of a prompt that could not be guarded: it does not validate, and says why."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_Refused",
            display_name="Refused by NSFW Guard",
            category="image/safety",
            inputs=[io.String.Input("reason", default="")],
            outputs=[],
            is_output_node=True,
            is_dev_only=True,
        )

    @classmethod
    def validate_inputs(cls, reason: str = "") -> bool | str:
        """Never valid."""
        return f"This server guards every prompt, and could not guard this one, so it was not run: {reason}"

    @classmethod
    def execute(cls, reason: str = "") -> io.NodeOutput:
        """Never run."""
        raise SettingError(reason)


def install_if_asked() -> None:
    """Guard every prompt from now on, if the environment says so in any word but one for no."""
    if os.environ.get(ENFORCE, "").strip().lower() in _OFF:
        return
    switch_previews_off()
    PromptServer.instance.add_on_prompt_handler(guard_prompt)
    logger.warning("%s: every prompt is guarded, and sampler previews are off.", ENFORCE)


def switch_previews_off() -> None:
    """Let samplers show nothing of what they are making: nobody has looked at that."""
    none = comfy.cli_args.LatentPreviewMethod.NoPreviews
    comfy.cli_args.args.preview_method = none
    latent_preview.default_preview_method = none


def guard_prompt(json_data: dict[str, Any]) -> dict[str, Any]:
    """Put a guard before each linked input of each node that saves or shows something; refuse what cannot be guarded.

    Args:
        json_data: What came with ``POST /prompt``.

    Returns:
        The same with its prompt rewritten. ComfyUI swallows the errors of such handlers and runs the prompt as it was,
        so none may leave this function.
    """
    try:
        _settings()
        prompt = json_data["prompt"]
        rewritten = {}
        for key, node in prompt.items():
            kept = {name: value for name, value in node.items() if name != "is_changed"}  # a client's word on the cache
            rewritten[key] = {**kept, "inputs": dict(node.get("inputs", {}))}
        for key, node in list(rewritten.items()):
            if not _shows_something(node["class_type"]):
                continue
            for name, value in node["inputs"].items():
                link = _link_in(value)
                if link is not None and link[0] not in rewritten:
                    raise SettingError(f"node {key!r} links to {link[0]!r}, which is not in the prompt")
                if link is None or rewritten[link[0]]["class_type"] == "NSFWG_Enforced":
                    continue
                guard_id = f"{key}_nsfw_guard_{name}"
                while guard_id in rewritten:
                    guard_id += "_"
                rewritten[guard_id] = {"class_type": "NSFWG_Enforced", "inputs": {"value": link}}
                node["inputs"][name] = [guard_id, 0]
        extra = {k: v for k, v in (json_data.get("extra_data") or {}).items() if k != "preview_method"}
        return {**json_data, "prompt": rewritten, "extra_data": extra}
    except Exception as error:
        logger.exception("A prompt could not be guarded and is refused.")
        refused = {"nsfw_guard": {"class_type": "NSFWG_Refused", "inputs": {"reason": f"{error}"}}}
        rest = json_data if isinstance(json_data, dict) else {}
        return {**rest, "prompt": refused, "partial_execution_targets": None}


def guarded(value: Any, node_id: str | None) -> Any:
    """Guard whatever goes to an output, and keep it in [0, 1].

    Args:
        value: An image batch, a mask (which can hold a picture too), a video, a list of such; anything else is handed
            on as it is.
        node_id: Of the guard.

    Raises:
        ImageError: A tensor that looks like images and cannot be checked.
    """
    model, sensitivity, action = _settings()
    if isinstance(value, (list, tuple)) and not any(isinstance(item, dict) for item in value):  # as in CONDITIONING
        items = [guarded(item, node_id) for item in value]
        held = next((item for item in items if isinstance(item, ExecutionBlocker)), None)
        return held if held is not None else value if _same(items, value) else type(value)(items)
    if hasattr(value, "get_components"):
        decided = decide_video(value, sensitivity, classifier.load(model), None, node_id=node_id)
        return redact_video(decided, options.action_of(action), rebuild=True)[0]
    if not isinstance(value, Tensor) or value.ndim < 2:  # a row of numbers, such as SIGMAS
        return value
    images = value[..., None] if value.ndim == 3 else value[None, ..., None] if value.ndim == 2 else value
    scores = classifier.load(model).score(images, node_id=node_id)
    policy, verdicts = decide(scores, sensitivity, None)
    done = options.action_of(action)
    held = blocker(done, any(verdict.flagged for verdict in verdicts))
    if held is not None:
        return held
    # Values outside of [0, 1] would bring back, in the nodes and files that keep them, what nobody has seen.
    shown = redaction.clamped(redaction.redacted(images, verdicts, done, scores.judge(policy)).images)
    return value if shown is images else shown.reshape(value.shape)


def _settings() -> tuple[str, dict[str, str], dict[str, str]]:
    """The operator's settings: checkpoint, sensitivity, action."""
    model = os.environ.get(MODEL) or checkpoints.default()
    if model not in (*checkpoints.installed(), checkpoints.DEMO):
        raise SettingError(f"{MODEL} is {model!r}; expected one of {[*checkpoints.installed(), checkpoints.DEMO]}.")
    action = os.environ.get(ACTION) or "blur"
    if action not in _ACTIONS:
        raise SettingError(f"{ACTION} is {action!r}; expected one of {', '.join(_ACTIONS)}.")
    sensitivity = os.environ.get(POLICY) or "balanced"
    if sensitivity not in options.PRESETS:
        raise SettingError(f"{POLICY} is {sensitivity!r}; expected one of {', '.join(options.PRESETS)}.")
    message = "Held back by the operator of this server: flagged as NSFW."
    return model, {"sensitivity": sensitivity}, {"action": action, "message": message}


def _shows_something(class_type: str) -> bool:
    """Whether a node saves or shows what it is given: outputs, those that draw pictures on themselves, unknown ones.

    What is unknown now may be replaced by another node before the prompt runs.
    """
    if class_type not in nodes.NODE_CLASS_MAPPINGS:
        return True
    cls = nodes.NODE_CLASS_MAPPINGS[class_type]
    drawn = getattr(cls, "HAS_INTERMEDIATE_OUTPUT", False) and not class_type.startswith("NSFWG_")
    return bool(getattr(cls, "OUTPUT_NODE", False) or drawn)


def _link_in(value: Any) -> list[Any] | None:
    """A link as ComfyUI will read it, out of the wrapping that it takes off later."""
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    return list(value) if linked and isinstance(value[1], (int, float)) else None


def _same(items: list[Any], given: Any) -> bool:
    return all(one is other for one, other in zip(items, given, strict=True))


NODES = [Enforced, Refused]
