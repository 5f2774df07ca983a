"""Where the weights run and in which dtype, beside a host that moves, casts, offloads or hooks them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError, SettingError
from .hosts import Pipelines, said_by

_CONSTANTS: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Placement:
    """Where the weights of a guard are, and in which dtype: pinned, or as its images and hosts have it.

    Raises:
        SettingError: There is no such device or dtype.

    Attributes:
        device: Where they stay; ``None``: they follow the images.
        dtype: What they stay in; ``None``: the fastest of the device, until a host casts them.
        pipelines: Finds the pipeline that the guard is in.
    """

    def __init__(self, device: Any, dtype: Any, stored: torch.dtype) -> None:
        self.device, self.dtype = parse_device(device), parse_dtype(dtype)
        self.pipelines = Pipelines()
        self._stored = stored
        self._was_cast = self._was_moved = False  # by a host

    def start(self) -> tuple[torch.device, torch.dtype]:
        """Return where the weights are to be before the first image, and what they are loaded as."""
        device = self.device or torch.device("cpu")
        return device, self.dtype or fastest_dtype(device, self._stored)

    def on(self, device: torch.device) -> torch.dtype | None:
        """Return the dtype that the weights take on a device; ``None``: they keep what is pinned or a host's."""
        return None if self.dtype or self._was_cast else fastest_dtype(device, self._stored)

    def pinned(self) -> dict[str, str]:
        """Return what stays as it is, by its name: ``"device"``, ``"dtype"``."""
        return {name: str(value) for name, value in (("device", self.device), ("dtype", self.dtype)) if value}

    def bring(self, guard: nn.Module, classifier: Any, device: torch.device | None) -> torch.device:
        """Bring the weights to where images are, unless they are pinned or a host's hooks decide; return the device.

        Args:
            guard: Where hooks may be.
            classifier: What has the weights.
            device: Of the images, if they are on one.

        Raises:
            CheckpointError: A host has moved the weights to where they hold nothing.
        """
        device = self.device or device
        if is_hooked(guard):
            fire_hook(guard)
            return device or execution_device(guard)
        weights = next(classifier.parameters())
        if weights.device.type == "meta":
            raise CheckpointError(
                "The guard's weights are on the meta device, which keeps no values: it, or its pipeline, was moved "
                "there. Load the guard again."
            )
        device = device or weights.device
        if weights.device != device or self.on(device) not in (None, weights.dtype):
            with classifier.turns.alone():  # past the guard's own _apply: this is no host's wish
                classifier.to(device=device, dtype=self.on(device))
        return device

    def for_host(self, fn: Callable[[Tensor], Tensor], weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what a host's move or cast, as ``nn.Module._apply`` gets it, may do; and note that it was there."""
        single, half = (fn(torch.empty(0, dtype=dtype)).dtype for dtype in (torch.float32, torch.float16))
        self._was_cast |= single == half
        self._was_moved |= fn(weights.new_empty(0)).device != weights.device

        def unless_pinned(tensor: Tensor) -> Tensor:
            new = fn(tensor.new_empty(0))
            device = new.device if self.device is None else tensor.device
            dtype = new.dtype if self.dtype is None or not tensor.is_floating_point() else tensor.dtype
            unchanged = (new.device, new.dtype) == (device, dtype)
            return fn(tensor) if unchanged else tensor.to(device, dtype)

        return unless_pinned

    def read_dtype(self, guard: nn.Module, own: torch.dtype) -> torch.dtype:
        """Return the dtype that whoever asks is told.

        A pipeline is told that of its other modules: it takes what its first module says for its own. So is everybody
        until a host casts the guard; without a pipeline it is float32.
        """
        modules = self.pipelines.asking(guard)
        if not modules and self._was_cast:
            return own
        return next(said_by(modules or self.pipelines.seen(guard), "dtype"), torch.float32)

    def read_device(self, guard: nn.Module, own: torch.device) -> torch.device:
        """Return the device that whoever asks is told, as for the dtype; without a pipeline the weights' own."""
        modules = self.pipelines.asking(guard)
        if not modules and not self._was_moved:
            modules = self.pipelines.seen(guard)
        return next(said_by(modules, "device"), own)


def usable_cores() -> int | None:
    """Return how many CPU cores this process may use, where the system says so; ``None``: nobody knows."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count()


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the dtype; ``None`` for ``"auto"``.

    Raises:
        SettingError: Not one that a classifier can run in.
    """
    if dtype == "auto":
        return None
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        hint = ' "int8" goes with runtime="onnx".' if dtype in ("int8", torch.int8) else ""
        raise SettingError(f'dtype is {dtype!r}; expected "auto" or one of {", ".join(map(repr, DTYPES))}.{hint}')
    return found


def parse_runtime(runtime: str, device: Any, dtype: Any) -> tuple[str | None, Any, Any]:
    """Return the precision on ONNX Runtime, which nobody gets unasked, and the device and dtype of the weights.

    Args:
        runtime: ``"auto"`` and ``"torch"`` leave device and dtype as they are, and the precision is ``None``.
        device: As given to the guard.
        dtype: As given to the guard.

    Raises:
        SettingError: There is no such runtime, or it has no such device or dtype, or it is not installed.
    """
    if runtime not in ("auto", "torch", "onnx"):
        raise SettingError(f'runtime is {runtime!r}; expected "auto", "torch" or "onnx".')
    if runtime != "onnx":
        return None, device, dtype
    from .onnx_runtime import parse_settings

    return parse_settings(device, dtype), "cpu", "float32"


def parse_device(device: str | int | torch.device | None) -> torch.device | None:
    """Return the device, which must exist; ``None`` stands for that of the images.

    Raises:
        SettingError: There is no such device here.
    """
    if device is None:
        return None
    try:
        # With its index, as tensors have it: "cuda" is no tensor's device.
        parsed = torch.empty(0, device=device).device
        if parsed.type == "meta":
            raise RuntimeError("the meta device computes nothing")
    except Exception as error:
        raise SettingError(f"device is {device!r}, which cannot be used here: {error}") from error
    return parsed


def fastest_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """Return the dtype that ``"auto"`` stands for: the checkpoint's own or a faster one, native to the hardware.

    CUDA: a checkpoint's own half precision, else bfloat16, else (before Ampere) float16. CPU: bfloat16 with AVX512-BF16
    or AMX, else float32. Elsewhere float32.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
        if stored in (torch.float16, torch.bfloat16):
            return stored if native else torch.float16
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and _cpu_runs_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_runs_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    # Older releases have only these, under a private name.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def is_hooked(module: nn.Module) -> bool:
    """Whether a host's offloading hooks (accelerate's or diffusers') decide where the weights are."""
    # By their dictionaries: asking a module for an attribute that it lacks takes a microsecond each.
    found = [module]
    while found:
        attributes = vars(found.pop())
        if "_hf_hook" in attributes or "_diffusers_hook" in attributes:
            return True
        found += [child for child in attributes["_modules"].values() if child is not None]
    return False


def fire_hook(module: nn.Module) -> None:
    """Run what accelerate or diffusers put before ``forward``, for calls that come another way. Twice does no harm."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    registry: Any = getattr(module, "_diffusers_hook", None)
    if registry is not None:
        for hook in registry.hooks.values():
            hook.pre_forward(module)


def execution_device(module: nn.Module) -> torch.device:
    """The device where the module computes: its weights', or the hooks' if the weights are offloaded."""
    for child in module.modules():
        device = getattr(vars(child).get("_hf_hook"), "execution_device", None)
        if device is not None:
            return torch.device(device)
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the device's memory is used up: CUDA, MPS or CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a float32 vector that is on its device already: bringing one there makes the host wait."""
    key = (values, device)
    kept = _CONSTANTS.get(key)
    if kept is not None:
        return kept
    with torch.inference_mode(False):
        made = torch.tensor(values, dtype=torch.float32, device=device)
    if type(made) is not Tensor:
        return made  # of a trace, which is over before the next call
    if len(_CONSTANTS) >= 64:
        _CONSTANTS.clear()
    _CONSTANTS[key] = made
    return made
