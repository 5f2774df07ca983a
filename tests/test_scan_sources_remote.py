"""URLs: a real web server that misbehaves, and fsspec's own memory as an object store."""

import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nsfw_guard import SettingError
from nsfw_guard.scan.sources import is_local_file, open_path, parse_sources

fsspec = pytest.importorskip("fsspec")

DATA = os.urandom(300_000)


def packed(kind):
    file = io.BytesIO()
    members = {f"{index}.jpg": bytes([index]) * 50 for index in range(3)}
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers without ranges, as Python's own server does; some paths misbehave."""

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        if path == "/missing.jpg":
            return self.send_error(404)
        if path == "/broken.jpg":
            return self.send_error(500)
        if path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/a.jpg")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = DATA if path.endswith(".jpg") else packed(path.partition(".")[2])
        self.send_response(200)
        if path != "/unsized.jpg":
            self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"v1"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if path == "/cut.jpg" else data)
        return None

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def web():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def read(entry):
    with entry.open() as file:
        return file.read()


@pytest.mark.parametrize("name", ["a.jpg", "unsized.jpg", "moved.jpg", "a.jpg?size=large&x=[1]"])
def test_a_file_on_a_web_server(name, web):
    given = parse_sources([f"{web}/{name}"])
    (entry,) = given.entries()
    assert entry.path == f"{web}/{name}"
    assert (entry.error, entry.etag, entry.mtime) == (None, "v1", 1445412480.0)
    assert entry.size == (None if name == "unsized.jpg" else len(DATA))
    assert not is_local_file(entry.path)
    assert set(given.relative_to_source(entry.path)) & set('?*:"<>|') == set()
    with entry.open() as file:
        assert file.read(10) == DATA[:10]
        assert file.seek(0) == 0
        assert file.read() == DATA


def test_what_a_web_server_does_not_have(web):
    entries = {
        entry.path: entry.error for entry in parse_sources([f"{web}/missing.jpg", f"{web}/broken.jpg"]).entries()
    }
    assert entries[f"{web}/missing.jpg"] == "cannot be opened: not found"
    assert entries[f"{web}/broken.jpg"].startswith("cannot be opened: 500 Internal Server Error")
    for url in entries:
        with pytest.raises(OSError):
            open_path(url)


def test_a_connection_that_breaks_is_an_error(web):
    (entry,) = parse_sources([f"{web}/cut.jpg"]).entries()
    with pytest.raises(OSError, match="cut.jpg cannot be read"):
        read(entry)


def test_nobody_answers():
    (entry,) = parse_sources(["http://127.0.0.1:9/a.jpg"]).entries()
    assert "onnect" in entry.error
    assert "\n" not in entry.error


def test_a_stream_without_end_is_an_error(web, monkeypatch):
    from nsfw_guard.scan import remote

    monkeypatch.setattr(remote, "MOST_BYTES", 1000)
    with pytest.raises(OSError, match="has more than 1000 bytes"):
        open_path(f"{web}/unsized.jpg")


def test_numbered_urls_and_lists_of_urls(web, tmp_path):
    given = parse_sources([f"{web}/{{1..3}}.jpg"])
    assert [entry.path for entry in given.entries()] == [f"{web}/{index}.jpg" for index in (1, 2, 3)]
    (tmp_path / "list").write_text(f"{web}/a.jpg\n{web}/missing.jpg\n")
    entries = list(parse_sources([], lists=[str(tmp_path / "list")]).entries())
    assert [entry.error for entry in entries] == [None, "cannot be opened: not found"]


def test_an_archive_with_a_query_behind_its_name(web):
    (entry, *_) = parse_sources([f"{web}/x.zip?token=a&b=1"]).entries()
    assert entry.path == f"zip://0.jpg::{web}/x.zip?token=a&b=1"
    assert read(entry) == bytes(50)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_on_a_web_server(kind, web):
    given = parse_sources([f"{web}/x.{kind}"])
    entries = list(given.entries())
    assert [entry.path for entry in entries] == [f"{kind[:3]}://{index}.jpg::{web}/x.{kind}" for index in range(3)]
    assert [read(entry) for entry in entries] == [bytes([index]) * 50 for index in range(3)]
    assert given.relative_to_source(entries[0].path) == f"x.{kind}/0.jpg"
    with open_path(entries[2].path) as file:
        assert file.read() == bytes([2]) * 50


@pytest.fixture
def store():
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("/b/1.jpg", "/b/2.txt", "/b/deep/3.png", "/b/deep/er/4.jpg", "/b/odd*[1].jpg"):
        system.pipe(name, name.encode())
    system.pipe("/b/x.zip", packed("zip"))
    yield "memory://b"
    system.store.clear()


def places(source, **options):
    given = parse_sources([source], **options)
    good = {}
    for entry in given.entries():
        assert entry.error is None, entry.error
        good[given.relative_to_source(entry.path)] = read(entry)
    return sorted(good), dict(given.skipped)


def test_a_folder_of_an_object_store(store):
    names, skipped = places(store)
    assert names == ["1.jpg", "deep/3.png", "deep/er/4.jpg", "odd_[1].jpg"]
    assert skipped == {"other type": 1, "archive": 1}
    assert len(places(store, archives=True)[0]) == 7
    (entry, *_) = parse_sources([f"{store}/1.jpg"]).entries()
    assert read(entry) == b"/b/1.jpg"
    assert entry.size == 8 and entry.mtime is not None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["1.jpg", "odd_[1].jpg"]),
        ("**/*.jpg", ["1.jpg", "deep/er/4.jpg", "odd_[1].jpg"]),
        ("*/*.png", ["deep/3.png"]),
        ("{1,deep/er/4}.jpg", ["1.jpg", "deep/er/4.jpg"]),
        ("*.zip", ["x.zip/0.jpg", "x.zip/1.jpg", "x.zip/2.jpg"]),
        ("deep", ["3.png", "er/4.jpg"]),
    ],
)
def test_globs_of_an_object_store(pattern, expected, store):
    assert places(f"{store}/{pattern}")[0] == expected


def test_what_an_object_store_does_not_have(store):
    for source, message in (("no.jpg", "not found"), ("no/*.jpg", "folder cannot be read"), ("*.gif", "matches no")):
        (entry, *_) = parse_sources([f"{store}/{source}"]).entries()
        assert message in entry.error


def test_a_folder_that_fails_is_an_error_and_the_rest_goes_on(store, monkeypatch):
    listing = fsspec.implementations.memory.MemoryFileSystem.ls

    def refuse(self, path, **options):
        if path.endswith("deep"):
            raise PermissionError(13, "Access Denied")
        return listing(self, path, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "ls", refuse)
    entries = list(parse_sources([store]).entries())
    assert [entry.error for entry in entries if entry.error] == ["folder cannot be read: Access Denied"]
    assert sum(entry.error is None for entry in entries) == 2


def test_an_object_that_stands_for_its_folder_is_passed_over(store, monkeypatch):
    listing = fsspec.implementations.memory.MemoryFileSystem.ls
    seen = []

    def with_marker(self, path, **options):
        seen.append(path)
        assert len(seen) < 20
        return [{"name": f"{path}/", "size": 0, "type": "directory"}, *listing(self, path, **options)]

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "ls", with_marker)
    assert len(places(store)[0]) == 4


def test_large_files_are_not_read_at_once(store, monkeypatch):
    from nsfw_guard.scan import remote

    monkeypatch.setattr(remote, "_AT_ONCE", 4)
    with open_path(f"{store}/1.jpg") as file:
        assert file.seek(3) == 3
        assert file.read() == b"1.jpg"


def test_tables_in_an_object_store(store):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [b"a", b"bb"], "url": ["1.jpg", "memory://b/1.jpg"]}), file)
    fsspec.filesystem("memory").pipe("/b/t.parquet", file.getvalue())
    entries = list(parse_sources([f"{store}/t.parquet"], column="image").entries())
    assert [read(entry) for entry in entries] == [b"a", b"bb"]
    with open_path(entries[1].path) as opened:
        assert opened.read() == b"bb"
    assert [read(entry) for entry in parse_sources([f"{store}/t.parquet"], column="url").entries()] == [b"/b/1.jpg"] * 2


def test_files_by_url(tmp_path):
    (tmp_path / "a b.jpg").write_bytes(b"x")
    (entry,) = parse_sources([f"file://{tmp_path}/a%20b.jpg"]).entries()
    assert entry.path == str(tmp_path / "a b.jpg")


def test_protocols_that_cannot_be_opened_are_refused_at_once(monkeypatch):
    with pytest.raises(SettingError, match="unknown protocol nowhere"):
        parse_sources(["nowhere://x/y.jpg"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SettingError, match="s3://b/x needs a package that is not installed: pip install s3fs"):
        parse_sources(["s3://b/x"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SettingError, match=r"needs fsspec: pip install 'nsfw-guard\[scan\]'"):
        parse_sources(["https://host/a.jpg"])


def test_files_of_this_machine_need_none_of_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("b.jpg", b"y")
    code = f"""
import sys
for name in ("fsspec", "pyarrow", "pyarrow.parquet", "aiohttp", "av", "pillow_heif"):
    sys.modules[name] = None
from nsfw_guard.scan.sources import parse_sources
import nsfw_guard.scan.decode
print([entry.open().read() for entry in parse_sources([{str(tmp_path)!r}], archives=True).entries()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(eval(done.stdout)) == [b"x", b"y"]
