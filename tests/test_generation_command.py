"""The command line of batch generation, and several processes of one launch."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from generations import CIRCLE, HEART, TRIANGLE, actions, chunks, logged, pictures
from typer.testing import CliRunner

from nsfw_guard.audit import read, verify
from nsfw_guard.cli import app

STEPS = ("--steps", "2")


def run(*arguments):
    given = [*map(str, arguments), *(() if "--pipeline" in arguments else ("--pipeline", "demo"))]
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, ["generate", *given])


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": "a", "prompt": CIRCLE, "seed": 1}, {"id": "b", "prompt": TRIANGLE, "seed": 2}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.usefixtures("one_thread")
def test_it_draws_says_what_it_did_and_goes_on(prompts, tmp_path):
    out = tmp_path / "out"
    result = run(prompts, "--out", out, *STEPS)
    assert result.exit_code == 1, result.stderr
    assert re.search(r"^2 images: 1 kept, 1 redacted\. \d", result.stdout)
    head = verify(out / "audit-00000.jsonl").head
    assert f"audit-00000.jsonl: 3 lines, head {head}" in result.stdout
    assert pictures(out) == ["a.png", "b.png"]
    assert json.loads(chunks(out / "a.png")["arguments"]) == {"num_inference_steps": 2, "guidance_scale": 3.0}
    with prompts.open("a") as file:
        file.write(f'\n{{"id": "c", "prompt": "{HEART}"}}\n{{"id": "d"')
    result = run(prompts, "--out", out, *STEPS, "--json")
    assert result.exit_code == 2
    said = json.loads(result.stdout)
    assert (said["rows"], said["before"], said["kept"], said["redacted"], said["flagged"]) == (3, 2, 2, 1, 1)
    assert said["bad_rows"][0]["line"] == 4
    assert f"bad row: {prompts}, line 4: it is not JSON" in result.stderr
    assert said["exit_code"] == 2
    assert run(prompts, "--out", out, *STEPS, "--exit-zero").exit_code == 2
    result = run(prompts, "--out", out, *STEPS, "--strict")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: 1 bad rows: line 4" in result.stderr


@pytest.mark.usefixtures("one_thread")
def test_options_reach_the_run(prompts, tmp_path):
    out, quarantine = tmp_path / "out", tmp_path / "q"
    result = run(
        prompts, "--out", out, "--on-flag", f"quarantine={quarantine}", "--num-images", "2", "--batch-size", "4",
        "--set", "width=128", "--set", "height=128", "--set", 'negative_prompt=a cross', "--prompt-in-log",
        "--prompt-in-file", "never", "--policy", "strict", "--redaction", "fill", "--seed", "5", "--dtype", "float32",
        *STEPS,
    )  # fmt: skip
    assert result.exit_code in (0, 1), result.stderr
    lines = logged(out)
    assert [line["id"] for line in lines] == ["a-0", "a-1", "b-0", "b-1"]
    assert [line["seed"] for line in lines] == [1, 2, 2, 3]
    assert lines[0]["prompt"] == CIRCLE
    assert "prompt" not in chunks(out / "a-0.png")
    settings = json.loads((out / "generation.json").read_text())["settings"]
    assert settings["redaction"][0] == "fill"
    assert settings["arguments"]["width"] == 128
    assert settings["seed"] == 5
    assert settings["on_flag"] == f"quarantine={quarantine}"


@pytest.mark.usefixtures("one_thread")
def test_a_pipeline_from_a_folder_is_called_by_its_name_and_no_path(prompts, tmp_path):
    from nsfw_guard.demo.generate import PIPELINE

    out = tmp_path / "out"
    result = run(prompts, "--out", out, "--pipeline", PIPELINE, "--model", "demo", *STEPS)
    assert result.exit_code == 1, result.stderr
    assert chunks(out / "a.png")["model"] == "pipeline"
    assert actions(out) == {"a": "keep", "b": "redact"}
    written = (out / "generation.json").read_text() + (out / "audit-00000.jsonl").read_text()
    assert str(PIPELINE.parent) not in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on-flag", "retry=0"], "on_flag is 'retry=0'"),
        (["--set", "steps=3"], "StableDiffusionPipeline has no argument 'steps'"),
        (["--set", "width"], "--set is 'width'; expected NAME=VALUE"),
        (["--set", "a=1", "--set", "a=2"], "each name once"),
        (["--set", "num_inference_steps=3"], "say the same"),
        (["--redaction", "none"], 'redaction is "none"'),
        (["--model", "nobody"], "There is no model card 'nobody'"),
        (["--pipeline", "nobody/nothing"], "The pipeline 'nobody/nothing' cannot be loaded"),
        (["--prompt-in-file", "maybe"], "expected one of never, unflagged, all"),
        (["--num-images", "0"], "num_images is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--device", "tpu9"], "device is 'tpu9'"),
        (["--dtype", "float8"], "dtype is 'float8'"),
    ],
)
def test_what_could_not_run_ends_with_2_and_writes_nothing(prompts, tmp_path, arguments, message):
    result = run(prompts, "--out", tmp_path / "out", *STEPS, *arguments)
    assert result.exit_code == 2
    assert message in re.sub(r"\s+", " ", result.stderr)
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_prompt_files_that_are_none(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("missing.txt", "is no file"), ("empty.txt", "holds no prompts"), (".", "is no file")):
        result = run(tmp_path / name, "--out", tmp_path / "out", *STEPS)
        assert result.exit_code == 2
        assert message in result.stderr
    (tmp_path / "out").write_text("a file")
    (tmp_path / "p.txt").write_text(CIRCLE)
    result = run(tmp_path / "p.txt", "--out", tmp_path / "out", *STEPS)
    assert result.exit_code == 2
    assert "File exists" in result.stderr or "Not a directory" in result.stderr


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"_class_name": "NoSuchPipeline", "_diffusers_version": "0.30.0"}', "has no attribute NoSuchPipeline"),
        ("[]", "cannot be loaded"),
        ("{", "cannot be loaded"),
    ],
)
def test_a_broken_pipeline_ends_with_2_and_not_as_if_something_was_flagged(prompts, tmp_path, index, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text(index)
    result = run(prompts, "--out", tmp_path / "out", "--pipeline", tmp_path / "broken", "--model", "demo", *STEPS)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "cannot be loaded" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_error_that_nobody_has_thought_of_ends_with_2(prompts, tmp_path, monkeypatch):
    from nsfw_guard.generation.run import Generation

    monkeypatch.setattr(Generation, "_draw_apart", lambda *_: (_ for _ in ()).throw(KeyError("x")))
    result = run(prompts, "--out", tmp_path / "out", *STEPS)
    assert result.exit_code == 2
    assert "error: KeyError: 'x'; the same command goes on from here" in result.stderr
    assert "2 images: 2 left" in result.stdout


def test_an_interrupt_ends_with_2_and_says_how_to_go_on(prompts, tmp_path, monkeypatch):
    from nsfw_guard.generation.run import Generation

    monkeypatch.setattr(Generation, "_draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    result = run(prompts, "--out", tmp_path / "out", *STEPS)
    assert result.exit_code == 2
    assert "the same command goes on from here" in result.stderr
    assert "2 images: 2 left" in result.stdout
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.usefixtures("one_thread")
def test_exit_zero_is_for_what_is_flagged_only(prompts, tmp_path):
    result = run(prompts, "--out", tmp_path / "out", *STEPS, "--exit-zero", "--json")
    assert result.exit_code == 0, result.stderr
    assert (json.loads(result.stdout)["flagged"], json.loads(result.stdout)["exit_code"]) == (1, 1)
    assert "launcher" not in result.stderr
    assert run(tmp_path / "missing.txt", "--out", tmp_path / "out", "--exit-zero").exit_code == 2


@pytest.mark.usefixtures("one_thread")
def test_rows_that_could_not_be_drawn_are_said_by_line_and_reason(prompts, tmp_path, monkeypatch):
    from nsfw_guard.generation.run import Generation

    real = Generation._draw

    def draw(self, jobs):
        if jobs[0].row.id == "b":
            raise RuntimeError("no such tensor")
        return real(self, jobs)

    monkeypatch.setattr(Generation, "_draw", draw)
    result = run(prompts, "--out", tmp_path / "out", *STEPS, "--exit-zero", "--json")
    assert result.exit_code == 2
    assert f"error: {prompts}, line 2: b: RuntimeError: no such tensor" in result.stderr
    assert "1 row not drawn; the summary's errors say why" in result.stderr
    assert json.loads(result.stdout)["errors"] == [{"line": 2, "problem": "b: RuntimeError: no such tensor"}]


@pytest.mark.usefixtures("one_thread")
def test_of_many_bad_rows_the_first_are_said_and_how_many_more_there_are(prompts, tmp_path):
    prompts.write_text("{\n" * 76)
    result = run(prompts, "--out", tmp_path / "out", *STEPS)
    assert result.exit_code == 2
    assert result.stderr.count("it is not JSON") == 20
    assert f"bad row: {prompts}, and 56 more" in result.stderr
    result = run(prompts, "--out", tmp_path / "out", *STEPS, "--strict")
    assert result.stderr.count("it is not JSON") == 10
    assert "; and 66 more" in result.stderr


class Launch:
    """Processes through accelerate, on the CPU."""

    def __init__(self, *arguments, processes=2, quiet=True):
        launcher = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *(("--multi_gpu",) if processes > 1 else ("--cpu",)),
            "--num_processes",
            str(processes),
        ]
        given = [
            "--main_process_port",
            "0",
            *(["--quiet"] if quiet else []),
            "-m",
            "nsfw_guard.generation",
            *map(str, arguments),
        ]
        given += ["--pipeline", "demo", *STEPS]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "300"}
        self.process = subprocess.Popen(
            [*launcher, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def end(self):
        stdout, stderr = self.process.communicate(timeout=300)
        return self.process.returncode, stdout, stderr


def test_two_processes_share_the_rows_and_another_number_goes_on(tmp_path):
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    rows = [{"id": f"r{i}", "prompt": (CIRCLE, TRIANGLE, HEART)[i % 3], "seed": i + 1} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows[:4])))
    code, stdout, stderr = Launch(path, "--out", out, "--json", "--exit-zero").end()
    assert code == 0, stderr
    assert "Traceback" not in stderr
    said = json.loads(stdout)
    assert (said["rows"], said["kept"], said["redacted"], said["processes"]) == (4, 3, 1, 2)
    assert said["exit_code"] == 1
    shares = [[line["id"] for line in read(out / f"audit-0000{i}.jsonl") if line["event"] == "image"] for i in range(2)]
    assert shares == [["r0", "r2"], ["r1", "r3"]]
    assert actions(out) == {"r0": "keep", "r1": "redact", "r2": "keep", "r3": "keep"}
    assert pictures(out) == ["r0.png", "r1.png", "r2.png", "r3.png"]
    path.write_text("\n".join(map(json.dumps, rows)))
    result = run(path, "--out", out, *STEPS, "--json")
    assert result.exit_code == 1, result.stderr
    assert json.loads(result.stdout)["before"] == 4
    assert sorted(actions(out)) == ["r0", "r1", "r2", "r3", "r4"]


@pytest.mark.parametrize(("options", "expected"), [((), 1), (("--exit-zero",), 0)])
def test_a_flagged_picture_is_no_crash_for_a_launcher_if_that_is_asked_for(prompts, tmp_path, options, expected):
    code, stdout, stderr = Launch(prompts, "--out", tmp_path / "out", *options, processes=1, quiet=False).end()
    assert code == expected, stderr
    assert "2 images: 1 kept, 1 redacted" in stdout
    assert ("CalledProcessError" in stderr) == bool(expected)
    assert ("--exit-zero makes it 0" in stderr) == bool(expected)


@pytest.mark.slow
def test_a_process_that_is_killed_does_not_leave_the_other_hanging(tmp_path):
    psutil = pytest.importorskip("psutil")
    path, out = tmp_path / "p.txt", tmp_path / "out"
    path.write_text("\n".join([CIRCLE, TRIANGLE, HEART] * 100))
    launch = Launch(path, "--out", out)
    log = out / "audit-00001.jsonl"
    while not log.exists() or len(log.read_bytes().splitlines()) < 3:
        assert launch.process.poll() is None
        time.sleep(0.05)
    workers = [
        child
        for child in psutil.Process(launch.process.pid).children(recursive=True)
        if "nsfw_guard.generation" in child.cmdline() and child.environ().get("RANK") == "1"
    ]
    os.kill(workers[0].pid, signal.SIGKILL)
    code, _, _ = launch.end()  # within the time that communicate gives it
    assert code != 0
    path.write_text("\n".join([CIRCLE, TRIANGLE, HEART]))
    assert run(path, "--out", out, *STEPS).exit_code == 1
    lines = logged(out)
    assert len({line["id"] for line in lines}) == len(lines)
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_a_process_that_cannot_begin_ends_them_all(prompts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "audit-00001.jsonl").mkdir()
    code, _, stderr = Launch(prompts, "--out", out).end()
    assert code != 0
    assert "Is a directory" in stderr
    assert pictures(out) == []
