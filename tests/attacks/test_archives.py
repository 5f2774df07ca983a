"""Archives that would show a flagged picture to whoever unpacks them: none of them is scanned as clean."""

import io
import stat
import tarfile
import zipfile

import pytest
import torch
from PIL import Image

from nsfw_guard.demo.shapes import draw
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources

pytestmark = pytest.mark.usefixtures("one_thread")

FILE, HARD, SOFT = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


def png(shape):
    pixels = (draw(shape, "red", "white") * 255).round().to(torch.uint8).movedim(0, -1)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


T, C = png("triangle"), png("circle")

# Name → members: name, kind, and content or target.
ARCHIVES = {
    "a hard link": [("payload.dat", FILE, T), ("cute.png", HARD, "payload.dat")],
    "a symbolic link": [("cute.png", SOFT, "payload.dat"), ("payload.dat", FILE, T)],
    "hard links in a chain": [("a", FILE, T), ("b", HARD, "a"), ("c", HARD, "b"), ("cute.png", HARD, "c")],
    "a link to a hard link": [("a", FILE, T), ("b", HARD, "a"), ("cute.png", SOFT, "b")],
    "a link through a linked folder": [("in/a", FILE, T), ("way", SOFT, "in"), ("cute.png", SOFT, "way/a")],
    "a link below a linked folder": [("way", SOFT, "in/deep"), ("way/cute.png", SOFT, "../a"), ("in/a", FILE, T)],
    "a link to a name with dots": [("./in/../a", FILE, T), ("cute.png", HARD, "./a")],
    "a hard link to the first of two": [("a", FILE, T), ("cute.png", HARD, "a"), ("a", FILE, C)],
    "a link to the last of two": [("a", FILE, C), ("cute.png", SOFT, "a"), ("a", FILE, T)],
    "a link over a picture": [("cute.png", FILE, C), ("a", FILE, T), ("cute.png", SOFT, "a")],
    "a link before a picture": [("a", FILE, T), ("cute.png", SOFT, "a"), ("cute.png", FILE, C)],
    "a link that is replaced": [("a", FILE, T), ("b", FILE, C), ("cute.png", SOFT, "a"), ("cute.png", SOFT, "b")],
    "a link out of the archive": [("payload.dat", FILE, T), ("cute.png", SOFT, "../x/payload.dat")],
    "a link to a file of this machine": [("cute.png", SOFT, "/var/payload.dat")],
    "a circle": [("cute.png", SOFT, "b"), ("b", SOFT, "cute.png"), ("c.png", FILE, C)],
    "a link to nothing": [("cute.png", HARD, "payload"), ("c.png", FILE, C)],
    "a kind that nobody knows": [("cute.png", b"Z", T), ("c.png", FILE, C)],
    "a contiguous file": [("cute.png", tarfile.CONTTYPE, T)],
    "a picture as the target of a link": [("cute.png", SOFT, T)],
    "a large picture as the target of a link": [("cute.png", SOFT, T + bytes(5000))],
}


def make_tar(path, members, mode):
    with tarfile.open(path, mode) as archive:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(what, bytes):
                info.size = len(what)
            else:
                info.linkname = what
            archive.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind, what in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, ((stat.S_IFLNK if kind == SOFT else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, what)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "zip"])
@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_archive_that_shows_it_is_clean(demo, tmp_path, name, ending):
    members, path = ARCHIVES[name], tmp_path / f"in/x.{ending}"
    path.parent.mkdir()
    if ending == "zip":
        if any(kind not in (FILE, SOFT) for _, kind, _ in members):
            pytest.skip("zip has no such members")
        make_zip(path, members)
    else:
        if any(kind == SOFT and isinstance(what, bytes) for _, kind, what in members):
            pytest.skip("links in tar have no content")
        make_tar(path, members, f"w:{ending.removeprefix('tar').strip('.')}")
    for archives in (False, True):  # named, and in a folder
        sources = parse_sources([str(path.parent if archives else path)], archives=archives)
        summary = run_scan(demo, sources, tmp_path / f"out-{archives}", ScanSettings(workers=2))
        assert not summary.is_clean
