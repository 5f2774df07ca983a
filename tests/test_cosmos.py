"""What hosts ask of a Cosmos checker, about prompts and about clips; test_attach_more.py has the attached pipelines."""

import copy
import pickle

import diffusers
import numpy as np
import pytest
import torch
from nsfw_guard.integrations.diffusers_pipeline import attach, detach
from outputs import between
from pipelines import videos

from nsfw_guard import CosmosChecker, ImageError, NsfwGuard, SettingError
from nsfw_guard.demo.shapes import draw

pytestmark = pytest.mark.usefixtures("one_thread")
UNREAD = "The guard reads no prompts, so every prompt passes"


@pytest.fixture
def frames():
    """A clip as hosts hand it over: uint8 [F, H, W, C], the second frame a triangle."""
    shapes = torch.stack([draw(shape, "red", "white") for shape in ("circle", "triangle", "circle")])
    return (shapes.movedim(1, -1) * 255).round().to(torch.uint8).numpy()


@pytest.fixture
def guard(tiny_folder):
    return NsfwGuard(tiny_folder, dtype="float32")


def not_b(prompt):
    return prompt != "b"


class Nvidias(torch.nn.Module):
    """As cosmos_guardrail has it: networks in runners, and a check of prompts over them."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        self.text_guardrail = type("Runner", (), {"models": ["a list of words", self.network]})()

    def check_text_safety(self, prompt):
        return not_b(prompt)

    def check_video_safety(self, frames):
        return None


def told(caplog):
    return [record.getMessage() for record in caplog.records if UNREAD in record.getMessage()]


def test_a_guard_that_is_asked_about_a_prompt_says_once_that_it_reads_none(guard, caplog):
    assert [guard.check_text_safety(prompt) for prompt in ("a", "b", "")] == [True] * 3
    (said,) = told(caplog)
    assert "CosmosChecker(guard, text=...)" in said
    assert CosmosChecker(guard, text=None).check_text_safety("a")
    assert len(told(caplog)) == 1
    assert CosmosChecker(copy.deepcopy(guard), text=not_b).check_text_safety("a")
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("text", [not_b, Nvidias()], ids=["function", "checker"])
def test_prompts_are_read_by_the_check_that_is_given(demo, caplog, text):
    checker = CosmosChecker(demo, text=text)
    assert [checker.check_text_safety(prompt) for prompt in ("a", "b")] == [True, False]
    assert not told(caplog)


@pytest.mark.parametrize("answer", [(False, "blocked"), "unsafe", None, 0.2, [], 1])
def test_an_answer_that_is_no_bool_is_an_error(demo, answer):
    """As a truth value, a tuple that says no would be a yes."""
    with pytest.raises(SettingError, match="The check of prompts returned .*; expected True, it may be used, or False"):
        CosmosChecker(demo, text=lambda prompt: answer).check_text_safety("a")


def test_a_check_of_prompts_that_is_none_is_refused_and_one_that_fails_fails(demo):
    with pytest.raises(SettingError, match="text is a str; expected a function"):
        CosmosChecker(demo, text="blocklist.txt")
    with pytest.raises(TypeError, match="text"):
        CosmosChecker(demo)
    with pytest.raises(SettingError, match="text is the class Nvidias; expected a function"):
        CosmosChecker(demo, text=Nvidias)

    def broken(prompt):
        raise OSError("no words")

    with pytest.raises(OSError, match="no words"):
        CosmosChecker(demo, text=broken).check_text_safety("a")


def test_a_guard_is_no_check_of_prompts_and_nothing_else_looks_at_clips(demo):
    """As a check of prompts, a guard would pass every one of them."""
    for text in (demo, CosmosChecker(demo, text=None)):
        with pytest.raises(SettingError, match="text is a guard, which reads no prompts.*text=None"):
            CosmosChecker(demo, text=text)
    assert not CosmosChecker(demo, text=CosmosChecker(demo, text=not_b)).check_text_safety("b")
    for guard in (None, "demo", NsfwGuard, Nvidias(), not_b):
        with pytest.raises(SettingError, match="guard is .*; expected an NsfwGuard, which looks at the clips"):
            CosmosChecker(guard, text=None)


def test_a_clip_as_a_list_of_frames_is_an_error_whatever_is_in_it(demo, frames):
    for clip in (list(frames), list(frames[:1])):
        with pytest.raises(ImageError, match="frames is a list; expected an array"):
            demo.check_video_safety(clip)


def test_what_servers_read_of_their_checker(demo, frames):
    checker = CosmosChecker(demo, text=Nvidias())
    for runner in (checker.text_guardrail, checker.video_guardrail, checker):  # as they move them when they start
        for model in runner.models:
            if isinstance(model, torch.nn.Module):
                model.to("cpu")
    assert checker.text_guardrail.models == ["a list of words", checker.text.network]
    assert checker.video_guardrail.models == checker.video_guardrail.nn_models == [demo]
    assert checker.models == ["a list of words", checker.text.network, demo]
    assert checker.nn_models == [checker.text.network, demo]
    assert CosmosChecker(demo, text=not_b).text_guardrail.models == [not_b]
    assert CosmosChecker(demo, text=not_b).nn_models == CosmosChecker(demo, text=None).models == [demo]
    shown = checker.check_video_safety(frames)  # None is a clip that may be shown, there
    assert shown.dtype == frames.dtype
    assert [np.array_equal(one, other) for one, other in zip(shown, frames, strict=True)] == [True, False, True]
    assert [verdict.flagged for verdict in demo.check(shown)] == [False] * 3


def test_a_checker_is_moved_as_hosts_move_theirs():
    checker = CosmosChecker(NsfwGuard("demo", dtype="float32"), text=Nvidias())
    assert checker.to("meta") is checker
    assert {next(model.parameters()).device.type for model in checker.nn_models} == {"meta"}


def test_a_checker_can_be_copied_and_pickled(demo, frames):
    checker = CosmosChecker(demo, text=not_b)
    for again in (copy.deepcopy(checker), pickle.loads(pickle.dumps(checker))):
        assert not again.check_text_safety("b")
        assert np.array_equal(again.check_video_safety(frames), checker.check_video_safety(frames))


# --- In diffusers' own pipelines -------------------------------------------------------------------------------------


def test_cosmos_1_reads_prompts_and_redacts_clips(guard, tmp_path, caplog):
    case = videos.CASES["cosmos_text_to_world"]
    alone = videos.cosmos_text_to_world(safety_checker=guard)
    frames = (case.run(case.build(), "np").frames * 255).round().astype(np.uint8)
    guard.policy = between(guard.check(frames.reshape(-1, *frames.shape[2:])))
    expected = case.run(alone, "np").frames
    assert len(told(caplog)) == 1
    pipe = videos.cosmos_text_to_world(safety_checker=CosmosChecker(guard, text=not_b))
    pipe.to("cpu")
    assert np.array_equal(case.run(pipe, "np").frames, expected)
    with pytest.raises(ValueError, match="unsafe text in the prompt: b"):
        pipe(**{**case.call(), "prompt": "b"})
    pipe.save_pretrained(tmp_path)


def test_attach_takes_the_guard_of_the_checker_and_leaves_it_in_its_slot(guard):
    case = videos.CASES["cosmos_text_to_world"]
    checker = CosmosChecker(guard, text=not_b)
    pipe = attach(videos.cosmos_text_to_world(safety_checker=checker), min_run=1)
    assert pipe.safety_checker is checker
    assert guard.last_verdicts is None
    out = case.run(pipe, "np")
    assert out.verdicts
    assert guard.last_verdicts == out.verdicts
    with pytest.raises(ValueError, match="unsafe text in the prompt: b"):
        pipe(**{**case.call(), "prompt": "b"})
    assert detach(pipe).safety_checker is checker


@pytest.mark.skipif(not hasattr(diffusers, "Cosmos3OmniModularPipeline"), reason="a diffusers without it")
def test_the_modular_cosmos_3_takes_it(guard):
    whole = videos.CASES["cosmos3_omni"]
    pipe = diffusers.Cosmos3OmniBlocks().init_pipeline()
    parts = whole.build().components
    pipe.update_components(**{name: parts[name] for name in pipe.components if parts.get(name) is not None})
    with pytest.raises(ValueError, match="requires a safety checker"):
        pipe(**whole.call(), output="videos")

    def run(**more):
        call = {**whole.call(), "output_type": "np", "generator": torch.Generator().manual_seed(0), **more}
        return np.asarray(pipe(**call, output="videos")) * 255

    pipe.disable_safety_checker()
    plain = run().astype(np.uint8)  # as the pipeline itself hands them over
    guard.policy = between(guard.check(plain))
    flags = [verdict.flagged for verdict in guard.check(plain)]
    pipe.enable_safety_checker(CosmosChecker(guard, text=not_b))
    shown = run().round().astype(np.uint8)
    same = [np.array_equal(one, other) for one, other in zip(shown, plain, strict=True)]
    assert {*flags} == {True, False}
    assert same == [not flagged for flagged in flags]
    with pytest.raises(ValueError, match="unsafe text in the prompt: b"):
        run(prompt="b")
