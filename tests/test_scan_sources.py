"""Sources on this machine: files, folders, globs, lists, odd names, links, pipes."""

import io
import os
import pickle
import socket
import stat
import sys

import pytest

from nsfw_guard import SettingError
from nsfw_guard.scan import local
from nsfw_guard.scan.entry import Entry, member_path, path_to_text, split_member, text_to_path
from nsfw_guard.scan.sources import is_local_file, open_path, parse_sources

ODD = [
    "line\nbreak.jpg", "emoji \U0001f600.png", "-rf.jpg", " lead.jpg", "end .jpg", "a'b\"c.jpg", "ü.jpg", "u\u0308.jpg",
    "x" * 251 + ".jpg", "star*[1].jpg", "semi;$(x).jpg", "bytes:%41.jpg", "a::b.jpg", "UPPER.JPG", ".hidden.png",
]  # fmt: skip


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def found(*sources, **options):
    """Paths without an error, and with one, below the first source."""
    given = parse_sources([str(source) for source in sources], **options)
    entries = list(given.entries())
    good = sorted(given.relative_to_source(entry.path) for entry in entries if entry.error is None)
    bad = {given.relative_to_source(entry.path): entry.error for entry in entries if entry.error is not None}
    return good, bad, dict(given.skipped)


def test_folders_give_pictures_and_videos_by_name_and_count_the_rest(tmp_path):
    put(tmp_path, "a.jpg", "b.PNG", "sub/deep/c.webm", "notes.txt", "sub/LICENSE", "pack.zip", "sub/rows.parquet")
    assert found(tmp_path) == (["a.jpg", "b.PNG", "sub/deep/c.webm"], {}, {"other type": 2, "archive": 2})
    good, _, skipped = found(tmp_path, every_name=True)
    assert good == ["a.jpg", "b.PNG", "notes.txt", "sub/LICENSE", "sub/deep/c.webm"]
    assert skipped == {"archive": 2}


def test_an_entry_has_the_version_of_its_file(tmp_path):
    put(tmp_path, "a.jpg")
    (entry,) = parse_sources([str(tmp_path)]).entries()
    status = os.stat(tmp_path / "a.jpg")
    assert entry == Entry(str(tmp_path / "a.jpg"), 1, status.st_mtime)
    assert pickle.loads(pickle.dumps(entry)) == entry
    with entry.open() as file:
        assert file.read() == b"x"


@pytest.mark.parametrize("name", ODD)
def test_odd_names_survive(name, tmp_path):
    put(tmp_path, name)
    for source in (tmp_path, tmp_path / name):
        given = parse_sources([str(source)])
        (entry,) = given.entries()
        entry.path.encode("utf-8")
        assert text_to_path(entry.path) == str(tmp_path / name)
        assert given.relative_to_source(entry.path) == name
        assert is_local_file(entry.path)
        with open_path(entry.path) as file:
            assert file.read() == b"x"


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_names_that_are_no_utf_8_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    put(tmp_path, name)
    given = parse_sources([str(tmp_path)])
    (entry,) = given.entries()
    assert entry.path == path_to_text(str(tmp_path / name))
    assert "caf%E9%20%FF.jpg" in entry.path
    assert given.relative_to_source(entry.path) == name
    with entry.open() as file:
        assert file.read() == b"x"


def test_a_linked_folder_is_entered_once_and_loops_end(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2.jpg", "outside/3.jpg")
    root = tmp_path / "root"
    root.mkdir()
    for name, target in {
        "self": root, "up": tmp_path, "out": tmp_path / "outside", "again": tmp_path / "outside",
    }.items():  # fmt: skip
        (root / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a", target_is_directory=True)
    paths = [entry.path for entry in parse_sources([str(root)]).entries()]
    real = {os.path.realpath(path) for path in paths}
    assert real == {str(tmp_path / name) for name in ("a/1.jpg", "b/2.jpg", "outside/3.jpg")}
    assert len(paths) == len(set(paths)) < 12
    assert found(root)[2]["folder seen already"] > 0


def test_links_into_folders_on_the_way_and_second_links_are_counted(tmp_path):
    put(tmp_path, "root/1.jpg", "root/sub/2.jpg", "outside/3.jpg")
    for name, target in {"sub/self": "root", "out": "outside", "again": "outside"}.items():
        (tmp_path / "root" / name).symlink_to(tmp_path / target, target_is_directory=True)
    good, bad, skipped = found(tmp_path / "root")
    assert sorted(name.rpartition("/")[2] for name in good) == ["1.jpg", "2.jpg", "3.jpg"]
    assert not bad
    assert skipped == {"folder seen already": 2}


def test_links_to_nowhere_and_to_themselves_are_errors(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    put(tmp_path, "real.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    good, bad, skipped = found(tmp_path)
    assert good == ["link.jpg", "real.jpg"]
    assert bad == {
        "gone.jpg": "cannot be opened: No such file or directory",
        "loop.jpg": "cannot be opened: Too many levels of symbolic links",
    }
    assert skipped == {"other type": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_devices_and_sockets_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert found(tmp_path) == ([], {}, {"special file": 3})
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(SettingError, match=f"{name} is neither a file nor a folder"):
            parse_sources([name])
        with pytest.raises(OSError, match="Not a regular file"):
            open_path(str(tmp_path / name))


def test_a_folder_that_cannot_be_read_is_an_error_and_the_rest_goes_on(tmp_path, monkeypatch):
    put(tmp_path, "a/1.jpg", "closed/2.jpg", "z/3.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(local.os, "scandir", refuse)  # tests may run as root, whom nothing is denied
    good, bad, _ = found(tmp_path)
    assert good == ["a/1.jpg", "z/3.jpg"]
    assert bad == {"closed": "folder cannot be read: Permission denied"}


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_an_error(tmp_path):
    put(tmp_path, "closed/2.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        assert found(tmp_path)[1] == {"closed": "folder cannot be read: Permission denied"}
    finally:
        (tmp_path / "closed").chmod(stat.S_IRWXU)


def test_a_folder_that_fails_on_the_way_is_an_error(tmp_path, monkeypatch):
    put(tmp_path, "1.jpg")
    scandir = os.scandir

    class Failing:
        def __init__(self, path):
            self.items = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.items.close()

        def __next__(self):
            for item in self.items:
                return item
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(local.os, "scandir", Failing)
    assert found(tmp_path)[:2] == (["1.jpg"], {tmp_path.name: "folder cannot be read to its end: Input/output error"})


def test_what_disappears_is_an_error_when_it_is_opened(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    entries = list(parse_sources([str(tmp_path)]).entries())
    (tmp_path / "a.jpg").unlink()
    gone = next(entry for entry in entries if entry.path.endswith("a.jpg"))
    with pytest.raises(FileNotFoundError):
        gone.open()


def test_names_are_not_gathered_before_the_first_is_handed_out(tmp_path, monkeypatch):
    put(tmp_path, *[f"{index}.jpg" for index in range(50)])
    seen = []
    entry = local.file_entry
    monkeypatch.setattr(local, "file_entry", lambda path: seen.append(path) or entry(path))
    entries = parse_sources([str(tmp_path)]).entries()
    next(entries)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["1.jpg", "2.jpg"]),
        ("[!1].jpg", ["2.jpg"]),
        ("?.j*", ["1.jpg", "2.jpg"]),
        ("*", ["1.jpg", "2.jpg", "a/3.jpg", "a/b/4.png"]),
        ("a/*", ["3.jpg", "b/4.png"]),
        ("**/*.jpg", ["1.jpg", "2.jpg", "a/3.jpg"]),
        ("**", ["1.jpg", "2.jpg", "a/3.jpg", "a/b/4.png"]),
        ("a/**/*.png", ["b/4.png"]),
        ("*/b/*", ["a/b/4.png"]),
        ("*.dat", ["5.dat"]),
        ("{1,2}.jpg", ["1.jpg", "2.jpg"]),
        ("a/{b,3.jpg}", ["3.jpg", "b/4.png"]),
        ("{1..2}.jp*", ["1.jpg", "2.jpg"]),
    ],
)
def test_globs(pattern, expected, tmp_path, monkeypatch):
    put(tmp_path, "1.jpg", "2.jpg", "a/3.jpg", "a/b/4.png", "5.dat", "a/6.txt")
    assert found(f"{tmp_path}/{pattern}")[0] == expected
    monkeypatch.chdir(tmp_path)
    assert found(pattern)[0] == expected


def test_globs_take_folders_with_stars_in_their_own_names(tmp_path, monkeypatch):
    put(tmp_path, "odd[1]/x.jpg", "odd[1]/y.jpg")
    monkeypatch.chdir(tmp_path / "odd[1]")
    assert found("*.jpg")[0] == ["x.jpg", "y.jpg"]
    assert found(str(tmp_path / "odd[1]"))[0] == ["x.jpg", "y.jpg"]


def test_numbered_braces_keep_their_zeros_and_names_with_braces_are_names(tmp_path):
    put(tmp_path, *[f"s-{index:03}.jpg" for index in range(8, 12)], "{1,2}.jpg", "{old}.jpg")
    assert found(f"{tmp_path}/s-{{008..011}}.jpg")[0] == [f"s-{index:03}.jpg" for index in range(8, 12)]
    assert found(f"{tmp_path}/{{1,2}}.jpg")[0] == ["{1,2}.jpg"]
    assert found(f"{tmp_path}/{{old}}.jpg")[0] == ["{old}.jpg"]
    with pytest.raises(SettingError, match=r"There is no file or folder .*s-012\.jpg"):
        parse_sources([f"{tmp_path}/s-{{011..012}}.jpg"])
    with pytest.raises(SettingError, match="stands for more than"):
        parse_sources([f"{tmp_path}/s-011{{,}}.jpg".replace("{,}", "{,}" * 21)])


def test_a_file_that_is_named_is_tried_whatever_its_name(tmp_path):
    put(tmp_path, "notes.txt")
    assert found(tmp_path / "notes.txt")[0] == ["notes.txt"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_lists(end, tmp_path, monkeypatch):
    put(tmp_path, "a.jpg", "b c.txt", "sub/d.jpg", "ü.jpg")
    names = ["a.jpg", "b c.txt", "missing.jpg", "sub", "", str(tmp_path / "ü.jpg")]
    (tmp_path / "list").write_text(end.join(names), encoding="utf-8", newline="")
    monkeypatch.chdir(tmp_path)
    good, bad, _ = found(lists=["list"])
    assert good == ["a.jpg", "b c.txt", "sub/d.jpg", "ü.jpg"]
    assert bad == {"missing.jpg": "cannot be opened: No such file or directory"}


def test_a_list_longer_than_a_block_and_one_from_standard_input(tmp_path, monkeypatch):
    names = [f"{index:06}/{'x' * 60}.jpg" for index in range(3000)]
    data = "\n".join(names).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    entries = list(parse_sources([], lists=["-"]).entries())
    assert [entry.path for entry in entries] == [os.path.abspath(name) for name in names]


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / "list").write_text(f"{tmp_path}/a.jpg\n", encoding="utf-8-sig")
    (entry,) = parse_sources([], lists=[str(tmp_path / "list")]).entries()
    assert entry.path == f"{tmp_path}/a.jpg"


def test_names_with_newlines_in_a_list(tmp_path):
    put(tmp_path, "line\nbreak.jpg")
    (tmp_path / "list").write_bytes(os.fsencode(tmp_path / "line\nbreak.jpg") + b"\0")
    (entry,) = parse_sources([], lists=[str(tmp_path / "list")]).entries()
    assert entry.error is None


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "There is nothing to scan"),
        ([""], "A source is empty"),
        (["missing.jpg"], r"There is no file or folder missing\.jpg"),
        (["*.nothing"], r"\*\.nothing matches no picture"),
    ],
)
def test_sources_that_cannot_be_are_refused_at_once(sources, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=message):
        parse_sources(sources)


def test_lists_that_cannot_be_are_refused_at_once(tmp_path):
    with pytest.raises(SettingError, match="There is no list"):
        parse_sources([], lists=[str(tmp_path / "missing")])
    (tmp_path / "empty").touch()
    with pytest.raises(SettingError, match=r"The list .*empty is empty"):
        parse_sources([], lists=[str(tmp_path / "empty")])


def test_places_below_several_sources_stay_apart(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg", "c.jpg")
    assert found(tmp_path / "a", tmp_path / "b")[0] == ["a/1.jpg", "b/1.jpg"]
    assert found(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")[0] == ["a/1.jpg", "b/1.jpg"]
    assert found(tmp_path / "a" / "1.jpg")[0] == ["1.jpg"]


def test_places_outside_of_what_sources_have_in_common_stay_apart(tmp_path, monkeypatch):
    put(tmp_path, "here/x/1.jpg", "x/1.jpg")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "list").write_text(f"{tmp_path}/x/1.jpg\nx/1.jpg\n")
    assert found(lists=[str(tmp_path / "list")])[0] == ["_up/x/1.jpg", "x/1.jpg"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "x.zip/_up/_up/etc/passwd"),
        ("/etc/passwd", "x.zip/etc/passwd"),
        ("C:\\temp\\x.jpg", "x.zip/C_/temp/x.jpg"),
        ("a/./b//c.jpg", "x.zip/a/b/c.jpg"),
        ("line\nbreak|?.jpg", "x.zip/line_break__.jpg"),
    ],
)
def test_members_never_leave_the_folder_of_copies(name, expected, tmp_path):
    put(tmp_path, "x.jpg")
    given = parse_sources([str(tmp_path)])
    path = member_path("zip", name, str(tmp_path / "x.zip"))
    assert given.relative_to_source(path) == expected
    assert not is_local_file(path)


@pytest.mark.parametrize("name", [*ODD, "a:b", "c:", "50%", "x#2", "a%3Ab", "\udcff\udc80.jpg", "ü/é.jpg", "::"])
@pytest.mark.parametrize("archive", ["/data/x.zip", "/data/a::b.zip", "https://host/a.zip?x=1", "bytes:/data/%FF.zip"])
def test_paths_of_members_can_be_taken_apart(name, archive):
    for number in (1, 3):
        path = member_path("tar", name, archive, number=number)
        path.encode("utf-8")
        assert split_member(path) == ("tar", name, number, archive)


def test_files_are_no_members():
    assert split_member("/data/zip:/x.jpg") is None
    assert split_member("https://host/x.jpg") is None
