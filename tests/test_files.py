"""Files that are there as a whole or not at all, on file systems of all kinds."""

import errno
import os

import pytest

from nsfw_guard.files import FolderLock, SettingError, whole_file, write_synced


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
