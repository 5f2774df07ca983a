"""Archives that are damaged, cut off, encrypted, bombs: errors, and nothing that was there is left out."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
from dataclasses import replace

import pytest
from test_scan_sources_archives import PICTURES, contents, make_tar, make_zip, read

from nsfw_guard import ImageError
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.scan import tars
from nsfw_guard.scan.decode import decode
from nsfw_guard.scan.sources import open_path, parse_sources


def test_what_is_no_archive_is_an_error(tmp_path):
    for name in ("x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.parquet"):
        for data in (b"", b"x", b"not an archive " * 100, b"\x1f\x8b", b"PK\x03\x04" + bytes(50)):
            (tmp_path / name).write_bytes(data)
            good, bad, _ = contents(tmp_path / name)
            assert not good
            assert list(bad) == [name]
            assert "that can be read" in bad[name]


def test_a_zip_that_is_cut_off_is_an_error(tmp_path):
    data = make_zip(tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data[:-30])
    good, bad, _ = contents(tmp_path / "x.zip")
    assert (good, bad) == ({}, {"x.zip": "is no zip archive that can be read: File is not a zip file"})


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("packed", ["plain", "gz", "bz2", "xz"])
def test_of_a_tar_that_is_cut_off_the_first_members_come_and_an_error(packed, share, tmp_path):
    members = {f"{index}.jpg": os.urandom(5000) for index in range(10)}
    data = make_tar(tmp_path / "x.tar", members).read_bytes()
    data = data[: 10 * (512 + 5120)]  # without what tars are filled up with
    data = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packed](data)
    path = tmp_path / f"cut.tar{'' if packed == 'plain' else '.' + packed}"
    path.write_bytes(data[: int(len(data) * share)])
    good, failed, bad = {}, [], {}
    for entry in parse_sources([str(path)]).entries():
        if entry.error is not None:
            bad[entry.path] = entry.error
            continue
        try:
            good[entry.path.split("://")[1].split("::")[0]] = read(entry)
        except OSError:
            failed.append(entry.path)
    assert good == {name: members[name] for name in good}
    assert len(failed) <= 1
    assert list(bad) == [str(path)]
    assert "is no tar archive that can be read to its end" in bad[str(path)]
    if packed == "plain":
        assert len(good) == int(share * 10)


def test_a_damaged_header_in_the_middle_of_a_tar_is_an_error(tmp_path):
    data = bytearray(make_tar(tmp_path / "x.tar").read_bytes())
    data[2 * 1024 : 2 * 1024 + 100] = b"\xff" * 100
    (tmp_path / "x.tar").write_bytes(data)
    given = list(parse_sources([str(tmp_path / "x.tar")]).entries())
    assert [entry.error is None for entry in given] == [True, True, False]
    assert "a header is damaged" in given[-1].error
    assert read(replace(given[1], offset=None)) == PICTURES["1.jpg"]


def test_a_tar_without_its_end_mark_is_an_error(tmp_path):
    data = make_tar(tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: 5 * 1024])
    good, bad, _ = contents(tmp_path / "x.tar")
    assert len(good) == 5
    assert "its end is missing" in bad["x.tar"]


def test_links_devices_and_sparse_members(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("sparse.jpg")
        info.size = 4
        info.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,4",
            "GNU.sparse.size": "9",
        }
        archive.addfile(info, io.BytesIO(b"data"))
    good, bad, skipped = contents(tmp_path / "x.tar")
    assert good == {}
    assert skipped == {"special file": 2}
    assert bad["x.tar/2.jpg"] == "is a link to '/etc/passwd', outside of the archive"
    assert bad["x.tar/1.jpg"] == "is a link to '/etc/passwd', which the archive does not have"
    assert "stored as a sparse file" in bad["x.tar/sparse.jpg"]


def test_an_encrypted_member_is_an_error(tmp_path):
    data = bytearray(make_zip(tmp_path / "x.zip", {"a.jpg": b"data", "b.jpg": b"data"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    good, bad, _ = contents(tmp_path / "x.zip")
    assert list(good) == ["x.zip/b.jpg"]
    assert bad == {"x.zip/a.jpg": "is encrypted"}


def test_a_damaged_member_is_an_error_when_it_is_read(tmp_path):
    data = bytearray(make_zip(tmp_path / "x.zip", compression=zipfile.ZIP_STORED).read_bytes())
    data[data.index(PICTURES["2.jpg"]) + 50] ^= 255
    (tmp_path / "x.zip").write_bytes(data)
    failed = []
    for entry in parse_sources([str(tmp_path / "x.zip")]).entries():
        try:
            read(entry)
        except OSError as error:
            failed.append((entry.path.split("::")[0], str(error)))
    assert failed == [("zip://2.jpg", "The archive is damaged: Bad CRC-32 for file '2.jpg'")]


def test_an_unknown_compression_is_an_error(tmp_path):
    data = make_zip(tmp_path / "x.zip", {"a.jpg": b"data"}).read_bytes()
    at = data.index(b"PK\x01\x02") + 10
    data = data[:8] + struct.pack("<H", 77) + data[10:at] + struct.pack("<H", 77) + data[at + 2 :]
    (tmp_path / "x.zip").write_bytes(data)
    (entry,) = parse_sources([str(tmp_path / "x.zip")]).entries()
    with pytest.raises(OSError, match=r"a\.jpg in .* cannot be opened: That compression method is not supported"):
        entry.open()


def test_a_bomb_is_not_unpacked_beyond_the_limit(tmp_path):
    make_zip(tmp_path / "x.zip", {"bomb.png": b"\x89PNG\r\n\x1a\n" + bytes(2**26)})
    assert (tmp_path / "x.zip").stat().st_size < 2**17
    (entry,) = parse_sources([str(tmp_path / "x.zip")]).entries()
    with entry.open() as file:
        with pytest.raises(ImageError, match="bomb has more than 1048576 bytes"):
            decode(file, DecodeSettings(max_bytes=2**20), name="bomb")
        assert file.tell() <= 2**21


def test_of_a_compressed_tar_only_what_is_wanted_is_read(tmp_path, monkeypatch):
    make_tar(tmp_path / "x.tar.gz", mode="w:gz")
    given = parse_sources([str(tmp_path / "x.tar.gz")])
    entries = list(given.entries(lambda entry: "3.jpg" in entry.path))
    assert [entry.data for entry in entries] == [None, None, None, PICTURES["3.jpg"], None]
    make_tar(tmp_path / "x.tar")
    plain = list(parse_sources([str(tmp_path / "x.tar")]).entries())
    assert all(entry.data is None and entry.offset is not None for entry in plain)


def test_a_member_of_a_compressed_tar_that_is_too_large_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MOST_BYTES", 102)
    make_tar(tmp_path / "x.tar.gz", mode="w:gz")
    good, bad, _ = contents(tmp_path / "x.tar.gz")
    assert len(good) == 3
    assert all("has more than 102 bytes" in error for error in bad.values())
    with pytest.raises(OSError, match="more than 102 bytes"):
        open_path(f"tar://4.jpg::{tmp_path}/x.tar.gz")


def test_tars_packed_with_zstd_are_read_or_say_what_to_do(tmp_path):
    (tmp_path / "x.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    (entry,) = parse_sources([str(tmp_path / "x.tar.zst")]).entries()
    assert "zstd" in entry.error


def test_a_member_that_is_not_there(tmp_path):
    for path in (make_zip(tmp_path / "x.zip"), make_tar(tmp_path / "x.tar")):
        scheme = path.suffix[1:]
        for name in ("no.jpg", "1.jpg#2"):
            with pytest.raises(FileNotFoundError):
                open_path(f"{scheme}://{name}::{path}")
        path.unlink()
        with pytest.raises(FileNotFoundError):
            open_path(f"{scheme}://1.jpg::{path}")
