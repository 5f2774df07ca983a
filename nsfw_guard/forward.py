"""How the network is run: the fastest way that the device has, and the library's own eager forward where it has none.

What is computed stays the same: the same network on the same weights, which are neither copied nor changed. Nothing
process-wide is touched.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import one_line

logger = logging.getLogger(__name__)

# Graphs that are kept at once; each has its own input and shares the memory for everything between.
MAX_GRAPHS = 16
# After so many that were outdated when they were needed, no more are captured: that takes longer than it saves.
MAX_OUTDATED = 3
# Attention matrices of about this many numbers are made at a time: they stay in a CPU's cache.
_IN_CACHE = 2**20

_PLAIN = (Tensor, nn.Parameter)

Run = Callable[[Tensor], Tensor]


class Forward:
    """Runs a network, on each device its own way: oneDNN's kernels on a CPU, CUDA graphs on a GPU, else eagerly.

    A fast path that cannot be taken is left for good, with one line in the log; ``describe`` says which is taken and
    why. Copies and pickles start anew.

    Args:
        runtime: ``"auto"``; any other runs what it is given as it is.
    """

    def __init__(self, runtime: str = "auto") -> None:
        self.runtime = runtime
        self._failed: dict[str, str] = {}
        self._graphs = _Graphs(self._leave)

    def __reduce__(self) -> tuple[type[Forward], tuple[str]]:
        return Forward, (self.runtime,)

    def __call__(self, network: nn.Module, run: Run, inputs: Tensor) -> Tensor:
        """Return ``run(inputs)``.

        Args:
            network: What ``run`` runs.
            run: Model input ``[V, 3, size, size]`` → ``[V, labels]``, with nothing that waits for the device.
            inputs: On the device and in the dtype of the weights.
        """
        path, _ = self._choose(network, inputs.device, inputs.dtype)
        if torch.is_grad_enabled():
            return self._run(network, run, inputs)  # the fast kernels have no gradients
        if path == "CUDA graph":
            return self._graphs(network, lambda inputs: self._run(network, run, inputs), inputs)
        if path == "oneDNN":
            with _OneDNN():
                return run(inputs)
        return self._run(network, run, inputs)

    def _run(self, network: nn.Module, run: Run, inputs: Tensor) -> Tensor:
        if not _is_compiled(network):
            return run(inputs)
        try:
            return run(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            network._compiled_call_impl = None  # type: ignore[assignment]
            self._leave("torch.compile", error)
            return run(inputs)

    def _leave(self, path: str, error: Exception) -> None:
        self._failed[path] = f"{path} failed: {one_line(error)}"
        logger.warning("%s. The guard goes on without.", self._failed[path])

    def describe(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
        """Return the path that is taken on a device and in a dtype, and why."""
        path, why = self._choose(network, device, dtype)
        if path == "CUDA graph" and not _Made(network).is_plain():
            path, why = "eager", "hooks, or training: a graph would leave them out"
        return path, "; ".join([why, *self._failed.values()])

    def _choose(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
        if self.runtime != "auto" and not _is_compiled(network):
            return "eager", f'runtime="{self.runtime}"'
        if self.runtime == "auto" and device.type == "cuda" and "CUDA graph" not in self._failed:
            return "CUDA graph", "one launch for all kernels, from the second batch of a shape on"
        if _is_compiled(network):
            return "torch.compile", "compile() was called"
        if device.type == "cpu":
            return _on_a_cpu(dtype)
        return "eager", f"there is no other path on {device.type}"


def body_of(network: nn.Module) -> nn.Module:
    """Return what is called of a network: itself, or the timm model that transformers wraps.

    The wrapper casts to the device of its weights, which is none when they are offloaded.
    """
    body: nn.Module = getattr(network, "timm_model", network)
    return body


def logits_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits ``[V, labels]`` of model inputs ``[V, 3, size, size]``."""
    body = body_of(network)
    logits: Tensor = body(inputs) if body is not network else network(pixel_values=inputs).logits
    return logits


def _is_compiled(network: nn.Module) -> bool:
    return getattr(network, "_compiled_call_impl", None) is not None


@lru_cache
def _on_a_cpu(dtype: torch.dtype) -> tuple[str, str]:
    """Return the path on this CPU, and why. Its kernels, one of which is none of PyTorch's public ones, are tried."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[attr-defined]
        return "eager", "this PyTorch has no oneDNN, or it is switched off"
    generator = torch.Generator("cpu").manual_seed(0)
    try:
        # Whatever the process's default device and dtype are.
        drawn = torch.randn(2, 1, 2, 8, 16, generator=generator, dtype=torch.float32, device="cpu")
        one, other = drawn.to(dtype).unbind()
        if dtype == torch.bfloat16:
            given, expected = _attention(one, other, other), F.scaled_dot_product_attention(one, other, other)
            path = "oneDNN", "attention as products that stay in the cache"
        elif dtype == torch.float32:
            given, expected = _linear(one, other[0, 0]), F.linear(one, other[0, 0])
            path = "oneDNN", "linear layers by oneDNN"
        else:
            return "eager", f"there is no faster path in {str(dtype).removeprefix('torch.')} on a CPU"
        torch.testing.assert_close(given, expected, atol=0.05, rtol=0.05)
    except Exception as error:
        logger.warning("The guard runs in %s without oneDNN's kernels: %s", dtype, error)
        return "eager", f"oneDNN failed: {error}"
    return path


class _OneDNN(TorchFunctionMode):
    """Within it, on a CPU, linear layers in float32 and attention in bfloat16 take faster kernels.

    PyTorch gives float32 products to another library than oneDNN, which on some CPUs takes twice as long; and its fused
    attention in bfloat16 is slower than two products with a softmax between, as long as that fits the cache.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Tensors of a kind of their own (quantised ones) have linear layers of their own.
        if func is F.linear and _takes(args, 2, torch.float32) and type(args[1]) in _PLAIN:
            return _linear(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and _takes(args, 3, torch.bfloat16):
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _takes(args: Any, count: int, dtype: torch.dtype) -> bool:
    """Whether so many tensors at least are given by position, on the CPU and in a dtype."""
    return len(args) >= count and all(part.device.type == "cpu" and part.dtype == dtype for part in args[:count])


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return result


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    given = dict(zip(("attn_mask", "dropout_p", "is_causal"), args, strict=False)) | options
    special = given.get("attn_mask") is not None or given.get("dropout_p") or given.get("is_causal")
    if special or query.ndim != 4 or not query.shape == key.shape == value.shape:
        return F.scaled_dot_product_attention(query, key, value, *args, **options)
    images, heads, tokens, width = query.shape
    scale = width**-0.5 if given.get("scale") is None else given["scale"]
    result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    ignored = query.new_empty(())  # by beta=0
    step = max(1, _IN_CACHE // tokens**2)
    for image in range(images):
        for start in range(0, heads, step):
            part = (image, slice(start, min(start + step, heads)))
            keys = key[part].transpose(1, 2)
            products = torch.baddbmm(ignored.expand(len(keys), tokens, tokens), query[part], keys, beta=0, alpha=scale)
            torch.bmm(products.softmax(dim=-1), value[part], out=result[part])
    return result


class _Graphs:
    """CUDA graphs of a network, one per shape, dtype and device of its input; the least recently used ones go."""

    def __init__(self, leave: Callable[[str, Exception], None]) -> None:
        self._leave = leave
        self._lock = threading.Lock()
        self._seen: Counter[Any] = Counter()
        self._outdated = 0
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()
        self._pools: dict[torch.device, Any] = {}
        self._done: dict[torch.device, Any] = {}

    def __call__(self, network: nn.Module, run: Run, inputs: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            return run(inputs)  # a host's own graph takes the kernels in
        # What is made in inference mode cannot be written to outside of it.
        key = (inputs.shape, inputs.dtype, inputs.device, torch.is_inference_mode_enabled())
        with self._lock, torch.cuda.device(inputs.device):
            graph = self._graphs.get(key)
            if graph is not None and not graph.holds():
                # The weights were moved, cast or replaced: what was captured reads memory that is no longer theirs.
                self._graphs.clear()
                self._seen.clear()
                graph = None
                self._outdated += 1
                if self._outdated >= MAX_OUTDATED:
                    self._leave("CUDA graph", RuntimeError("the weights keep moving, as under offloading"))
                    return run(inputs)
            if graph is None:
                self._seen[key] += 1
                if self._seen[key] < 2 or not _Made(network).is_plain():
                    return run(inputs)
                pool = self._pools.setdefault(inputs.device, torch.cuda.graph_pool_handle())
                try:
                    graph = self._graphs[key] = _Graph(network, run, inputs, pool)
                except Exception as error:
                    self._graphs.clear()
                    self._leave("CUDA graph", error)
                    return run(inputs)
                while len(self._graphs) > MAX_GRAPHS:
                    self._seen.pop(self._graphs.popitem(last=False)[0])
            self._graphs.move_to_end(key)
            # They share their memory: on whatever stream the last one runs, it must be done before this one begins.
            here, done = torch.cuda.current_stream(), self._done.setdefault(inputs.device, torch.cuda.Event())
            here.wait_event(done)
            output = graph(inputs)
            done.record(here)
            return output


class _Made:
    """What a network is made of at one time: a graph reads the weights at the addresses that they had then."""

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self._network = network
        # Where hooks are kept: those of the modules, and those of all modules of the process.
        self._hooks = [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]
        self._hooks += [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._attributes = [vars(module) for module in modules]
        self._weights = [
            (table, name, tensor, tensor.data_ptr())
            for module in modules
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        self._children = [(module._modules, tuple(module._modules.values())) for module in modules]

    def is_plain(self) -> bool:
        """Whether a graph can stand for it: no hooks, no training."""
        # accelerate's hooks replace a module's forward.
        hooked = any(self._hooks) or any("forward" in attributes for attributes in self._attributes)
        return not self._network.training and not hooked

    def holds(self) -> bool:
        """Whether it is still made of the same modules and weights, at the same addresses, and plain."""
        return (
            self.is_plain()
            and all(table.get(name) is tensor and tensor.data_ptr() == at for table, name, tensor, at in self._weights)
            and all(tuple(table.values()) == children for table, children in self._children)
        )


class _Graph:
    """One captured forward, compared once with the eager one."""

    def __init__(self, network: nn.Module, run: Run, inputs: Tensor, pool: Any) -> None:
        self.holds = _Made(network).holds
        self._input = inputs.clone()
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            expected = run(self._input)  # what libraries set up on their first run must not be captured
        here.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on: their calls are not this capture's.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = run(self._input)
        torch.testing.assert_close(self(inputs), expected, atol=1e-3, rtol=0, equal_nan=True)

    def __call__(self, inputs: Tensor) -> Tensor:
        self._input.copy_(inputs)
        self._graph.replay()
        return self._output.clone()
