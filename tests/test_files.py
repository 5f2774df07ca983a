"""Files that are there as a whole or not at all, on file systems of all kinds."""

import errno
import os
import subprocess
import sys

import pytest

from nsfw_guard.files import FolderLock, SettingError, is_other_name, place_new, whole_file, write_new, write_synced


def refuse_links(monkeypatch, code=errno.EPERM):
    """Be a file system without hard links."""

    def link(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch, code):
    fsync = os.fsync

    def picky(descriptor):
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    with whole_file(tmp_path / "x") as file:
        file.write(b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_disk_that_fails_to_sync_a_folder_is_an_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def broken(descriptor):
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"), whole_file(tmp_path / "x") as file:
        file.write(b"1")


def test_what_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file under the name."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names))[1])
    with whole_file(tmp_path / "x") as file:
        file.write(b"1")
    assert done == ["sync", "name", "sync"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_synced(tmp_path / "x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_once(tmp_path):
    first = FolderLock(tmp_path, "scan")
    with pytest.raises(SettingError, match="in use by another scan"):
        FolderLock(tmp_path, "scan")
    first.release()
    FolderLock(tmp_path, "scan").release()


@pytest.mark.parametrize("links", ["links", errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK])
@pytest.mark.parametrize("there", ["nothing", "a file", "a folder", "a link to nothing", "a link to a file"])
def test_what_has_a_name_keeps_it(tmp_path, monkeypatch, links, there):
    source, target, other = tmp_path / "a", tmp_path / "b", tmp_path / "other"
    source.write_bytes(b"mine")
    other.write_bytes(b"other")
    if there == "a file":
        target.write_bytes(b"theirs")
    elif there == "a folder":
        target.mkdir()
    elif there.startswith("a link"):
        target.symlink_to("nowhere" if there.endswith("nothing") else other)
    if links != "links":
        refuse_links(monkeypatch, links)
    if there == "nothing":
        place_new(source, target)
        assert (target.read_bytes(), source.exists()) == (b"mine", False)
    else:
        with pytest.raises(FileExistsError):
            place_new(source, target)
        assert source.read_bytes() == b"mine"
        assert there != "a file" or target.read_bytes() == b"theirs"
    assert other.read_bytes() == b"other"
    assert not (tmp_path / "nowhere").exists()


def test_a_kill_between_two_names_leaves_both_and_the_same_call_ends_it(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    os.link(tmp_path / "a", tmp_path / "b")
    place_new(tmp_path / "a", tmp_path / "b")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("b", b"mine")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("call", ["link", "unlink", "fsync", "open"])
@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_step_loses_nothing(tmp_path, monkeypatch, call, links):
    """Killed before and after the first of each call, and started again."""
    for when in ("before", "after"):
        folder = tmp_path / when
        folder.mkdir()
        (folder / "a").write_bytes(b"mine" * 100_000)
        child = os.fork()
        if child == 0:
            if not links:
                refuse_links(monkeypatch)
            real = getattr(os, call)

            def killed(*args, _real=real, _when=when, **options):
                if _when == "after":
                    _real(*args, **options)
                os.kill(os.getpid(), 9)

            setattr(os, call, killed)
            try:
                place_new(folder / "a", folder / "b")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        contents = [path.read_bytes() for path in folder.iterdir()]
        assert b"mine" * 100_000 in contents
        if (folder / "a").exists() and not ((folder / "b").exists() and not is_other_name(folder / "a", folder / "b")):
            place_new(folder / "a", folder / "b")
            assert (folder / "b").read_bytes() == b"mine" * 100_000


def test_one_name_spelt_in_two_ways_is_no_second_one(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"mine")
    os.link(tmp_path / "in/a", tmp_path / "elsewhere")  # so that it has two names anyhow
    (tmp_path / "linked").symlink_to("in")
    with pytest.raises(FileExistsError):
        place_new(tmp_path / "in/a", tmp_path / "linked/a")
    assert (tmp_path / "in/a").read_bytes() == b"mine"


@pytest.mark.parametrize("links", [True, False])
def test_what_is_written_to_meanwhile_is_left(tmp_path, monkeypatch, links):
    (tmp_path / "a").write_bytes(b"mine")
    if not links:
        refuse_links(monkeypatch)
    fsync = os.fsync
    saved = []

    def meanwhile(descriptor):
        if not saved:
            (tmp_path / "new").write_bytes(b"newer content")
            os.replace(tmp_path / "new", tmp_path / "a")  # as an editor saves it
            saved.append(True)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(OSError, match="changed while it was copied"):
        place_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"newer content"


def test_a_new_file_is_written_beside_what_is_there_never_over_it(tmp_path, monkeypatch):
    write_new(tmp_path / "x", b"1")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "x", b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"1")]


RACE = """
import errno, os, sys
from pathlib import Path
from nsfw_guard.files import write_new
folder, who, links = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if links == "refused":
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")
    os.link = link
print("ready", flush=True)
sys.stdin.readline()
for number in range(300):
    for name in (f"{number}", f"{number}-{who}"):
        try:
            write_new(folder / name, f"{who} {number}".encode())
            break
        except FileExistsError:
            pass
"""


@pytest.mark.parametrize("links", ["there", "refused"])
def test_processes_that_write_the_same_names_lose_nothing(tmp_path, links):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(who), links], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for who in range(4)
    ]
    for writer in writers:
        writer.stdout.readline()
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=300)
        assert writer.returncode == 0
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == sorted(
        f"{who} {number}" for who in range(4) for number in range(300)
    )


@pytest.mark.parametrize("write", ["whole_file", "write_new", "place_new"])
def test_a_full_disk_is_said_with_where_it_is(tmp_path, monkeypatch, write):
    (tmp_path / "source").write_bytes(b"1")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    refuse_links(monkeypatch)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        if write == "whole_file":
            with whole_file(tmp_path / "x") as file:
                file.write(b"1")
        elif write == "write_new":
            write_new(tmp_path / "x", b"1")
        else:
            place_new(tmp_path / "source", tmp_path / "x")
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
