"""From a torch network to an ONNX graph: export in float32, and quantise to int8."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .forward import logits_of

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "pixels", "logits"
_OPSET = 17


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.network, inputs)


class _PlainAttention(TorchFunctionMode):
    """Spells attention out, for this thread: the exporter of torch 2.4 fails at the fused form that has a scale."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and len(args) == 3:
            settings = dict(kwargs or {})
            scale = settings.pop("scale", None)
            masked = settings.pop("attn_mask", None) is not None
            if not masked and not any(settings.values()):  # no dropout, not causal, no shared heads
                query, key, value = args
                scale = query.shape[-1] ** -0.5 if scale is None else scale
                return (query * scale @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def torch_logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits ``[N, labels]`` of the torch network, one image ``[3, size, size]`` at a time, in float32."""
    if torch.get_float32_matmul_precision() != "highest":
        # The user's setting may round inside of float32 products, and is not ours to change; it leaves float64 alone.
        from copy import deepcopy

        network, inputs = deepcopy(network).double(), inputs.double()
    model = _Logits(network)
    with torch.autocast("cpu", enabled=False):
        return torch.cat([model(image[None]) for image in inputs]).to(torch.float32)


def export(network: nn.Module, size: int, path: Path) -> None:
    """Write a network as an ONNX graph in float32, from ``[B, 3, size, size]`` to logits ``[B, labels]``.

    The exporter is the tracing one: every supported torch has it, and it needs no further package.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _PlainAttention(), warnings.catch_warnings():
        # Of sizes that become constants: they are, except for the batch, and the result is compared with the network.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            _Logits(network).eval(),
            (torch.zeros(2, 3, size, size, dtype=torch.float32, device="cpu"),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def quantise(graph: onnx.GraphProto, *, signed: bool) -> int:
    """Replace, in place, each product with a constant matrix by one in int8; return how many.

    The weights are rounded once, symmetrically, with one scale per output channel; the activations at run time, with
    one scale and zero point for the whole tensor (``DynamicQuantizeLinear``), which is why images must come one at a
    time. Everything else stays in float32: the patch embedding, attention's own products, and the head.

    Args:
        graph: In float32.
        signed: Whether the weights are stored as int8, or, for processors that add such products up in 16 bits and
            overflow, as uint8 with the zero point 128. The numbers that they stand for are the same.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    nodes: list[Any] = []
    quantised: dict[str, list[str]] = {}
    rounded: dict[str, list[str]] = {}
    zero, dtype = (0, np.int8) if signed else (128, np.uint8)
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero, dtype), "weights_zero_point"))
    count = 0
    for node in graph.node:
        name = node.input[1] if node.op_type == "MatMul" else ""
        if name not in weights or len(weights[name].dims) != 2 or weights[name].data_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        if name not in quantised:
            matrix = numpy_helper.to_array(weights[name])
            scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny) / np.float32(127)
            levels = (np.rint(matrix / scale) + zero).astype(dtype)
            quantised[name] = [f"{name}_levels", f"{name}_scale"]
            for part, array in zip(quantised[name], (levels, scale.astype(np.float32)), strict=True):
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), part))
        left = node.input[0]
        if left not in rounded:
            rounded[left] = [f"{left}_{part}" for part in ("levels", "scale", "zero_point")]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [left], rounded[left], f"{left}_round"))
        levels, scale, zero_point = rounded[left]
        out, count = node.output[0], count + 1
        # ONNX Runtime knows this pattern and makes one kernel of it.
        product = [levels, quantised[name][0], zero_point, "weights_zero_point"]
        nodes += [
            helper.make_node("MatMulInteger", product, [f"{out}_sums"], f"{out}_product"),
            helper.make_node("Cast", [f"{out}_sums"], [f"{out}_float"], f"{out}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, quantised[name][1]], [f"{out}_scales"], f"{out}_scales"),
            helper.make_node("Mul", [f"{out}_float", f"{out}_scales"], [out], f"{out}_scaled"),
        ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    still_used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in still_used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return count


def adds_up_int8_exactly() -> bool:
    """Whether this processor multiplies uint8 by int8 without overflow: anything but an x86 that lacks VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_vnni") or found.get("avx_vnni"))
    # Older releases have only this, under a private name.
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())
