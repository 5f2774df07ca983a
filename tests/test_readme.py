"""The README's Python snippets run, and print what it says that they print."""

import contextlib
import io
import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_snippets_run_and_print_what_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```(python|text)\n(.*?)```", README, re.S)
    names, printed, ran = {}, "", 0
    for kind, body in blocks:
        if kind == "text":
            assert printed == body
            continue
        if "# needs the Hub" in body:
            compile(body, "README.md", "exec")
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(body, "README.md", "exec"), names)
        printed, ran = out.getvalue(), ran + 1
    assert ran >= 2


def test_the_two_commands_are_marked_for_ci():
    for name in ("demo", "tests"):
        assert re.search(rf"<!-- ci: {name} -->\n```sh\n\S.*\n```", README)


def test_the_toml_of_the_readme_is_a_card(tmp_path):
    from nsfw_guard import ModelCard

    (body,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    (tmp_path / "nsfw_guard.toml").write_text(body)
    assert ModelCard.from_toml(tmp_path / "nsfw_guard.toml").policy().threshold == 0.4
