"""Threads that share a guard: a move or cast of the weights waits for the calls that run, and they for it."""

import copy
import pickle
import threading
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from nsfw_guard import CheckpointError, NsfwGuard
from nsfw_guard.turns import PerThread, Turns

# How long a thread that must wait is watched; one that need not wait is done in far less.
WATCHED = 0.3


class Job(threading.Thread):
    """Runs a function; ``result`` raises what it raised."""

    def __init__(self, run):
        super().__init__(daemon=True)
        self._run, self._value, self._error = run, None, None
        self.start()

    def run(self):
        try:
            self._value = self._run()
        except BaseException as error:
            self._error = error

    def result(self, patience=60):
        self.join(patience)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._value


def during_the_first_pass(guard, do):
    """Have ``do`` started in another thread in the middle of the next forward pass, and watched; return the job."""
    jobs = []

    def start(module, args):
        if not jobs:
            jobs.append(Job(do))
            jobs[0].join(WATCHED)

    guard.classifier.network.classifier.register_forward_pre_hook(start)  # the last layer: what comes to it is computed
    return jobs


# Each is made before the call that it falls into: only the move itself is done during it.
MOVES = {
    "cast": lambda guard: partial(guard.to, torch.float64),
    "half": lambda guard: guard.half,
    "its network cast": lambda guard: partial(guard.classifier.to, torch.float64),
    "within a module": lambda guard: torch.nn.ModuleList([guard]).double,
    "compiled": lambda guard: torch.compile(guard, backend="eager").double,
}


@pytest.mark.parametrize("call", ["check", "apply", "classify", "forward"])
@pytest.mark.parametrize("move", MOVES)
def test_a_move_or_cast_waits_for_the_call_that_runs(tiny_folder, images, move, call):
    guard = NsfwGuard(tiny_folder, dtype="auto", runtime="torch")
    guard.float()
    wanted = guard.check(images)
    jobs = during_the_first_pass(guard, MOVES[move](guard))
    if call == "forward":
        guard(images=images * 2 - 1)
    else:
        getattr(guard, call)(images)
    if call in ("check", "apply"):
        assert [verdict.score for verdict in guard.last_verdicts] == [verdict.score for verdict in wanted]
    jobs[0].result()
    assert guard.classifier.dtype != torch.float32, "it was done in the end"


def test_a_move_that_loses_the_weights_waits_and_the_next_call_says_so(tiny_folder, images):
    guard = NsfwGuard(tiny_folder, dtype="float32", runtime="torch")
    jobs = during_the_first_pass(guard, lambda: guard.to("meta"))
    assert len(guard.check(images)) == len(images)
    jobs[0].result()
    with pytest.raises(CheckpointError, match="weights are on the meta device, which keeps no values"):
        guard.check(images)


def test_a_call_waits_for_a_move(tiny_folder, images):
    """What the call needs is looked at when the move is done: here, the dtype."""
    guard = NsfwGuard(tiny_folder)
    guard.float()
    jobs = []

    class Slow(torch.nn.Module):
        def _apply(self, fn, recurse=True):
            jobs.append(Job(lambda: guard.check(images)))
            jobs[0].join(WATCHED)
            assert jobs[0].is_alive()
            return super()._apply(fn, recurse)

    guard.classifier.slow = Slow()
    guard.double()
    assert len(jobs[0].result()) == len(images)


def test_calls_do_not_wait_for_each_other(tiny_folder, images):
    guard = NsfwGuard(tiny_folder, dtype="float32", runtime="torch")
    inside = threading.Barrier(2)
    guard.classifier.network.register_forward_pre_hook(lambda module, args: None if inside.wait(60) else None)
    other = Job(lambda: guard.check(images[:1]))
    guard.check(images[:1])
    other.result()


def test_a_call_may_move_its_own_guard(tiny_folder, images):
    """As hooks of hosts do: in the thread that holds a turn, beside another call that is in the middle of its own."""
    guard = NsfwGuard(tiny_folder, dtype="float32", runtime="torch")
    inside = threading.Barrier(2)

    def move(module, args):
        inside.wait(60)
        guard.to("cpu")
        inside.wait(60)

    guard.classifier.network.register_forward_pre_hook(move)
    other = Job(lambda: guard.check(images[:1]))
    guard.check(images[:1])
    other.result()


def test_calls_under_a_hosts_hooks_take_turns(tiny_folder, images):
    """The hooks bring weights to a device and take them away again, whoever else is in the middle of a call."""
    accelerate = pytest.importorskip("accelerate")
    guard = NsfwGuard(tiny_folder, dtype="float32")
    wanted = [verdict.score for verdict in guard.check(images)]
    accelerate.cpu_offload(guard, torch.device("cpu"))
    jobs = during_the_first_pass(guard, lambda: guard.check(images))
    assert [verdict.score for verdict in guard.check(images)] == pytest.approx(wanted, abs=1e-5)
    assert [verdict.score for verdict in jobs[0].result()] == pytest.approx(wanted, abs=1e-5)


def test_images_on_two_devices_wait_for_the_weights(tiny_folder, images, monkeypatch):
    """A dtype stands in for a second device: one thread's images want the weights in it, the other's do not."""
    guard = NsfwGuard(tiny_folder, runtime="torch")
    wishes = threading.local()
    monkeypatch.setattr("nsfw_guard.placement.fastest_dtype", lambda *_: getattr(wishes, "dtype", torch.float32))

    def check_as_float64():
        wishes.dtype = torch.float64
        return guard.check(images)

    guard.check(images)
    jobs = during_the_first_pass(guard, check_as_float64)
    assert len(guard.check(images)) == len(jobs[0].result()) == len(images)
    assert guard.classifier.dtype == torch.float64


def test_a_call_that_fails_gives_its_turn_back(tiny_folder, images):
    guard = NsfwGuard(tiny_folder, dtype="float32", runtime="torch")

    def fail(module, args):
        raise RuntimeError("the driver is gone")

    handle = guard.classifier.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="driver is gone"):
        guard.check(images)
    handle.remove()
    Job(lambda: guard.to("cpu")).result()


def test_a_move_that_fails_gives_its_turn_back(tiny_folder, images):
    guard = NsfwGuard(tiny_folder, dtype="float32", runtime="torch")
    with pytest.raises((RuntimeError, AssertionError)):
        guard.to("cuda:99")
    assert len(Job(lambda: guard.check(images)).result()) == len(images)


def test_no_call_begins_before_a_move_that_waits():
    """Else calls that overlap would put a move off for good."""
    turns, order = Turns(), []
    with turns.shared(lambda: None):

        def move():
            with turns.alone():
                order.append("move")

        def call():
            with turns.shared(lambda: None):
                order.append("call")

        moved = Job(move)
        while not turns._moves and moved.is_alive():
            pass
        called = Job(call)
        called.join(WATCHED)
        assert order == []
        with turns.shared(lambda: None), turns.alone(lambda: "at once") as prepared:
            assert prepared == "at once"  # whoever has a turn does not wait
    moved.result()
    called.result()
    assert order == ["move", "call"]


def test_a_nested_call_does_not_give_the_turn_away_to_who_waits():
    turns = Turns()

    def nested():
        with turns.alone():
            turns._moves += 1  # somebody who came before, and waits
            with turns.shared(lambda: None), turns.alone():
                turns._moves -= 1
        return "done"

    assert Job(nested).result(5) == "done"


COPIES = {
    "deep copy": lambda guard, folder: copy.deepcopy(guard),
    "pickle": lambda guard, folder: pickle.loads(pickle.dumps(guard)),
    "saved": lambda guard, folder: guard.save_pretrained(folder),
}


@pytest.mark.parametrize("make", COPIES)
def test_a_copy_is_not_taken_in_the_middle_of_a_cast(tiny_folder, images, tmp_path, make):
    """It would have weights of two dtypes, and could not look at anything."""
    guard = NsfwGuard(tiny_folder, dtype="auto", runtime="torch")
    guard.float()
    jobs, seen = [], 0

    def cast(weights):
        nonlocal seen
        seen += 1
        if seen == 5:  # some are cast, and the others are not
            jobs.append(Job(partial(COPIES[make], guard, tmp_path / "saved")))
            jobs[0].join(WATCHED)
        return weights.double() if weights.is_floating_point() else weights

    guard._apply(cast)
    twin = jobs[0].result()
    weights = twin.state_dict() if twin is not None else load_file(tmp_path / "saved" / "model.safetensors")
    assert {one.dtype for one in weights.values()} == {torch.float64}
    twin = twin or NsfwGuard(tmp_path / "saved", dtype="float32")
    assert [one.flagged for one in twin.check(images)] == [one.flagged for one in guard.check(images)]


def test_a_pickle_is_of_the_weights_as_they_were_when_it_was_begun(tiny_folder):
    guard = NsfwGuard(tiny_folder, dtype="auto", runtime="torch")
    guard.float()
    state = guard.classifier.__getstate__()  # what pickle writes down, and only then reads the weights of
    guard.double()
    assert {weights.dtype for weights in state["_modules"]["network"].parameters()} == {torch.float32}


@pytest.mark.parametrize("method", [copy.copy, copy.deepcopy, lambda turns: pickle.loads(pickle.dumps(turns))])
def test_copies_start_anew(method):
    turns = Turns()
    with turns.alone():
        twin = method(turns)
        Job(lambda: twin.alone().__enter__()).result()
    kept = PerThread()
    kept.value = 3
    assert method(kept).value is None
