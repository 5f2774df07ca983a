"""For operators: with ``NSFW_GUARD_ENFORCE=1``, every prompt of a server is guarded, whatever its graph says.

Guards are put behind what makes pictures and before what saves or shows something: when a prompt comes in, when it goes
into the queue, whoever puts it there, and when a node puts a graph in its place while it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import comfy.cli_args
import execution
import latent_preview
from server import PromptServer

from nsfw_guard.encoded import holds_pictures
from nsfw_guard.errors import SettingError

from . import classifier, enforce_trace
from .enforce_graph import GraphRefused, guarded_expansion, guarded_graph
from .enforce_nodes import NODES, REFUSED
from .enforce_settings import ENFORCE, allowed, enforced, settings, without_paths
from .enforce_types import shows_in_secret

__all__ = ["NODES", "guard_prompt", "install_if_asked"]

logger = logging.getLogger(__name__)

_EXPAND = "get_output_from_returns"


def install_if_asked() -> None:
    """Guard every prompt from now on, if the environment says so.

    Raises:
        GuardError: The settings, the checkpoint or the audit log are not in order.
        SettingError: This ComfyUI has no place where to put guards.
    """
    if not enforced():
        return
    chosen = settings()
    classifier.load(chosen.model)
    if chosen.audit is not None:
        enforce_trace.audit_log(chosen.audit)
    server: Any = PromptServer.instance
    queue: Any = getattr(server, "prompt_queue", None)
    missing = [
        name
        for owner, name in ((server, "add_on_prompt_handler"), (queue, "put"), (execution, _EXPAND))
        if not callable(getattr(owner, name, None))
    ]
    if missing or not any(_EXPAND in code.co_names for code in _codes(execution)):
        raise SettingError(f"this ComfyUI has no {', '.join(missing) or f'use for {_EXPAND}'}; expected 0.19 or newer")
    _switch_previews_off()
    server.add_on_prompt_handler(guard_prompt)
    # What other extensions put into the queue, or make of a prompt after the handler. On this one queue only.
    queue.put = _guarding_put(queue.put)
    # ComfyUI has no handler for graphs that nodes put in their place while they run.
    setattr(execution, _EXPAND, _guarding_expansions(getattr(execution, _EXPAND)))
    logger.warning("%s: every prompt is guarded, and sampler previews are off.", ENFORCE)


def _codes(module: Any) -> list[CodeType]:
    return [value.__code__ for value in vars(module).values() if isinstance(value, FunctionType)]


def guard_prompt(json_data: dict[str, Any]) -> dict[str, Any]:
    """Put guards into a prompt, or refuse what cannot be guarded.

    Args:
        json_data: What came with ``POST /prompt``.

    Returns:
        The same with its prompt rewritten. ComfyUI swallows the errors of such handlers and runs the prompt as it was,
        so none may leave this function.
    """
    try:
        settings()
        prompt = guarded_graph(json_data["prompt"], allowed())
        return {**json_data, "prompt": prompt, "extra_data": _without_previews(json_data.get("extra_data"))}
    except Exception as error:  # see above
        if not isinstance(error, GraphRefused):
            logger.exception("A prompt could not be guarded and is refused.")
        key = error.node if isinstance(error, GraphRefused) else "nsfw_guard"
        refused = {key: {"class_type": REFUSED, "inputs": {"reason": without_paths(f"{error}")}}}
        rest = json_data if isinstance(json_data, dict) else {}
        return {**rest, "prompt": refused, "partial_execution_targets": None}


def _guarding_put(put: Callable[[Any], None]) -> Callable[[Any], None]:
    """The method that takes a prompt into the queue, which is guarded by then."""

    def guarding_put(item: Any) -> None:
        number, prompt_id, prompt, extra_data, *rest = item
        settings()
        put((number, prompt_id, guarded_graph(prompt, allowed()), _without_previews(extra_data), *rest))

    return guarding_put


def _guarding_expansions(outputs_of: Callable[..., Any]) -> Callable[..., Any]:
    """The function that reads what a node returned, with guards in the graphs that are to take the node's place."""

    def guarding_expansions(return_values: Any, node: Any) -> Any:
        output, ui, expands = outputs_of(return_values, node)
        if ui and shows_in_secret(node):
            ui = {name: shown for name, shown in ui.items() if _is_plain(shown)}
        if expands:
            output = [
                (graph, results) if graph is None else guarded_expansion(graph, results, allowed())
                for graph, results in output
            ]
        return output, ui, expands

    return guarding_expansions


def _is_plain(shown: Any) -> bool:
    """Whether what goes to the page is text without pictures, or numbers: no names of files."""
    return all(
        item is None or isinstance(item, (bool, int, float)) or (isinstance(item, str) and not holds_pictures(item))
        for item in shown
    )


def _switch_previews_off() -> None:
    """Let samplers show nothing of what they are making: nobody has looked at that."""
    none = comfy.cli_args.LatentPreviewMethod.NoPreviews
    comfy.cli_args.args.preview_method = none
    latent_preview.default_preview_method = none


def _without_previews(extra_data: Any) -> dict[str, Any]:
    return {name: value for name, value in (extra_data or {}).items() if name != "preview_method"}
