"""Members of zip and tar archives: listed without unpacking, opened anywhere, damaged in every way."""

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from nsfw_guard.scan import opening, tars
from nsfw_guard.scan.sources import open_path, parse_sources

PICTURES = {f"{index}.jpg": bytes([index]) * (100 + index) for index in range(5)}


def make_zip(path, members=PICTURES, **options):
    with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path, members=PICTURES, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(entry):
    with entry.open() as file:
        return file.read()


def contents(*sources, wanted=None, **options):
    """Place below the sources → content, and → error; and what was passed over."""
    given = parse_sources([str(source) for source in sources], **options)
    good, bad = {}, {}
    for entry in given.entries(wanted):
        place = given.relative_to_source(entry.path)
        assert place not in good | bad
        if entry.error is None:
            good[place] = read(entry)
            assert len(good[place]) == entry.size
            with open_path(entry.path) as file:  # also without what the entry knows
                assert file.read() == good[place]
        else:
            assert "\n" not in entry.error and " at 0x" not in entry.error
            bad[place] = entry.error
    return good, bad, dict(given.skipped)


MAKERS = {
    "x.zip": make_zip,
    "x.tar": make_tar,
    "x.tar.gz": lambda path: make_tar(path, mode="w:gz"),
    "x.tgz": lambda path: make_tar(path, mode="w:gz"),
    "x.tar.bz2": lambda path: make_tar(path, mode="w:bz2"),
    "x.tar.xz": lambda path: make_tar(path, mode="w:xz"),
    "x.TAR": lambda path: make_tar(path, format=tarfile.PAX_FORMAT),
    "no ending": make_zip,
    "shard": make_tar,
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_archives_that_are_named_are_looked_into(name, tmp_path):
    MAKERS[name](tmp_path / name)
    good, bad, skipped = contents(tmp_path / name)
    assert good == {f"{name}/{member}": data for member, data in PICTURES.items()}
    assert not bad and not skipped


def test_archives_in_folders_are_counted_or_looked_into(tmp_path):
    make_zip(tmp_path / "x.zip")
    make_tar(tmp_path / "y.tar")
    assert contents(tmp_path) == ({}, {}, {"archive": 2})
    good, _, skipped = contents(tmp_path, archives=True)
    assert len(good) == 10 and not skipped
    assert len(contents(f"{tmp_path}/*.zip")[0]) == 5
    assert len(contents(f"{tmp_path}/*")[0]) == 10


def test_other_members_folders_and_archives_in_archives_are_counted(tmp_path):
    inner = make_zip(tmp_path / "inner.zip").read_bytes()
    members = {**PICTURES, "0.json": b"{}", "0.txt": b"x", "inner.zip": inner, "folder/": b"", "folder/9.png": b"x"}
    for path in (make_zip(tmp_path / "x.zip", members), make_tar(tmp_path / "x.tar", members)):
        good, bad, skipped = contents(path)
        assert len(good) == 6 and not bad
        assert skipped["archive"] == 1
        assert skipped["other type"] in (2, 3)  # in a tar made here "folder/" is a file
        assert len(contents(path, every_name=True)[0]) >= 8


def test_members_of_one_name_are_all_looked_at(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for data in (b"first", b"second", b"third"):
            archive.writestr("same.jpg", data)
    with tarfile.open(tmp_path / "x.tar", "w") as archive, tarfile.open(tmp_path / "y.tar.gz", "w:gz") as packed:
        for data in (b"first", b"second", b"third"):
            info = tarfile.TarInfo("same.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            packed.addfile(info, io.BytesIO(data))
    for name in ("x.zip", "x.tar", "y.tar.gz"):
        good, bad, _ = contents(tmp_path / name)
        assert list(good.values()) == [b"first", b"second", b"third"]
        assert list(good) == [f"{name}/same.jpg", f"{name}/2/same.jpg", f"{name}/3/same.jpg"]
        assert not bad


@pytest.mark.parametrize("name", ["../../etc/x.jpg", "/abs.jpg", "C:\\x.jpg", "a::b.jpg", "line\nbreak.jpg", "ü%#.jpg"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_odd_names_of_members(make, name, tmp_path):
    path = make(tmp_path / "x::y.bin", {name: b"data"})
    good, bad, _ = contents(path)
    ((place, data),) = good.items()
    assert data == b"data" and not bad
    assert not os.path.isabs(place) and ".." not in place.split("/") and "\n" not in place and ":" not in place[10:]


def test_names_in_a_tar_that_are_no_utf_8(tmp_path):
    make_tar(tmp_path / "x.tar", {"caf\xe9.jpg": b"data"}, encoding="latin-1", format=tarfile.GNU_FORMAT)
    (entry,) = parse_sources([str(tmp_path / "x.tar")]).entries()
    assert "caf%E9.jpg" in entry.path
    assert read(replace(entry, offset=None)) == b"data"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_member_or_some_of_an_archive_can_be_a_source(kind, tmp_path, monkeypatch):
    path = MAKERS[f"x.{kind}"](tmp_path / f"x.{kind}")
    scheme = kind[:3]
    assert list(contents(f"{scheme}://3.jpg::{path}")[0]) == [f"x.{kind}/3.jpg"]
    assert len(contents(f"{scheme}://[12].jpg::{path}")[0]) == 2
    monkeypatch.chdir(tmp_path)
    assert list(contents(f"{scheme}://3.jpg::x.{kind}")[0]) == [f"x.{kind}/3.jpg"]
    (tmp_path / "list").write_text(f"{scheme}://3.jpg::{path}\n{scheme}://no.jpg::{path}\n")
    good, bad = {}, {}
    for entry in parse_sources([], lists=["list"]).entries():
        (bad if entry.error else good)[entry.path] = entry.error
    assert list(good) == [f"{scheme}://3.jpg::{path}"]
    assert bad == {f"{scheme}://no.jpg::{path}": "cannot be opened: no such member"}


def versions(path):
    return {(entry.path, entry.size, entry.mtime, entry.etag) for entry in parse_sources([str(path)]).entries()}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_a_changed_archive_is_another_version_of_all_its_members(name, tmp_path):
    MAKERS[name](tmp_path / name)
    before = versions(tmp_path / name)
    assert versions(tmp_path / name) == before
    os.utime(tmp_path / name, ns=(1, 123_456_789))
    assert not versions(tmp_path / name) & before


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_that_is_replaced_is_opened_again(make, tmp_path):
    path = make(tmp_path / "x.bin", {"a.jpg": b"old"})
    (entry,) = parse_sources([str(path)]).entries()
    assert read(replace(entry, offset=None)) == b"old"
    make(tmp_path / "new", {"a.jpg": b"newer"})
    os.replace(tmp_path / "new", path)
    assert read(replace(entry, offset=None)) == b"newer"


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_threads_open_members_at_the_same_time(name, tmp_path):
    path = tmp_path / name
    members = {f"{index}.jpg": os.urandom(20_000) for index in range(40)}
    (make_zip if name == "x.zip" else make_tar)(path, members, **({"mode": "w:gz"} if name == "x.tar.gz" else {}))
    entries = [replace(entry, data=None) for entry in parse_sources([str(path)]).entries()] * 3
    with ThreadPoolExecutor(8) as pool:
        for entry, data in zip(entries, pool.map(read, entries), strict=True):
            assert data == members[entry.path.split("://")[1].split("::")[0]]


def test_more_archives_than_are_kept_open(tmp_path):
    paths = [make_zip(tmp_path / f"{index}.zip", {"a.jpg": bytes([index])}) for index in range(30)]
    entries = list(parse_sources([f"{tmp_path}/*.zip"]).entries())
    files = [entry.open() for entry in entries]
    expected = [bytes([int(entry.path.rpartition("/")[2][:-4])]) for entry in entries]
    assert [file.read() for file in files] == expected
    assert len(entries) == len(paths)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for file in files:
        file.close()
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) <= descriptors - 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_opens_archives_anew(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a.jpg": b"a" * 9999}, compression=zipfile.ZIP_STORED)
    (entry,) = parse_sources([str(path)]).entries()
    from nsfw_guard.scan.zips import _opened

    before = _opened.get(str(path))
    child = os.fork()
    if child == 0:
        os._exit(int(_opened.get(str(path)) is before or read(entry) != b"a" * 9999))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_empty_archive_holds_nothing(tmp_path):
    make_zip(tmp_path / "x.zip", {})
    make_tar(tmp_path / "x.tar", {})
    assert contents(tmp_path / "x.zip") == contents(tmp_path / "x.tar") == ({}, {}, {})


def test_headers_of_a_tar_are_not_kept(tmp_path, monkeypatch):
    make_tar(tmp_path / "x.tar", {f"{index}.jpg": b"x" for index in range(100)})
    kept = []
    members = tars._members

    def watched(tar):
        for info in members(tar):
            kept.append(len(tar.members))
            yield info

    monkeypatch.setattr(tars, "_members", watched)
    assert len(list(parse_sources([str(tmp_path / "x.tar")]).entries())) == 100
    assert max(kept) == 0


def test_a_slice_of_a_file_is_a_file():
    file = opening.slice_of(io.BytesIO(b"0123456789"), 2, 5, "x")
    assert (file.read(2), file.tell(), file.read(), file.read()) == (b"23", 2, b"456", b"")
    assert (file.seek(-2, io.SEEK_END), file.read(9)) == (3, b"56")
    assert (file.seek(0), file.read(100)) == (0, b"23456")
    with pytest.raises(OSError, match="x cannot be read: the archive ends before it does"):
        opening.slice_of(io.BytesIO(b"0123456789"), 8, 5, "x")
