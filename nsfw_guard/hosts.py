"""What hosts read of a guard and set on it. A guard is a module among a pipeline's own, and never answers for those."""

from __future__ import annotations

import difflib
import logging
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from torch import nn

from .errors import SettingError

logger = logging.getLogger(__name__)

# What accelerate, diffusers, transformers, their quantizers, peft, DeepSpeed and torch's wrappers set on models, beyond
# what the classes of torch and transformers have and what begins with an underscore.
SET_BY_HOSTS = frozenset([
    "active_adapter", "active_adapters", "compute_dtype", "device_map", "disable_adapters",
    "ds_inflight_param_registry", "extra_repr", "forward", "generation_config", "gradient_checkpointing",
    "hf_device_map", "hf_quantizer", "hpu", "is_4bit_serializable", "is_8bit_serializable", "is_hqq_quantized",
    "is_hqq_serializable", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_model_parallel", "is_parallelizable",
    "is_quantized", "kernel_config", "loss_type", "merged_adapters", "mlu", "model_parallel", "model_tags", "mtia",
    "musa", "name_or_path", "neuron", "npu", "peft_config", "peft_type", "quantization_config", "quantization_method",
    "quantization_scheme", "quantization_status", "require_backward_grad_sync", "require_forward_param_sync", "sdaa",
    "source_cls", "tp_size", "training", "warnings_issued", "xpu",
])  # fmt: skip
# What hosts pass to ``from_pretrained`` and ``save_pretrained`` of every component, and what is of no meaning here: a
# guard is safetensors only, is moved by its host afterwards, and runs no code of a repository.
_ON_LOADING = frozenset([
    "attn_implementation", "config", "device_map", "disable_mmap", "low_cpu_mem_usage", "max_memory", "offload_folder",
    "offload_state_dict", "provider", "provider_options", "quantization_config", "sess_options", "trust_remote_code",
    "use_flashpack", "use_safetensors", "weights_only",
])  # fmt: skip
_ON_SAVING = frozenset([
    "distributed_checkpoint", "save_function", "save_original_format", "save_peft_format", "state_dict",
    "use_flashpack",
])  # fmt: skip
# What ``push_to_hub`` of a transformers model takes.
_ON_UPLOAD = frozenset([
    "commit_description", "commit_message", "create_pr", "private", "repo_id", "revision", "tags", "token",
])  # fmt: skip
# How far up a pipeline is looked for: between its property and the guard's stand ours and the wrapper of torch.compile.
_FRAMES = 8


def settings_in(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return what a guard takes of the arguments of ``from_pretrained``; the rest is for other components.

    Raises:
        SettingError: An argument is nearly one of a guard's.
    """
    return _known("from_pretrained", given, frozenset(known), _ON_LOADING, ("dtype",))


def upload_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``push_to_hub`` takes of the arguments of ``save_pretrained``; the rest is for other components.

    Raises:
        SettingError: An argument is nearly one of a guard's.
    """
    named = ("variant", "max_shard_size", "safe_serialization", "is_main_process", "push_to_hub")
    return _known("save_pretrained", given, _ON_UPLOAD, _ON_SAVING, named)


def _known(
    call: str, given: Mapping[str, Any], known: frozenset[str], others: frozenset[str], named: tuple[str, ...]
) -> dict[str, Any]:
    for name in sorted(given.keys() - known - others):
        meant = known.union(named)
        if difflib.get_close_matches(name, meant, n=1, cutoff=0.8):
            refuse_unknown(f"{call}(…, {name}=…)", name, meant, "It takes")
        logger.warning("%s(…, %s=…): a guard has no such setting, and ignores it.", call, name)  # of a newer host
    return {name: value for name, value in given.items() if name in known}


def refuse_unknown(shown: str, name: str, known: Iterable[str], there_are: str) -> NoReturn:
    """Refuse a name that nobody knows.

    Args:
        shown: What was given, as the user wrote it.
        name: The name alone.
        known: Names that would do.
        there_are: How the sentence begins that lists them.

    Raises:
        SettingError: With the closest of the known names, if one is close.
    """
    names = sorted(known)
    closest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    meant = f" Did you mean {closest[0]!r}?" if closest else ""
    raise SettingError(f"{shown} is not known, and would change nothing.{meant} {there_are} {', '.join(names)}.")


class Pipelines:
    """Finds the pipeline that a guard is in: nothing tells a component, but who reads of it stands in the frames above.

    Copies, and what comes out of a pickle, have seen none.
    """

    def __init__(self) -> None:
        self._seen: weakref.ref[Any] | None = None

    def __reduce__(self) -> tuple[type[Pipelines], tuple[()]]:
        return Pipelines, ()

    def remember(self, pipeline: Any) -> None:
        """Note which pipeline holds the guard, for readers that are none."""
        with suppress(TypeError):  # some objects cannot be referred to weakly
            self._seen = weakref.ref(pipeline)

    def asking(self, guard: nn.Module) -> list[nn.Module]:
        """Return the other modules of the pipeline that is just reading an attribute of the guard; none if none is."""
        frame: FrameType | None = sys._getframe(1)
        for _ in range(_FRAMES):
            if frame is None:
                break
            reader = frame.f_locals.get("self")
            if reader is not None and (found := _beside(guard, reader)):
                self.remember(reader)
                return found
            frame = frame.f_back
        return []

    def seen(self, guard: nn.Module) -> list[nn.Module]:
        """Return the other modules of the pipeline that was seen last, if it still holds the guard."""
        pipeline = self._seen() if self._seen is not None else None
        return [] if pipeline is None else _beside(guard, pipeline)


def _beside(guard: nn.Module, pipeline: Any) -> list[nn.Module]:
    """The other modules of a pipeline that holds the guard, in the order in which diffusers asks them."""
    if isinstance(pipeline, nn.Module):
        return []
    attributes = getattr(pipeline, "__dict__", None) or {}
    modules = {
        name: value
        for name, value in attributes.items()
        if isinstance(value, nn.Module) and isinstance(name, str) and not name.startswith("_")
    }
    if not any(_inside(module) is guard for module in modules.values()):
        return []
    # Those of a modular pipeline are asked in their own order.
    names = sorted(modules) if hasattr(pipeline, "_get_signature_keys") else list(modules)
    return [modules[name] for name in names if not isinstance(_inside(modules[name]), type(guard))]


def _inside(module: nn.Module) -> nn.Module:
    inner: nn.Module = vars(module).get("_modules", {}).get("_orig_mod", module)  # of torch.compile
    return inner


def said_by(modules: list[nn.Module], name: str) -> Iterator[Any]:
    """Return what modules say of their dtype or device, leaving out those that say nothing."""
    for module in modules:
        try:
            said = getattr(module, name, None)
        except StopIteration:  # of a module without weights
            continue
        if said is not None:
            yield said
