"""The machine, the versions and the settings of the process, as they belong beside every figure."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..placement import usable_cores

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "diffusers",
    "safetensors",
    "pillow",
    "numpy",
    "nsfw-image-detector",
    "onnxruntime",
)
# What decides which dtype is fast.
_INSTRUCTIONS = (
    "avx2",
    "avx512_f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "neon",
    "bf16",
    "sve",
    "sve2",
)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return processor, cores, instruction sets, memory and GPU."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "cores_in_all": os.cpu_count(),
        "instructions": _instructions(),
        "memory_gb": _memory_gb(),
        "gpu": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda or torch.version.hip,
        }
    return found


def process_settings() -> dict[str, Any]:
    """Return what is set for the whole process. It is the user's, and the benchmark changes only the threads."""
    return {
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "environment": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY")
            if name in os.environ
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of what is installed of the libraries that matter here."""
    found = {"nsfw-guard": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the checkout that this runs from, with a ``+`` if files differ from it; else ``None``."""
    git, here = shutil.which("git"), Path(__file__).resolve()
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, *arguments], cwd=here.parent, capture_output=True, text=True, check=False, timeout=20
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        # An installed copy may lie in somebody else's checkout, whose commit says nothing about us.
        if ask("ls-files", "--error-unmatch", here.name) is None:
            return None
        head = ask("rev-parse", "HEAD")
        return head and head + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _instructions() -> list[str]:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return [name for name in _INSTRUCTIONS if found.get(name)]
    return [torch.backends.cpu.get_cpu_capability()]


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None
