"""Batch generation with the demo pipeline: what is written, what is logged, and that nothing flagged gets out."""

import io
import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDPMPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from generations import CIRCLE, HEART, ROWS, SHORT, TRIANGLE, actions, chunks, logged, pictures, pixels, verdict_in
from nsfw_guard.integrations.diffusers_pipeline import attach, detach
from PIL import Image

from nsfw_guard import NsfwGuard, Policy, Redaction, SettingError
from nsfw_guard import audit as audit_module
from nsfw_guard.audit import AuditError, AuditLog
from nsfw_guard.demo.generate import load_pipeline
from nsfw_guard.generation import Generation, OutputError
from nsfw_guard.generation import folder as folder_module
from nsfw_guard.generation import run as run_module
from nsfw_guard.generation.entries import pixels_sha256
from nsfw_guard.generation.metadata import COMPOSITE, GENERATED, encode_png
from nsfw_guard.generation.settings import OnFlag, seed_of_attempt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bare():
    return load_pipeline()


@pytest.fixture
def pipe(bare, own_demo):
    """The demo pipeline, guarded."""
    attach(bare, own_demo)
    yield bare
    detach(bare)


@pytest.fixture(scope="module")
def originals(bare):
    """What the unguarded pipeline makes of ROWS, one by one."""
    return {row["id"]: np.asarray(drawn(bare, row["prompt"], row["seed"])) for row in ROWS}


def drawn(pipe, prompt, seed):
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **SHORT).images[0]


def generation(pipe, out, **more):
    return Generation(pipe, out, **{"arguments": SHORT, "name": "demo", **more})


def run(pipe, out, rows=ROWS, **more):
    made = generation(pipe, out, **more)
    return list(made.run(rows)), made.summary


def close_to(one, other):
    """The same picture, but for rounding: it depends on how many are drawn at once."""
    return one.shape == other.shape and np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("on_flag", "action", "code"), [("redact", "redact", 1), ("skip", "skip", 1), ("stop", "stop", 1)]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_safe_images_are_kept_and_the_flagged_one_is_not(pipe, originals, tmp_path, on_flag, action, code, batch_size):
    made, summary = run(pipe, tmp_path, on_flag=on_flag, batch_size=batch_size)
    stopped = on_flag == "stop" and batch_size == 1
    expected = {"circle": "keep", "triangle": action, **({} if stopped else {"heart": "keep"})}
    assert actions(tmp_path) == {one.id: one.action for one in made} == expected
    files = [f"{name}.png" for name, what in sorted(expected.items()) if what in ("keep", "redact")]
    assert pictures(tmp_path) == files
    for name in ("circle", *([] if stopped else ["heart"])):
        found = pixels(tmp_path / f"{name}.png")
        assert np.array_equal(found, originals[name]) if batch_size == 1 else close_to(found, originals[name])
    if action == "redact":
        change = np.abs(pixels(tmp_path / "triangle.png").astype(int) - originals["triangle"])
        assert change.max() > 30
    assert (summary.exit_code, summary.pending, summary.flagged) == (code, int(stopped), 1)


def test_without_anything_flagged_the_exit_code_is_0(pipe, tmp_path):
    _, summary = run(pipe, tmp_path, [CIRCLE, HEART], batch_size=2)
    assert (summary.exit_code, summary.done, summary.flagged) == (0, 2, 0)
    assert str(summary).startswith("2 images: 2 kept.")


def test_quarantine_gets_the_original_and_nobody_else_anything(pipe, originals, tmp_path):
    out, quarantine = tmp_path / "out", tmp_path / "quarantine"
    made, summary = run(pipe, out, on_flag=f"quarantine={quarantine}", batch_size=2)
    (name,) = pictures(quarantine)
    assert made[1].file == quarantine / name
    data = (quarantine / name).read_bytes()
    assert name == f"triangle-{sha256(data).hexdigest()[:12]}.png"
    assert close_to(pixels(quarantine / name), originals["triangle"])
    assert quarantine.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in quarantine.iterdir())
    assert pictures(out) == ["circle.png", "heart.png"]
    assert actions(out) == {"circle": "keep", "triangle": "quarantine", "heart": "keep"}
    assert "prompt" not in chunks(quarantine / name)
    assert verdict_in(quarantine / name)["action"] == "quarantine"
    assert (summary.exit_code, summary.flagged) == (1, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_quarantine_that_cannot_be_written_gets_nothing_and_nobody_else_does(pipe, tmp_path, batch_size):
    out, quarantine = tmp_path / "out", tmp_path / "quarantine"
    made = generation(pipe, out, on_flag=f"quarantine={quarantine}", batch_size=batch_size)

    def take_away(_):
        quarantine.rmdir()
        quarantine.write_text("a file")

    found = {one.id: one for one in made.run(ROWS, on_ready=take_away)}
    assert (found["triangle"].action, found["triangle"].file) == ("error", None)
    assert "could not be written to the quarantine, and is nowhere" in found["triangle"].error
    assert actions(out) == {"circle": "keep", "triangle": "error", "heart": "keep"}
    assert pictures(out) == ["circle.png", "heart.png"]
    assert {path.name for path in tmp_path.rglob("*.png")} == {"circle.png", "heart.png"}
    assert not list(tmp_path.rglob(".*"))
    assert made.summary.exit_code == 2
    quarantine.unlink()
    _, summary = run(pipe, out, on_flag=f"quarantine={quarantine}", batch_size=batch_size)
    assert (summary.before, summary.exit_code) == (2, 1)
    assert len(pictures(quarantine)) == 1


def test_a_quarantine_that_goes_while_its_image_is_named_makes_an_error_and_no_image(pipe, tmp_path, monkeypatch):
    out, quarantine = tmp_path / "out", tmp_path / "quarantine"
    real = folder_module.place_new

    def place(source, target):
        if target.parent == quarantine:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(folder_module, "place_new", place)
    made, summary = run(pipe, out, on_flag=f"quarantine={quarantine}")
    assert [one.action for one in made] == ["keep", "error", "keep"]
    assert [line["action"] for line in logged(out)] == ["keep", "quarantine", "error", "keep"]
    assert summary.exit_code == 2
    assert pictures(quarantine) == []


def test_a_quarantine_inside_the_output_folder_is_refused(pipe, tmp_path):
    for inside in (tmp_path, tmp_path / "q", tmp_path / "a" / ".." / "q"):
        with pytest.raises(SettingError, match="is inside the output folder"):
            generation(pipe, tmp_path, on_flag=f"quarantine={inside}")


def test_retry_draws_again_with_other_seeds_and_then_redacts(pipe, tmp_path):
    made, summary = run(pipe, tmp_path, on_flag="retry=2", batch_size=3)
    lines = [(line["id"], line["action"], line["attempt"], line["seed"]) for line in logged(tmp_path)]
    seeds = [seed_of_attempt(2, attempt) for attempt in range(3)]
    assert seeds[0] == 2
    assert len(set(seeds)) == 3
    assert lines == [
        ("circle", "keep", 0, 1),
        ("triangle", "retry", 0, 2),
        ("heart", "keep", 0, 3),
        ("triangle", "retry", 1, seeds[1]),
        ("triangle", "redact", 2, seeds[2]),
    ]
    assert [(one.id, one.action, one.attempt) for one in made] == [
        ("circle", "keep", 0),
        ("heart", "keep", 0),
        ("triangle", "redact", 2),
    ]
    assert chunks(tmp_path / "triangle.png")["seed"] == str(seeds[2])
    assert (summary.counts["retry"], summary.exit_code) == (2, 1)


def test_a_retry_that_passes_is_kept_and_clean(pipe, own_demo, tmp_path):
    """The threshold is between the scores of two seeds, so that the first attempt is flagged and the second is not."""

    def scores(seed):
        images = [drawn(pipe, CIRCLE, seed_of_attempt(seed, attempt)) for attempt in range(2)]
        return [verdict.score for verdict in own_demo.check(images)]

    seed = next(seed for seed in range(30) if scores(seed)[0] > scores(seed)[1])
    own_demo.policy = Policy(threshold=sum(scores(seed)) / 2)
    made, summary = run(pipe, tmp_path, [{"id": "x", "prompt": CIRCLE, "seed": seed}], on_flag="retry")
    assert [(one.action, one.attempt) for one in made] == [("keep", 1)]
    assert (summary.exit_code, summary.counts["retry"]) == (0, 1)
    second = drawn(pipe, CIRCLE, seed_of_attempt(seed, 1))
    assert np.array_equal(pixels(tmp_path / "x.png"), np.asarray(second))


def test_a_run_that_ends_between_two_attempts_goes_on_with_the_next(pipe, tmp_path):
    for one in generation(pipe, tmp_path, on_flag="retry=2", batch_size=3).run(ROWS):
        assert one.id == "circle"
        break
    assert [line["attempt"] for line in logged(tmp_path) if line["id"] == "triangle"] == [0]
    made, summary = run(pipe, tmp_path, on_flag="retry=2", batch_size=3)
    assert [(one.id, one.attempt) for one in made] == [("triangle", 2)]
    assert [line["attempt"] for line in logged(tmp_path) if line["id"] == "triangle"] == [0, 1, 2]
    assert summary.before == 2


def test_stop_goes_on_after_what_it_stopped_at(pipe, tmp_path):
    run(pipe, tmp_path, on_flag="stop")
    made, summary = run(pipe, tmp_path, on_flag="stop")
    assert [one.id for one in made] == ["heart"]
    assert (summary.before, summary.pending, summary.exit_code) == (2, 0, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("retry", OnFlag("retry", 3)),
        ("retry=12", OnFlag("retry", 12)),
        ("skip", OnFlag("skip")),
        ("retry=0", None),
        ("retry=-1", None),
        ("quarantine", None),
        ("quarantine= ", None),
        ("redact=1", None),
        ("Redact", None),
        (None, None),
    ],
)
def test_on_flag(value, expected):
    if expected is None:
        with pytest.raises(SettingError, match="expected redact, skip, retry"):
            OnFlag.parse(value)
    else:
        assert OnFlag.parse(value) == expected == OnFlag.parse(str(expected))


@pytest.mark.parametrize(
    ("where", "in_safe", "in_flagged"), [("never", False, False), ("unflagged", True, False), ("all", True, True)]
)
def test_what_the_files_say(pipe, tmp_path, where, in_safe, in_flagged):
    rows = [{**ROWS[0], "negative_prompt": "ü"}, {**ROWS[1], "negative_prompt": "ü"}]
    run(pipe, tmp_path, rows, prompt_in_file=where)
    for row, written in zip(rows, (in_safe, in_flagged), strict=True):
        path = tmp_path / f"{row['id']}.png"
        texts = chunks(path)
        assert ("prompt" in texts, "arguments" in texts) == (written, written)
        if written:
            assert texts["prompt"] == row["prompt"]
            assert json.loads(texts["arguments"]) == {**SHORT, "negative_prompt": "ü"}
        else:
            assert row["prompt"].encode() not in path.read_bytes()
        assert (texts["model"], texts["seed"]) == ("demo", str(row["seed"]))
        said = json.loads(texts["nsfw_guard"])
        assert said["verdict"]["flagged"] == (row["id"] == "triangle")
        assert said["verdict"]["model"].startswith("demo@sha256:")
        assert f'DigitalSourceType="{GENERATED}"' in texts["XML:com.adobe.xmp"]


def test_what_the_log_says(pipe, originals, tmp_path):
    run(pipe, tmp_path, on_flag="redact", batch_size=1)
    for line in logged(tmp_path):
        data = (tmp_path / line["file"]).read_bytes()
        assert line["sha256"] == sha256(data).hexdigest()
        # The image that was looked at: the original, also where it was redacted.
        assert line["pixels"] == pixels_sha256(Image.fromarray(originals[line["id"]]))
        assert line["verdict"] == {**verdict_in(tmp_path / line["file"])["verdict"], "model": "demo"}
        assert set(line["verdict"]["labels"]) == {"empty", "circle", "square", "cross", "heart", "triangle"}
        assert (line["model"], line["pipeline"]) == ("demo@sha256:c2a353fec3777fd9", "demo")
        assert line["policy"]["threshold"] == line["verdict"]["threshold"]


@pytest.mark.parametrize("prompt_in_log", [False, True])
def test_no_prompt_is_in_the_log_unless_asked_for(pipe, tmp_path, prompt_in_log, monkeypatch):
    fail_on(pipe, monkeypatch, HEART)
    arguments = {**SHORT, "negative_prompt": "a secret cross"}
    made, _ = run(pipe, tmp_path, prompt_in_log=prompt_in_log, arguments=arguments)
    assert HEART in made[2].error
    written = "".join(path.read_text() for path in tmp_path.glob("*.json*"))
    for prompt in (CIRCLE, TRIANGLE, HEART):
        assert (prompt in written) == prompt_in_log
    assert "secret" not in written
    assert "ValueError" in written


def fail_on(pipe, monkeypatch, *prompts):
    """Make the pipeline raise when it encodes one of these prompts; return the prompts of each call."""
    calls = []
    real = pipe.encode_prompt

    def encode_prompt(prompt, *args, **more):
        given = [prompt] if isinstance(prompt, str) else list(prompt)
        calls.append(given)
        if found := [one for one in given if one in prompts]:
            raise ValueError(f"cannot draw {found[0]!r}")
        return real(prompt, *args, **more)

    monkeypatch.setattr(pipe, "encode_prompt", encode_prompt)
    return calls


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prompt_on_which_the_pipeline_raises_takes_no_other_along(pipe, tmp_path, monkeypatch, batch_size):
    with monkeypatch.context() as patch:
        fail_on(pipe, patch, CIRCLE)
        made, summary = run(pipe, tmp_path, batch_size=batch_size)
    assert actions(tmp_path) == {"circle": "error", "triangle": "redact", "heart": "keep"}
    assert made[0].error == f"ValueError: cannot draw {CIRCLE!r}"
    assert (summary.exit_code, summary.counts["error"], summary.pending) == (2, 1, 0)
    made, summary = run(pipe, tmp_path, batch_size=batch_size)
    assert [(one.id, one.action) for one in made] == [("circle", "keep")]
    assert (summary.exit_code, summary.before) == (1, 2)


def test_nothing_is_done_twice(pipe, tmp_path, monkeypatch):
    run(pipe, tmp_path, ROWS[:2])
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in pictures(tmp_path)}
    calls = fail_on(pipe, monkeypatch)
    made, summary = run(pipe, tmp_path)
    assert calls == [[HEART]]
    assert [one.id for one in made] == ["heart"]
    assert (summary.rows, summary.before, summary.done) == (3, 2, 3)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    calls.clear()
    made, summary = run(pipe, tmp_path)
    assert (made, calls, summary.done, summary.exit_code) == ([], [], 3, 1)


def test_only_rows_with_equal_arguments_share_a_batch(pipe, tmp_path, monkeypatch):
    rows = [
        {"id": "a", "prompt": CIRCLE},
        {"id": "b", "prompt": CIRCLE, "width": 64, "height": 64},
        {"id": "c", "prompt": HEART, "negative_prompt": "a cross"},
        {"id": "d", "prompt": HEART},
        {"id": "e", "prompt": HEART, "width": 64, "height": 64},
        {"id": "f", "prompt": CIRCLE, "negative_prompt": "a square"},
    ]
    calls = fail_on(pipe, monkeypatch)
    _, summary = run(pipe, tmp_path, rows, batch_size=4)
    assert calls == [[CIRCLE, HEART], [CIRCLE, HEART], [HEART, CIRCLE]]
    assert pixels(tmp_path / "e.png").shape == (64, 64, 3)
    assert pixels(tmp_path / "d.png").shape == (128, 128, 3)
    assert summary.exit_code == 0


def test_bad_rows_are_said_and_the_rest_goes_on_unless_strict(pipe, tmp_path):
    rows = [ROWS[0], {"prompt": CIRCLE, "stepz": 3}, {"negative_prompt": "x"}, {**ROWS[2], "output_type": "latent"}, 5]
    with pytest.raises(SettingError, match="4 bad rows: line 2: StableDiffusionPipeline has no argument 'stepz'"):
        run(pipe, tmp_path / "strict", rows, strict=True)
    assert not (tmp_path / "strict").exists()
    made, summary = run(pipe, tmp_path / "out", rows)
    assert [one.id for one in made] == ["circle"]
    assert [bad.line for bad in summary.bad_rows] == [2, 3, 4, 5]
    assert "it has height, width" in str(summary.bad_rows[0]).replace("it has prompt, ", "it has ")
    assert summary.bad_rows[1].problem == "it has no prompt"
    assert "output_type cannot be given" in summary.bad_rows[2].problem
    assert summary.exit_code == 2


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ({"width": 64}, "width is given and height is not"),
        ({"height": 64}, "height is given and width is not"),
        ({"width": "abc", "height": 64}, "width is 'abc'; expected a whole number of pixels"),
        ({"width": 64, "height": -64}, "height is -64"),
        ({"width": 64, "height": 0}, "height is 0"),
        ({"width": 64.0, "height": 64}, "width is 64.0"),
    ],
)
def test_sizes_that_the_pipeline_would_pass_over_are_bad(pipe, tmp_path, size, problem):
    """Stable Diffusion draws its default size when one side is missing or zero, and says nothing."""
    made, summary = run(pipe, tmp_path, [{"prompt": CIRCLE, **size}])
    assert made == []
    assert problem in summary.bad_rows[0].problem


def test_a_guard_that_fails_lets_nothing_out(pipe, own_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(type(own_demo), "classify", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no memory")))
    made, summary = run(pipe, tmp_path, batch_size=3)
    assert [one.action for one in made] == ["error"] * 3
    assert "no memory" in made[0].error
    assert pictures(tmp_path) == []
    assert summary.exit_code == 2


def test_what_becomes_not_finite_is_flagged_and_nothing_of_it_shown(pipe, tmp_path, monkeypatch):
    real = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *args, **more: (real(*args, **more)[0] * float("nan"),))
    run(pipe, tmp_path, ROWS[:1])
    (line,) = logged(tmp_path)
    assert (line["action"], line["verdict"]["reason"]) == ("redact", "non_finite")
    assert pixels(tmp_path / "circle.png").max() == 0


def test_a_row_whose_id_was_asked_for_otherwise_is_bad(pipe, tmp_path):
    run(pipe, tmp_path, ROWS[:1])
    made, summary = run(pipe, tmp_path, [{**ROWS[0], "prompt": HEART}, ROWS[2]])
    assert [one.id for one in made] == ["heart"]
    assert "the id 'circle' was asked for with another prompt" in summary.bad_rows[0].problem
    assert chunks(tmp_path / "circle.png")["prompt"] == CIRCLE


@pytest.mark.parametrize(
    "change",
    [{"arguments": {**SHORT, "num_inference_steps": 3}}, {"on_flag": "skip"}, {"seed": 1}, {"name": "other"}],
)
def test_a_folder_holds_one_run(pipe, tmp_path, change):
    run(pipe, tmp_path, ROWS[:1])
    (name,) = change
    with pytest.raises(SettingError, match=f"holds a run with other settings: ({name}|pipeline) was .* and is"):
        run(pipe, tmp_path, **change)
    assert pictures(tmp_path) == ["circle.png"]


def test_another_policy_or_model_needs_another_folder(pipe, own_demo, tmp_path):
    run(pipe, tmp_path, ROWS[:1])
    own_demo.policy = Policy(threshold=0.25)
    with pytest.raises(SettingError, match="other settings: policy was"):
        run(pipe, tmp_path)


def test_a_run_that_nobody_goes_through_says_that_nothing_was_drawn(pipe, tmp_path):
    made = generation(pipe, tmp_path / "out")
    with pytest.warns(RuntimeWarning, match=r"nothing was drawn: .*for made in generation.run\(prompts\)"):
        made.run(ROWS)
    assert not (tmp_path / "out").exists()


def test_a_run_that_a_variable_held_to_the_end_says_so_too():
    code = "from nsfw_guard.generation.iteration import Iteration\nrun = Iteration(one for one in ())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "RuntimeWarning: Generation.run() was called and nothing was drawn" in done.stderr


def test_a_run_that_was_gone_through_or_closed_says_nothing(pipe, tmp_path, recwarn):
    made = generation(pipe, tmp_path)
    rows = made.run(ROWS)
    assert iter(rows) is rows
    assert next(rows).id == "circle"
    rows.close()
    assert made.summary.pending == 2
    assert [one.id for one in made.run(ROWS)] == ["triangle", "heart"]
    made.run(ROWS).close()
    with pytest.raises(SettingError):
        list(made.run("missing.txt"))
    assert not [one for one in recwarn if "nothing was drawn" in str(one.message)]


def test_bad_rows_are_logged_for_whoever_does_not_look_at_the_summary(pipe, tmp_path, caplog):
    made = generation(pipe, tmp_path)
    list(made.run([*ROWS[:1], {"id": "../x", "prompt": CIRCLE}, {"id": "wide", "prompt": CIRCLE, "width": 0}]))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(":")[0] + ":" + text.split(":")[1] for text in said] == [
        "bad row: prompts, line 2",
        "bad row: prompts, line 3",
    ]
    assert made.summary.exit_code == 2


def test_rows_that_were_not_drawn_are_in_the_summary_and_said(pipe, tmp_path, caplog, monkeypatch):
    real = Generation._draw

    def draw(self, jobs):
        if jobs[0].row.id == "heart":
            raise RuntimeError("the prompt 'a secret' is odd")
        return real(self, jobs)

    monkeypatch.setattr(Generation, "_draw", draw)
    made, summary = run(pipe, tmp_path, batch_size=1)
    assert [(one.id, one.line, bool(one.error)) for one in made] == [
        ("circle", 1, False), ("triangle", 2, False), ("heart", 3, True),
    ]  # fmt: skip
    assert [(bad.line, bad.problem) for bad in summary.errors] == [(3, f"heart: {made[2].error}")]
    assert "1 row not drawn" in caplog.text
    assert "a secret" not in caplog.text


def test_a_second_run_into_the_folder_refuses_while_the_first_is_at_work(pipe, tmp_path):
    first = generation(pipe, tmp_path).run(ROWS)
    next(first)
    with pytest.raises(AuditError, match="is being written by another process"):
        run(pipe, tmp_path)
    assert [one.id for one in first] == ["triangle", "heart"]
    assert len(actions(tmp_path)) == 3
    assert run(pipe, tmp_path)[1].exit_code == 1


def test_a_full_disk_is_a_clear_stop_and_the_run_goes_on_later(pipe, tmp_path, monkeypatch):
    real, count = folder_module.write_synced, []

    def write(path, data, **options):
        count.append(path)
        if len(count) == 2:
            path.write_bytes(data[:100])
            raise OSError(28, "No space left on device")
        real(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_synced", write)
        made = generation(pipe, tmp_path, batch_size=1)
        with pytest.raises(OutputError, match="cannot be written to: .*No space left.*goes on from here"):
            list(made.run(ROWS))
    assert made.summary.exit_code == 2
    assert made.summary.pending == 2
    assert pictures(tmp_path) == ["circle.png"]
    assert actions(tmp_path) == {"circle": "keep"}
    assert run(pipe, tmp_path)[1].exit_code == 1
    assert pictures(tmp_path) == ["circle.png", "heart.png", "triangle.png"]


@pytest.mark.parametrize("call", range(1, 5))
def test_a_disk_that_is_full_from_the_start_names_the_folder(pipe, tmp_path, monkeypatch, call):
    calls = []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) >= call:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    out = tmp_path / "out"
    with pytest.raises(
        OutputError, match=rf"{out}.* cannot be written to: .*No space left on device.*goes on from here"
    ):
        run(pipe, out)
    assert not list(out.glob("*.png"))
    assert not list(out.glob(".*tmp"))


def test_a_full_quarantine_is_named(pipe, tmp_path, monkeypatch):
    real = folder_module.write_synced

    def write(path, data, **options):
        if path.parent.name == "q":
            with monkeypatch.context() as patch:
                patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
                real(path, data, **options)
        real(path, data, **options)

    monkeypatch.setattr(folder_module, "write_synced", write)
    made, summary = run(pipe, tmp_path / "out", on_flag=f"quarantine={tmp_path / 'q'}")
    assert re.search(rf"nowhere: .*No space left on device: '{tmp_path / 'q'}/", made[1].error)
    assert summary.exit_code == 2
    assert list((tmp_path / "q").iterdir()) == []


def test_what_a_killed_run_has_left_is_removed_and_what_is_of_another_stays(pipe, originals, tmp_path):
    out, quarantine = tmp_path / "out", tmp_path / "quarantine"
    on_flag = f"quarantine={quarantine}"
    run(pipe, out, ROWS[:1], on_flag=on_flag)
    name = json.loads((out / "generation.json").read_text())["run"]
    (out / "circle.png").rename(tmp_path / "circle.png")
    left = [out / f".{name}.gone.tmp", quarantine / f".{name}.gone.tmp", out / f".{name}.stop"]
    # Of a line that the log has, but not what it was written with.
    left.append(out / f".{name}.circle.tmp")
    others = [out / ".another.gone.tmp", quarantine / ".another.gone.tmp"]
    for path in (*left, *others):
        Image.fromarray(originals["triangle"]).save(path, "PNG")
    run(pipe, out, ROWS[:1], on_flag=on_flag)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    assert not (out / "circle.png").exists(), "taken away by its owner, and done"
    (tmp_path / "circle.png").rename(out / f".{name}.circle.tmp")
    run(pipe, out, ROWS[:1], on_flag=on_flag)
    assert np.array_equal(pixels(out / "circle.png"), originals["circle"])


def test_the_log_has_the_policy_that_the_guard_has_when_it_runs(pipe, own_demo, tmp_path):
    made = generation(pipe, tmp_path)
    own_demo.policy = Policy(threshold=0.125)
    list(made.run(ROWS[:1]))
    (line,) = logged(tmp_path)
    assert (line["policy"]["threshold"], line["verdict"]["threshold"]) == (0.125, 0.125)


@pytest.mark.parametrize(
    "change",
    [
        lambda guard: setattr(guard, "redaction", Redaction("none")),
        lambda guard: setattr(guard, "redaction", Redaction("pixelate")),
        lambda guard: setattr(guard, "policy", Policy(threshold=1.0)),
        lambda guard: setattr(guard, "views", "card" if guard.views == "auto" else "auto"),
    ],
)
def test_a_guard_that_is_set_otherwise_in_the_middle_lets_nothing_out(pipe, own_demo, tmp_path, change):
    made = generation(pipe, tmp_path).run(ROWS)
    assert next(made).action == "keep"
    change(own_demo)
    for one in made:
        assert (one.action, one.file) == ("error", None)
        assert "The guard was set otherwise while the run was at work" in one.error
    assert pictures(tmp_path) == ["circle.png"]


def test_a_file_of_somebody_else_is_not_overwritten(pipe, tmp_path):
    (tmp_path / "heart.png").write_bytes(b"mine")
    (tmp_path / "circle.png").symlink_to("nowhere.png")
    made, summary = run(pipe, tmp_path)
    assert (tmp_path / "heart.png").read_bytes() == b"mine"
    assert (tmp_path / "circle.png").readlink() == Path("nowhere.png")
    assert not (tmp_path / "nowhere.png").exists()
    for one in (made[0], made[2]):
        assert "is there already, and not of this run" in one.error
    assert summary.exit_code == 2


@pytest.mark.parametrize("where", ["out", "quarantine"])
def test_a_file_that_comes_while_an_image_is_drawn_is_not_overwritten(pipe, tmp_path, monkeypatch, where):
    """It comes after the look and before the image gets its name."""
    out, quarantine = tmp_path / "out", tmp_path / "quarantine"
    row, folder = (ROWS[0], out) if where == "out" else (ROWS[1], quarantine)
    append = folder_module.AuditLog.append

    def somebody(self, *records):
        for record in records:
            if record.get("file"):
                (folder / record["file"]).write_bytes(b"theirs")
        return append(self, *records)

    monkeypatch.setattr(folder_module.AuditLog, "append", somebody)
    made, summary = run(pipe, out, [row], on_flag=f"quarantine={quarantine}")
    assert [(one.action, one.file) for one in made] == [("error", None)]
    assert "is there already, and not of this run" in made[0].error
    assert [line["action"] for line in logged(out)][-1] == "error"
    assert [path.read_bytes() for path in folder.glob("*.png")] == [b"theirs"]
    assert not list(tmp_path.rglob(".*.tmp"))
    assert summary.exit_code == 2


@pytest.mark.parametrize("part", [0, 100, None])
def test_a_part_that_a_kill_has_left_where_files_have_one_name_only_is_written_to_its_end(
    pipe, originals, tmp_path, part
):
    run(pipe, tmp_path, ROWS[:1])
    name = json.loads((tmp_path / "generation.json").read_text())["run"]
    left = (tmp_path / "circle.png").rename(tmp_path / f".{name}.circle.tmp")
    (tmp_path / "circle.png").write_bytes(left.read_bytes()[:part])
    made, summary = run(pipe, tmp_path, ROWS[:1])
    assert (made, summary.done) == ([], 1)
    assert np.array_equal(pixels(tmp_path / "circle.png"), originals["circle"])
    assert not left.exists()


def test_a_file_that_somebody_has_put_there_since_a_kill_is_not_overwritten(pipe, tmp_path):
    run(pipe, tmp_path, ROWS[:1])
    name = json.loads((tmp_path / "generation.json").read_text())["run"]
    left = (tmp_path / "circle.png").rename(tmp_path / f".{name}.circle.tmp")
    (tmp_path / "circle.png").write_bytes(b"mine")
    with pytest.raises(SettingError, match=r"circle.png is there already, and not of this run; move it away"):
        run(pipe, tmp_path, ROWS[:1])
    assert (tmp_path / "circle.png").read_bytes() == b"mine"
    assert left.exists()


def test_an_image_that_cannot_be_named_when_the_log_cannot_be_written_either_is_named_later(
    pipe, originals, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(30, "Read-only file system")

    def place(source, target):
        patch.setattr(folder_module.AuditLog, "append", fail)
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "place_new", place)
        with pytest.raises(OutputError, match=r"circle.png cannot be written: .*Read-only"):
            run(pipe, tmp_path, ROWS[:1])
    made, summary = run(pipe, tmp_path, ROWS[:1])
    assert (made, summary.done) == ([], 1)
    assert np.array_equal(pixels(tmp_path / "circle.png"), originals["circle"])
    assert pictures(tmp_path) == ["circle.png"]


def test_lines_that_could_not_be_taken_back_keep_their_images(pipe, originals, tmp_path, monkeypatch):
    """The disk failed after the line was written: whether it is there is known when the log is opened again."""
    real = audit_module.os.fsync

    class Stuck:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def truncate(self, _):
            raise OSError(5, "Input/output error")

    made = generation(pipe, tmp_path)
    with monkeypatch.context() as patch:

        def fail(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").resolve().suffix == ".jsonl":
                raise OSError(5, "Input/output error")
            real(descriptor)

        def break_it(_):
            log = folder_of_run[0]._log
            log._file = Stuck(log._file)
            patch.setattr(audit_module.os, "fsync", fail)

        folder_of_run = []
        opened = folder_module.RunFolder._recover
        patch.setattr(folder_module.RunFolder, "_recover", lambda self: (folder_of_run.append(self), opened(self)))
        with pytest.raises(OutputError, match="Input/output error"):
            list(made.run(ROWS[:1], on_ready=break_it))
    found, summary = run(pipe, tmp_path, ROWS[:1])
    assert (found, summary.done) == ([], 1)
    assert np.array_equal(pixels(tmp_path / "circle.png"), originals["circle"])


def test_lines_that_others_have_added_to_logs_of_their_own_are_none_of_the_run(pipe, tmp_path):
    run(pipe, tmp_path, ROWS[:1])
    with AuditLog(tmp_path / "audit-mine.jsonl") as log:
        log.append({"event": "image", "note": "mine"}, {"event": "image", "run": "another", "id": "heart"})
    made, summary = run(pipe, tmp_path)
    assert [one.id for one in made] == ["triangle", "heart"]
    assert summary.before == 1


def test_an_attempt_that_failed_is_made_again_and_not_those_before_it(pipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        real = Generation._draw

        def draw(self, jobs):
            if jobs[0].attempt == 1:
                raise RuntimeError("once")
            return real(self, jobs)

        patch.setattr(Generation, "_draw", draw)
        run(pipe, tmp_path, ROWS[1:2], on_flag="retry=2")
    run(pipe, tmp_path, ROWS[1:2], on_flag="retry=2")
    found = [(line["action"], line["attempt"]) for line in logged(tmp_path)]
    assert found == [("retry", 0), ("error", 1), ("retry", 1), ("redact", 2)]


def test_a_log_that_was_changed_is_not_gone_on_with(pipe, tmp_path):
    run(pipe, tmp_path, ROWS[:1])
    log = tmp_path / "audit-00000.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"keep"', b'"skip"'))
    with pytest.raises(AuditError, match="was changed"):
        run(pipe, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": 1}',
        pytest.param("[" * 100_000, id="nested"),
        '{"schema": 9, "run": "0123456789abcdef", "settings": {}}',
    ],
)
def test_settings_that_cannot_be_read_are_said(pipe, tmp_path, text):
    run(pipe, tmp_path, ROWS[:1])
    (tmp_path / "generation.json").write_text(text)
    (tmp_path / ".another.circle.tmp").write_text("mine")
    with pytest.raises(SettingError, match="ame another folder"):
        run(pipe, tmp_path)
    assert (tmp_path / ".another.circle.tmp").exists()
    (tmp_path / "generation.json").unlink()
    with pytest.raises(SettingError, match="has audit logs and no generation.json"):
        run(pipe, tmp_path)


@pytest.mark.parametrize("name", ["*", "../x", ""])
def test_the_id_of_a_run_cannot_make_it_remove_files_of_others(pipe, tmp_path, name):
    run(pipe, tmp_path, ROWS[:1])
    manifest = json.loads((tmp_path / "generation.json").read_text())
    (tmp_path / "generation.json").write_text(json.dumps({**manifest, "run": name}))
    (tmp_path / ".another.circle.tmp").write_text("mine")
    with pytest.raises(SettingError, match="expected 16 hex digits"):
        run(pipe, tmp_path)
    assert (tmp_path / ".another.circle.tmp").exists()


def test_the_names_of_images_are_on_the_disk_before_the_log_has_them(pipe, tmp_path, monkeypatch):
    steps = []
    synced, append = folder_module.sync_folder, folder_module.AuditLog.append
    monkeypatch.setattr(folder_module, "sync_folder", lambda path: (steps.append(path.name), synced(path)))
    monkeypatch.setattr(folder_module.AuditLog, "append", lambda *given: (steps.append("line"), append(*given))[1])
    run(pipe, tmp_path / "out", ROWS[:1])
    assert steps[-4:] == ["line", "out", "line", "out"]


def test_a_guard_that_goes_in_the_middle_is_noticed_at_the_next_image(pipe, tmp_path):
    made = generation(pipe, tmp_path).run(ROWS)
    assert next(made).action == "keep"
    detach(pipe)
    assert ["The guard was not asked" in one.error for one in made] == [True, True]
    assert pictures(tmp_path) == ["circle.png"]


def test_verdicts_of_a_call_that_failed_are_not_taken_for_those_of_the_next(pipe, own_demo, tmp_path):
    made, policy = generation(pipe, tmp_path).run([CIRCLE, HEART, TRIANGLE]), own_demo.policy
    next(made)
    own_demo.policy = Policy(threshold=1.0)
    assert "set otherwise" in next(made).error
    own_demo.policy = policy
    detach(pipe)
    assert "The guard was not asked" in next(made).error
    assert len(pictures(tmp_path)) == 1


def test_a_flagged_image_without_an_original_is_nowhere(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "picture_of", lambda _: None)
    out, quarantine = tmp_path / "out", tmp_path / "quarantine"
    made, summary = run(pipe, out, on_flag=f"quarantine={quarantine}")
    assert "handed on no original for the quarantine" in made[1].error
    assert (pictures(out), pictures(quarantine), summary.exit_code) == (["circle.png", "heart.png"], [], 2)


def test_a_file_has_nothing_of_a_picture_but_its_pixels():
    picture = Image.new("RGB", (8, 8))
    picture.info = {"icc_profile": b"a profile", "exif": b"Exif\x00\x00a secret", "comment": "a secret"}
    with Image.open(io.BytesIO(encode_png(picture, {"seed": "1\nü\u2028"}))) as found:
        found.load()
        assert found.info.keys() - {"seed", "XML:com.adobe.xmp", "xmp"} == set()
        assert found.text["seed"] == "1\nü\u2028"


def test_a_guard_that_does_not_redact_is_refused_also_when_it_was_changed_since(pipe, own_demo, tmp_path):
    made = generation(pipe, tmp_path)
    own_demo.redaction = Redaction("none")
    with pytest.raises(SettingError, match='redaction is "none"'):
        list(made.run(ROWS))
    with pytest.raises(SettingError, match='redaction is "none"'):
        generation(pipe, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pipeline_that_lost_its_guard_writes_nothing(pipe, tmp_path):
    made = generation(pipe, tmp_path)
    found = list(made.run(ROWS[:1], on_ready=lambda _: detach(pipe)))
    assert found[0].action == "error"
    assert "The guard was not asked" in found[0].error
    assert pictures(tmp_path) == []


def test_pictures_that_are_not_one_for_each_row_are_not_written(pipe, tmp_path, monkeypatch):
    real = pipe.encode_prompt
    monkeypatch.setattr(
        pipe, "encode_prompt", lambda prompt, device, count, *args, **more: real(prompt, device, 2, *args, **more)
    )
    # Two images of one prompt: whose is the second?
    made, summary = run(pipe, tmp_path, ROWS[:1])
    assert made[0].action == "error"
    assert pictures(tmp_path) == []
    assert summary.exit_code == 2


def test_the_callers_own_function_is_called_and_the_attachment_is_as_before(bare, own_demo, tmp_path):
    seen = []
    attach(bare, own_demo, on_verdicts=lambda verdicts, originals: seen.append((len(verdicts), list(originals))))
    try:
        before = bare._nsfw_guard.settings
        run(bare, tmp_path, batch_size=3, on_flag="skip")
        assert bare._nsfw_guard.settings is before
        assert seen == [(3, [1])]
    finally:
        detach(bare)


def test_the_same_guard_loaded_again_leaves_the_attachment_as_it_is(bare, own_demo, tmp_path):
    attach(bare, own_demo, on_verdicts=print)
    try:
        again = NsfwGuard("demo", dtype="float32")
        made = generation(bare, tmp_path, guard=again)
        assert made.guard is bare._nsfw_guard.guard is again
        assert bare._nsfw_guard.settings.on_verdicts is print
    finally:
        detach(bare)


def test_a_pipeline_that_is_not_guarded_yet_gets_the_guard(bare, own_demo, tmp_path):
    try:
        run(bare, tmp_path, guard=own_demo)
        assert actions(tmp_path)["triangle"] == "redact"
        with pytest.raises(SettingError, match="another guard already"):
            generation(bare, tmp_path, guard=NsfwGuard("demo"))
    finally:
        detach(bare)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 3}, "has no argument 'steps'; it has "),
        ({"generator": 1}, 'generator cannot be given: use "seed"'),
        ({"num_images_per_prompt": 2}, "use num_images"),
        ({"callback_on_step_end": "x"}, "it is a function"),
        ({"prompt": "x"}, "prompts come as rows"),
        ({"callback_on_step_end": print}, "it is a function"),
        ({"return_dict": False}, "return_dict cannot be given"),
        ({"eta": float("nan")}, "cannot be written as JSON in UTF-8"),
        ({"latents": torch.zeros(1)}, "Tensor is not JSON serializable"),
        ({"negative_prompt": "\udcff"}, "surrogates not allowed"),
    ],
)
def test_arguments_that_no_row_could_have_are_refused_at_once(pipe, tmp_path, arguments, message):
    with pytest.raises(SettingError, match=message):
        generation(pipe, tmp_path, arguments=arguments)


def test_a_name_that_no_file_could_hold_is_refused_at_once(pipe, tmp_path):
    with pytest.raises(SettingError, match="name is .* cannot be written as UTF-8"):
        generation(pipe, tmp_path, name="\udcff")


def test_what_makes_no_single_images_is_refused_before_anything_is_drawn(bare, own_demo, tmp_path):
    clips = AnimateDiffPipeline.__new__(AnimateDiffPipeline)
    with pytest.raises(SettingError, match="AnimateDiffPipeline makes clips"):
        Generation(clips, tmp_path)
    with pytest.raises(SettingError, match="batch_size is 0"):
        generation(bare, tmp_path, batch_size=0)


def test_pictures_by_path_and_what_is_a_composite(bare, own_demo, tmp_path):
    Image.new("RGB", (128, 128), "white").save(tmp_path / "start.png")
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    prompts = tmp_path / "p.jsonl"
    rows = [
        {"id": "a", "prompt": CIRCLE, "image": "start.png", "strength": 1.0},
        {"id": "b", "prompt": TRIANGLE, "image": "start.png", "strength": 1.0},
        {"id": "c", "prompt": CIRCLE, "image": "missing.png"},
        {"id": "d", "prompt": CIRCLE, "image": "broken.png"},
        {"id": "e", "prompt": CIRCLE, "image": 5},
        {"id": "f", "prompt": CIRCLE},
    ]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    parts = {**bare.components, "safety_checker": None, "requires_safety_checker": False}
    for number, cls in enumerate((StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)):
        pipe = cls(**parts)
        pipe.set_progress_bar_config(disable=True)
        given = {**SHORT, "num_inference_steps": 8, **({"mask_image": str(tmp_path / "mask.png")} if number else {})}
        out = tmp_path / f"out{number}"
        made = Generation(pipe, out, guard=own_demo, arguments=given, batch_size=4, name="demo")
        found = {one.id: one for one in made.run(prompts)}
        expected = {"a": "keep", "b": "redact", "d": "error", "f": "error"}
        assert {name: one.action for name, one in found.items()} == expected
        assert "cannot be read as a picture" in found["d"].error
        problems = [bad.problem for bad in made.summary.bad_rows]
        assert "there is no such file" in problems[0]
        assert "expected the path of a picture" in problems[1]
        source = COMPOSITE if number else GENERATED
        assert f'DigitalSourceType="{source}"' in chunks(out / "a.png")["XML:com.adobe.xmp"]


def test_a_pipeline_without_prompts(own_demo, tmp_path):
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10))
    pipe.set_progress_bar_config(disable=True)
    made, summary = run(
        pipe, tmp_path, [{"seed": 1}, {"seed": 2}, CIRCLE], guard=own_demo, arguments={"num_inference_steps": 2}
    )
    assert [one.action for one in made] == ["keep", "keep"]
    assert "takes no prompt" in summary.bad_rows[0].problem
    assert not np.array_equal(*[pixels(one.file) for one in made])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_modular_pipelines_are_drawn_with_too(tmp_path, threshold):
    from pipelines import modular

    case = modular.CASES["modular_flux"]
    arguments = {name: value for name, value in case.call().items() if name != "prompt"}
    guard = NsfwGuard("demo", policy=Policy(threshold=threshold), dtype="float32")
    made = Generation(case.build(), tmp_path, guard=guard, batch_size=2, arguments=arguments)
    found = list(made.run(["a cat", "a dog", {"prompt": "a cow", "id": "cow"}, {"prompt": "x", "sizes": 3}]))
    assert [one.action for one in found] == ["redact" if threshold == 0.0 else "keep"] * 3
    assert len(pictures(tmp_path)) == 3
    assert "FluxModularPipeline has no argument 'sizes'" in made.summary.bad_rows[0].problem
    assert list(made.run(["a cat", "a dog", {"prompt": "a cow", "id": "cow"}])) == []
    with pytest.raises(SettingError, match="WanModularPipeline makes clips"):
        Generation(modular.CASES["modular_wan"].build(), tmp_path / "clips", guard=guard)
