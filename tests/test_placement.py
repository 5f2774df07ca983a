"""Devices and dtypes. What needs a GPU is decided by faked capabilities here, and not run."""

import pytest
import torch

from nsfw_guard import SettingError
from nsfw_guard.placement import (
    constant,
    execution_device,
    fastest_dtype,
    is_hooked,
    out_of_memory,
    parse_device,
    parse_dtype,
)

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "stored", "expected"),
    [
        ((9, 0), torch.float32, torch.bfloat16),
        ((8, 0), torch.float32, torch.bfloat16),
        ((8, 0), torch.float16, torch.float16),
        ((8, 6), torch.bfloat16, torch.bfloat16),
        ((7, 5), torch.bfloat16, torch.float16),  # no native bfloat16 before Ampere
        ((7, 5), torch.float32, torch.float16),
    ],
)
def test_auto_on_cuda(monkeypatch, capability, stored, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest_dtype(CUDA, stored) == expected


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("native", [False, True])
def test_auto_on_a_cpu(monkeypatch, native, stored):
    monkeypatch.setattr("nsfw_guard.placement._cpu_runs_bfloat16", lambda: native)
    assert fastest_dtype(CPU, stored) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("found", [{}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}])
def test_what_makes_a_cpu_native(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    expected = torch.bfloat16 if any(found.values()) else torch.float32
    assert fastest_dtype(CPU, torch.float32) == expected


def test_auto_elsewhere_is_float32():
    assert fastest_dtype(torch.device("mps"), torch.float16) == torch.float32


def test_dtypes_and_devices_by_name():
    assert parse_dtype("auto") is None
    assert parse_dtype("torch.bfloat16") == parse_dtype("bfloat16") == torch.bfloat16
    assert parse_device(None) is None
    assert parse_device("cpu") == CPU
    with pytest.raises(SettingError, match='dtype is torch.int8; expected "auto" or one of'):
        parse_dtype(torch.int8)
    with pytest.raises(SettingError, match="device is 'nowhere', which cannot be used here"):
        parse_device("nowhere")


def test_out_of_memory_is_told_from_other_errors():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for text in ("not enough memory", "can't allocate memory: you tried"):
        assert out_of_memory(RuntimeError(f"DefaultCPUAllocator: {text}"))
    assert out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_hooks_are_found():
    accelerate = pytest.importorskip("accelerate")
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert not is_hooked(module)
    assert execution_device(module) == CPU
    accelerate.cpu_offload(module, execution_device=CPU)
    assert is_hooked(module)
    assert next(module.parameters()).device.type == "meta"
    assert execution_device(module) == CPU


def test_constants_are_kept_but_for_those_of_a_trace_or_of_inference_mode():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    values = (0.123, 4.0)
    with FakeTensorMode():
        assert isinstance(constant(values, CPU), FakeTensor)
    with torch.inference_mode():
        made = constant(values, CPU)
    assert type(made) is torch.Tensor
    assert not made.is_inference()
    assert constant(values, CPU) is made
    for number in range(200):
        assert constant((float(number),), CPU).tolist() == [number]
