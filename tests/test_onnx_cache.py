"""The cache of exported graphs: what is not whole, not ours or not right is made again; nothing stays half-written."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from checkpoints import save_tiny

pytest.importorskip("onnxruntime")

import onnx

from nsfw_guard import CheckpointError, NsfwGuard, onnx_cache, onnx_runtime

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, set by the environment."""
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture
def exports(monkeypatch):
    """A list that has one entry for each export."""
    made, export = [], onnx_runtime.export

    def counted(network, size, path):
        made.append(path)
        export(network, size, path)

    monkeypatch.setattr(onnx_runtime, "export", counted)
    return made


def make(folder, dtype="int8"):
    return NsfwGuard(folder, runtime="onnx", dtype=dtype)


def files(cache):
    return sorted(path.suffix for path in cache.iterdir())


def graph_of(cache):
    (path,) = cache.glob("*.onnx")
    return path


def record_of(cache):
    (path,) = cache.glob("*.json")
    return path


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_second_guard_exports_nothing(cache, exports, tiny_folder, images, dtype):
    first = make(tiny_folder, dtype).check(images)
    assert make(tiny_folder, dtype).check(images) == first
    assert len(exports) == 1
    assert files(cache) == [".json", ".onnx"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NSFW_GUARD_CACHE": "/a/b"}, "/a/b/onnx"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/nsfw_guard/onnx"),
        ({"NSFW_GUARD_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b/onnx"),
        ({"HOME": "/h", "USERPROFILE": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache/nsfw_guard/onnx"),
    ],
)
def test_where_it_is(monkeypatch, variables, expected):
    for name in ("NSFW_GUARD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert onnx_cache.cache_folder() == Path(expected)


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def truncate(cache, other):
    data = graph_of(cache).read_bytes()
    graph_of(cache).write_bytes(data[: len(data) // 2])


def flip_a_bit(cache, other):
    data = bytearray(graph_of(cache).read_bytes())
    data[len(data) // 2] ^= 1
    graph_of(cache).write_bytes(data)


def empty(cache, other):
    graph_of(cache).write_bytes(b"")


def truncate_the_record(cache, other):
    record_of(cache).write_text(record_of(cache).read_text()[:40])


def record_of_another_kind(cache, other):
    record_of(cache).write_text("[1, 2]")


def another_key(cache, other):
    rewrite(record_of(cache), lambda record: record.update(key="0" * 40))


def put_in(cache, data):
    """Put a graph in the place of the cached one, with a record that fits it."""
    old, record = graph_of(cache), record_of(cache)
    rewrite(record, lambda entries: entries.update(sha256=onnx_cache._sha256(data)))
    name = onnx_cache._graph_name(record.stem, json.loads(record.read_text()))
    shutil.copy(data, cache / name)
    if name != old.name:
        old.unlink()


def the_graph_of_other_weights(cache, other):
    put_in(cache, graph_of(other))


def other_labels(cache, other):
    model = onnx.load(graph_of(cache))
    for prop in model.metadata_props:
        if prop.key == "labels":
            prop.value = '["nsfw", "normal"]'
    onnx.save(model, other / "swapped")
    put_in(cache, other / "swapped")


def no_graph_at_all(cache, other):
    (other / "text").write_text("hello")
    put_in(cache, other / "text")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        empty,
        truncate_the_record,
        record_of_another_kind,
        another_key,
        the_graph_of_other_weights,
        other_labels,
        no_graph_at_all,
    ],
)
def test_what_was_changed_is_made_again(
    cache, exports, tiny_folder, tmp_path, images, monkeypatch, caplog, damage, dtype
):
    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setenv("NSFW_GUARD_CACHE", str(other))
        make(save_tiny(tmp_path / "another", seed=5), dtype)
    expected = make(tiny_folder, dtype).check(images)
    assert len(exports) == 2
    damage(cache, other / "onnx")
    caplog.clear()
    assert make(tiny_folder, dtype).check(images) == expected
    assert len(exports) == 3
    assert [record.levelname for record in caplog.records if record.name == "nsfw_guard.onnx_cache"] == ["WARNING"]
    assert "cannot be trusted and is made again" in caplog.text
    assert make(tiny_folder, dtype).check(images) == expected
    assert len(exports) == 3
    assert files(cache) == [".json", ".onnx"]


def test_half_of_a_pair_is_made_again(cache, exports, tiny_folder):
    make(tiny_folder)
    record_of(cache).unlink()
    make(tiny_folder)
    graph_of(cache).unlink()
    make(tiny_folder)
    assert len(exports) == 3
    assert files(cache) == [".json", ".onnx"]


def test_a_cache_that_cannot_be_written(cache, exports, tiny_folder, images, caplog, tiny):
    cache.parent.write_text("a file where the folder should be")  # stops root, too
    scores = [verdict.score for verdict in make(tiny_folder, "float32").check(images)]
    assert scores == pytest.approx([verdict.score for verdict in tiny.check(images)], abs=1e-5)
    assert "exported again at the next start" in caplog.text
    assert "NSFW_GUARD_CACHE=FOLDER" in caplog.text
    make(tiny_folder, "float32")
    assert len(exports) == 2
    assert not [path for path in map(Path, exports) if path.parent.exists()], "temporary folders are removed"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache(cache, exports, tiny_folder, images, caplog):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    assert len(make(tiny_folder).check(images)) == 8
    assert "cannot be written" in caplog.text


def test_no_home(monkeypatch, tiny_folder, images, caplog):
    for name in ("NSFW_GUARD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "expanduser", homeless)
        with pytest.raises(OSError, match="home directory"):
            onnx_cache.cache_folder()
    monkeypatch.setattr(onnx_cache, "cache_folder", lambda: (_ for _ in ()).throw(OSError("no home")))
    assert len(make(tiny_folder).check(images)) == 8
    assert "cannot be written (no home)" in caplog.text


def test_a_disk_that_fills_up_while_it_is_kept(cache, tiny_folder, images, monkeypatch, caplog):
    def full(old, new):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_cache.os, "replace", full)
    assert len(make(tiny_folder).check(images)) == 8
    assert "could not be kept" in caplog.text
    assert files(cache) == []


def test_a_killed_export_leaves_nothing_that_is_believed(cache, exports, tiny_folder, images, monkeypatch):
    script = (
        "import os, sys\n"
        "from nsfw_guard import NsfwGuard, onnx_runtime\n"
        "export = onnx_runtime.export\n"
        "def killed(network, size, path):\n"
        "    export(network, size, path)\n"
        "    path.write_bytes(path.read_bytes()[:1000])\n"
        "    os._exit(9)\n"
        "onnx_runtime.export = killed\n"
        f"NsfwGuard({str(tiny_folder)!r}, runtime='onnx', dtype='int8')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=300, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    (left,) = cache.iterdir()
    assert left.name.startswith("building-")
    assert len(make(tiny_folder).check(images)) == 8
    assert len(exports) == 1
    assert left.exists(), "it may be another process's that is still at it"
    long_ago = time.time() - 48 * 3600
    os.utime(left, (long_ago, long_ago))
    make(tiny_folder, "float32")
    assert not left.exists()


def test_two_at_once(cache, tiny_folder, images):
    guards = []
    threads = [threading.Thread(target=lambda: guards.append(make(tiny_folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(guard.check(images)) for guard in guards}) == 1
    assert len(guards) == 4
    assert files(cache) == [".json", ".onnx"]


def test_two_processes_at_once(cache, tiny_folder):
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from nsfw_guard import NsfwGuard\n"
        f"guard = NsfwGuard({str(tiny_folder)!r}, runtime='onnx', dtype='int8')\n"
        "print(guard.check(torch.full((1, 3, 8, 8), 0.3))[0].score)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    done = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], done
    assert done[0][0] == done[1][0]
    assert files(cache) == [".json", ".onnx"]


def test_a_graph_that_cannot_be_read_back_is_an_error(cache, tiny_folder, monkeypatch):
    monkeypatch.setattr(onnx_cache, "_load", lambda *_: (_ for _ in ()).throw(ValueError("unreadable")))
    with pytest.raises(CheckpointError, match="just exported cannot be loaded: unreadable"):
        make(tiny_folder)
    assert files(cache) == []


def test_the_library_logs_and_prints_nothing_on_a_good_day(cache, tiny_folder, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        make(tiny_folder)
        make(tiny_folder)
    assert not [record for record in caplog.records if record.name.startswith("nsfw_guard")]
    assert "Warning" not in "".join(capfd.readouterr())


def test_changed_weights_never_get_into_the_cache_of_the_checkpoint(cache, tiny_folder, images, tmp_path, monkeypatch):
    guard = make(tiny_folder)
    expected = guard.check(images)
    with torch.no_grad():
        guard.classifier.network.classifier.bias += torch.tensor([30.0, -30.0])
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path / "another"))
    with pytest.raises(CheckpointError, match="were changed after it was loaded"):
        pickle.loads(pickle.dumps(guard)).check(images)
    assert not list((tmp_path / "another").rglob("*.onnx"))
    assert make(tiny_folder).check(images) == expected
