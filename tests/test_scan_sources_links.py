"""Links in archives and folders: what they show is looked at, under their names."""

import io
import stat
import tarfile
import zipfile

import pytest
from scanning import draw, rows_of

from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import open_path, parse_sources

pytestmark = pytest.mark.usefixtures("one_thread")

HARD, SOFT = "hard", "soft"
MODES = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.xz": "w:xz"}


def make(path, *members):
    """Write an archive: (name, content), (name, HARD or SOFT, target) and (name,) for folders, in this order."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, *what in members:
                info = zipfile.ZipInfo(name if what else name + "/")
                link = len(what) == 2
                info.create_system, info.external_attr = 3, ((stat.S_IFLNK if link else stat.S_IFREG) | 0o644) << 16
                archive.writestr(info, what[-1] if what else b"")
        return path
    with tarfile.open(path, MODES[path.name]) as archive:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if not what:
                info.type = tarfile.DIRTYPE
            elif len(what) == 2:
                info.type, info.linkname = (tarfile.LNKTYPE if what[0] == HARD else tarfile.SYMTYPE), what[1]
            else:
                info.size = len(what[0])
            archive.addfile(info, io.BytesIO(what[0]) if len(what) == 1 else None)
    return path


def contents(path, wanted=None, **options):
    """Name → contents, sorted, and name → errors; each is opened once more by its path alone."""
    given = parse_sources([str(path)], **options)
    good, bad, paths = {}, {}, []
    for entry in given.entries(wanted):
        paths.append(entry.path)
        name = entry.path.partition("://")[2].partition("::")[0].partition("#")[0]
        if entry.error is not None:
            bad.setdefault(name, []).append(entry.error)
            if entry.path != str(path):  # the archive itself is a file
                with pytest.raises(OSError, match=r"."):
                    open_path(entry.path)
            continue
        with entry.open() as file, open_path(entry.path) as again:
            data = file.read()
            assert again.read() == data
            assert len(data) == entry.size
        good.setdefault(name, []).append(data)
    assert len(set(paths)) == len(paths)
    return {name: sorted(data) for name, data in good.items()}, bad, dict(given.skipped)


ARCHIVES = [*MODES, "x.zip"]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("kind", [HARD, SOFT])
def test_a_link_shows_what_lies_under_another_name(demo, tmp_path, name, kind):
    """The payload's own name is none of a picture's; the link's is."""
    if name == "x.zip" and kind == HARD:
        pytest.skip("zip has none")
    data = draw(tmp_path / "t.png", "triangle").read_bytes()
    path = make(tmp_path / name, ("payload.dat", data), ("cute.png", kind, "payload.dat"))
    summary = run_scan(demo, parse_sources([str(path)]), tmp_path / "out", ScanSettings(workers=2))
    assert (summary.files, summary.flagged, summary.errors) == (1, 1, 0)
    again = run_scan(demo, parse_sources([str(path)]), tmp_path / "out", ScanSettings(workers=2))
    assert (again.before, again.scored) == (1, 0)
    ((found, row),) = rows_of(tmp_path / "out").items()
    assert (found, row.flagged) == (f"{'zip' if name == 'x.zip' else 'tar'}://cute.png::{path}", True)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("members", "good"),
    [
        ([("a.png", SOFT, "b"), ("b", SOFT, "c"), ("c", SOFT, "./x/../d"), ("d", b"1"), ("x/y", b"")], [b"1"]),
        ([("in/a.png", SOFT, "../deep/d"), ("deep/d", b"1")], [b"1"]),
        ([("in/a.png", SOFT, "d"), ("in/d", b"1"), ("d", b"2")], [b"1"]),
        ([("./in/a.png", SOFT, "d"), ("in//./d", b"1")], [b"1"]),
        ([("a.png", SOFT, "linked/d"), ("linked", SOFT, "deep"), ("deep/d", b"1")], [b"1"]),
        ([("linked/a.png", SOFT, "../d"), ("linked", SOFT, "x/y"), ("x/d", b"1"), ("x/y/z", b"")], [b"1"]),
        ([("a.png", SOFT, "d"), ("d", b"1"), ("d", b"2")], [b"1", b"2"]),
        ([("a.png", b"0"), ("a.png", SOFT, "d"), ("d", b"1")], [b"0", b"1"]),
        ([("a.png", SOFT, "d"), ("a.png", SOFT, "e"), ("d", b"1"), ("e", b"2")], [b"1", b"2"]),
        ([("d", b"1"), ("a.png", HARD, "d")], [b"1"]),
        ([("d", b"1"), ("e", HARD, "d"), ("f", HARD, "e"), ("a.png", SOFT, "f")], [b"1"]),
        ([("d", b"1"), ("e", SOFT, "d"), ("a.png", HARD, "e")], [b"1"]),
        ([("in/d", b"1"), ("in/a.png", HARD, "in/d")], [b"1"]),
        ([("/abs/d", b"1"), ("a.png", HARD, "/abs/d")], [b"1"]),
        ([("d", b"1"), ("a.png", HARD, "d"), ("d", b"2")], [b"1", b"2"]),
    ],
)
def test_chains_folders_and_several_of_one_name(tmp_path, name, members, good):
    if name == "x.zip" and any(HARD in member for member in members):
        pytest.skip("zip has none")
    found, bad, _ = contents(make(tmp_path / name, *members))
    assert bad == {}
    assert list(found.values()) == [good]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("a.png", SOFT, "/etc/passwd")], "outside of the archive"),
        ([("a.png", SOFT, "../a")], "outside of the archive"),
        ([("in/a.png", SOFT, "../../x/d"), ("x/d", b"1")], "outside of the archive"),
        ([("a.png", SOFT, "b"), ("b", SOFT, "/etc/passwd")], "outside of the archive"),
        ([("a.png", SOFT, "b/d"), ("b", SOFT, "..")], "outside of the archive"),
        ([("a.png", SOFT, "a.png")], "in a circle"),
        ([("a.png", SOFT, "b"), ("b", SOFT, "c"), ("c", SOFT, "b")], "in a circle"),
        ([("a.png", SOFT, "a.png/x")], "more than 256 others"),
        ([("a.png", SOFT, "d")], "which the archive does not have"),
        ([("a.png", HARD, "d")], "which the archive does not have"),
        ([("a.png", HARD, "../d"), ("d", b"1")], "outside of the archive"),
        ([("a.png", HARD, "a.png")], "in a circle"),
        ([("a.png", SOFT, "d"), *[("d", b"%d" % number) for number in range(17)]], "the limit is 16"),
        ([("a.png", SOFT, "0"), *[(f"{n}", SOFT, f"{n + 1}") for n in range(400)], ("400", b"1")], "more than 256"),
    ],
)
def test_what_leads_nowhere_is_an_error(tmp_path, name, members, why):
    if name == "x.zip" and any(HARD in member for member in members):
        pytest.skip("zip has none")
    found, bad, _ = contents(make(tmp_path / name, *members))
    assert found == {}
    ((said, *more),) = bad.values()
    assert why in said
    assert more == []


@pytest.mark.parametrize("name", ARCHIVES)
def test_links_to_folders_and_under_other_names_are_counted(tmp_path, name):
    members = [
        ("a.png", SOFT, "in"),
        ("in/x.png", b"1"),
        ("b.txt", SOFT, "in/x.png"),
        ("empty",),
        ("c.png", SOFT, "empty"),
    ]
    found, bad, skipped = contents(make(tmp_path / name, *members))
    assert (found, bad) == ({"in/x.png": [b"1"]}, {})
    assert skipped == {"link": 2, "other type": 1}


@pytest.mark.parametrize("name", [*MODES])
def test_content_that_is_not_wanted_is_not_read_behind_links_either(tmp_path, name):
    path = make(tmp_path / name, ("d", b"1"), ("a.png", HARD, "d"), ("b.png", SOFT, "d"))
    assert contents(path, wanted=lambda entry: "a.png" in entry.path)[0] == {"a.png": [b"1"], "b.png": [b"1"]}


@pytest.mark.parametrize("kind", [b"Z", b"\x80", b"7", b"\0"])
def test_members_of_kinds_that_nobody_knows_are_unpacked_as_files(tmp_path, kind):
    for name in MODES:
        with tarfile.open(tmp_path / name, MODES[name]) as archive:
            info = tarfile.TarInfo("a.png")
            info.size, info.type = 3, kind
            archive.addfile(info, io.BytesIO(b"abc"))
        assert contents(tmp_path / name)[0] == {"a.png": [b"abc"]}


def test_a_picture_that_is_marked_as_a_link_is_a_picture(tmp_path):
    """Unpackers that know no links, as Python's own, write the content under the name."""
    data = draw(tmp_path / "t.png", "triangle", size=48).read_bytes()
    assert len(data) < 4096
    path = make(tmp_path / "x.zip", ("a.png", SOFT, data), ("b.png", SOFT, data + bytes(5000)))
    assert contents(path)[0] == {"a.png": [data], "b.png": [data + bytes(5000)]}


def test_an_archive_that_is_cut_off_still_says_what_its_links_showed(tmp_path):
    path = make(tmp_path / "x.tar", ("d", b"1" * 600), ("a.png", HARD, "d"), ("b.txt", b"2" * 3000))
    path.write_bytes(path.read_bytes()[:3500])
    found, bad, _ = contents(path)
    assert found["a.png"] == [b"1" * 600]
    assert any("read to its end" in said for errors in bad.values() for said in errors)


def test_linked_files_of_folders_are_looked_at_under_their_own_names(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "payload.dat").write_bytes(b"1")
    (tmp_path / "in/soft.png").symlink_to("../payload.dat")
    (tmp_path / "in/hard.png").hardlink_to(tmp_path / "payload.dat")
    entries = {entry.path: entry for entry in parse_sources([str(tmp_path / "in")]).entries()}
    assert sorted(entries) == [str(tmp_path / "in/hard.png"), str(tmp_path / "in/soft.png")]
    for entry in entries.values():
        with entry.open() as file:
            assert file.read() == b"1"
