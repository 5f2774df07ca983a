"""The package: what importing it loads, what it contains, and that it says nothing about the machine it was made on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nsfw_guard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def loaded_after(code):
    """Names of the modules that a fresh process has loaded after running some code."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_transformers():
    assert not loaded_after("import nsfw_guard") & {
        "torch",
        "transformers",
        "timm",
        "numpy",
        "PIL",
        "diffusers",
        "rich",
    }


def test_the_command_line_starts_without_torch():
    assert not loaded_after("import nsfw_guard.cli") & {"torch", "transformers", "timm", "diffusers"}


def test_the_core_never_loads_a_host_a_server_or_the_command_line():
    code = "import torch, nsfw_guard\nguard = nsfw_guard.NsfwGuard('demo')\nguard.apply(torch.rand(1, 3, 64, 64))"
    hosts = {
        "diffusers",
        "comfy",
        "comfy_api",
        "folder_paths",
        "nsfw_guard.bench",
        "nsfw_guard.cli",
        "typer",
        "fastapi",
    }
    # transformers itself loads typer and rich for its own command line; only what we import counts there.
    found = loaded_after(code) & hosts - {"typer"}
    assert not found


def test_every_public_name_resolves():
    for name in nsfw_guard.__all__:
        assert getattr(nsfw_guard, name) is not None
    assert set(nsfw_guard.__all__) <= set(dir(nsfw_guard))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nsfw_guard.nothing  # noqa: B018


def test_errors_can_be_caught_as_python_means_them():
    for error in (nsfw_guard.ImageError, nsfw_guard.SettingError):
        assert issubclass(error, nsfw_guard.GuardError)
        assert issubclass(error, ValueError)
    assert issubclass(nsfw_guard.CheckpointError, nsfw_guard.GuardError)


def test_the_version_is_said_once_more_in_the_project_file():
    assert PROJECT["project"]["version"] == nsfw_guard.__version__


def test_the_packages_list_is_the_folders():
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("nsfw_guard", "integrations")
        for path in (ROOT / top).rglob("__init__.py")
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    expected = {re.sub(r"^integrations", "nsfw_guard.integrations", folder) for folder in folders}
    assert set(listed) == expected


def test_dependencies_have_lower_bounds_only():
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for line in [*project["dependencies"], *extras]:
        requirement = line.split(";")[0]
        assert "==" not in requirement
        assert "<" not in requirement
        assert "~" not in requirement


def test_weights_are_safetensors_and_small():
    models = list((ROOT / "nsfw_guard" / "demo" / "models").rglob("*"))
    files = [path for path in models if path.is_file()]
    assert files
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(path.stat().st_size for path in files) < 12e6


def test_no_module_is_much_longer_than_one_can_read():
    for path in (ROOT / "nsfw_guard").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 360, path
