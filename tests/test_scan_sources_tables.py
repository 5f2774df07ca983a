"""Pictures in Parquet tables."""

import io
from dataclasses import replace

import pytest

from nsfw_guard import SettingError
from nsfw_guard.scan.sources import open_path, parse_sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [bytes([65 + index]) * (10 + index) for index in range(50)]
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def save(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def listed(path, **options):
    return list(parse_sources([str(path)], **options).entries())


def read(entry):
    with entry.open() as file:
        return file.read()


def test_binary_columns_are_found_and_rows_can_be_opened_alone(tmp_path):
    path = save(tmp_path / "t.parquet", id=list(range(50)), image=ROWS, note=["x"] * 50)
    entries = listed(path)
    assert [entry.path for entry in entries] == [f"parquet://image/{row}::{path}" for row in range(50)]
    assert [entry.size for entry in entries] == [len(row) for row in ROWS]
    assert [read(entry) for entry in entries] == ROWS
    assert [read(replace(entry, data=None)) for entry in entries[::7]] == ROWS[::7]
    given = parse_sources([str(path)])
    assert given.relative_to_source(entries[3].path) == "t.parquet/image/3"


def test_the_picture_columns_of_datasets(tmp_path):
    values = [{"bytes": row, "path": f"{index}.jpg"} for index, row in enumerate(ROWS)]
    path = save(tmp_path / "t.parquet", image=pa.array(values, HF), label=[1] * 50)
    entries = listed(path)
    assert [read(entry) for entry in entries] == ROWS
    assert read(replace(entries[20], data=None)) == ROWS[20]


def test_several_columns_and_one_of_them(tmp_path):
    path = save(tmp_path / "t.parquet", left=ROWS, right=pa.array(ROWS[::-1], pa.large_binary()))
    assert len(listed(path)) == 100
    only = listed(path, column="right")
    assert [read(entry) for entry in only] == ROWS[::-1]
    assert all("parquet://right/" in entry.path for entry in only)


@pytest.mark.parametrize("name", ["a b", "a/b", "a::b", "a%2Fb", "a#1", "ü", "a.b"])
def test_odd_names_of_columns(name, tmp_path):
    path = save(tmp_path / "t.parquet", **{name: ROWS})
    entries = listed(path)
    assert [read(replace(entry, data=None)) for entry in entries[:2]] == ROWS[:2]
    assert listed(path, column=name) == entries


def test_lists_of_pictures(tmp_path):
    values = pa.array(
        [[{"bytes": b"a", "path": None}, {"bytes": b"bb", "path": None}], [], None, [{"bytes": b"c"}]], pa.list_(HF)
    )
    entries = listed(save(tmp_path / "t.parquet", pages=values))
    good = {entry.path.split("::")[0]: read(replace(entry, data=None)) for entry in entries if entry.error is None}
    assert good == {
        "parquet://pages/0/0": b"a", "parquet://pages/0/1": b"bb", "parquet://pages/3/0": b"c",
    }  # fmt: skip
    assert [entry.error for entry in entries if entry.error] == [
        "is null; expected bytes, a struct with bytes, a path or a URL"
    ]


def test_nulls_are_errors(tmp_path):
    values = [{"bytes": None, "path": None}, None, {"bytes": b"", "path": None}]
    path = save(tmp_path / "t.parquet", image=pa.array(values, HF), raw=pa.array([None, b"x", b"y"], pa.binary()))
    errors = {entry.path.split("::")[0]: entry.error for entry in listed(path) if entry.error}
    assert list(errors) == ["parquet://image/0", "parquet://image/1", "parquet://raw/0"]
    with pytest.raises(FileNotFoundError):
        open_path(f"parquet://raw/0::{path}")


def test_a_column_of_paths(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"a")
    where = ["pictures/a.jpg", str(tmp_path / "pictures" / "a.jpg"), "pictures/no.jpg", None]
    path = save(tmp_path / "t.parquet", file=where, other=ROWS[:4])
    entries = listed(path, column="file")
    assert [entry.path for entry in entries[:2]] == [str(tmp_path / "pictures" / "a.jpg")] * 2
    assert [read(entry) for entry in entries[:2]] == [b"a", b"a"]
    assert entries[2].error == "cannot be opened: No such file or directory"
    assert "is null" in entries[3].error


def test_a_picture_that_is_only_named_in_a_struct(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    path = save(tmp_path / "t.parquet", image=pa.array([{"bytes": None, "path": "a.jpg"}], HF))
    (entry,) = listed(path)
    assert (entry.path, read(entry)) == (str(tmp_path / "a.jpg"), b"a")


def test_columns_that_hold_no_pictures(tmp_path):
    path = save(tmp_path / "t.parquet", id=[1, 2], text=["a", "b"])
    (entry,) = listed(path)
    assert entry.error == (
        "is a table in which no column holds pictures; name one of paths or URLs with --column: id, text"
    )
    (entry,) = listed(path, column="image")
    assert entry.error == "is a table without a column image; there are: id, text"
    assert ["is a int" in entry.error for entry in listed(path, column="id")] == [True, True]


def test_empty_tables(tmp_path):
    assert listed(save(tmp_path / "t.parquet", image=pa.array([], pa.binary()))) == []


def test_only_what_is_wanted_is_handed_on(tmp_path):
    path = save(tmp_path / "t.parquet", image=ROWS)
    entries = list(parse_sources([str(path)]).entries(lambda entry: entry.path.startswith("parquet://image/7:")))
    assert [index for index, entry in enumerate(entries) if entry.data is not None] == [7]
    assert read(entries[8]) == ROWS[8]


def test_a_changed_table_is_another_version(tmp_path):
    before = {entry.etag for entry in listed(save(tmp_path / "t.parquet", image=ROWS))}
    after = {entry.etag for entry in listed(save(tmp_path / "t.parquet", image=ROWS[:-1] + [b"longer than before"]))}
    assert len(before) == len(after) == 1
    assert before != after


def test_a_damaged_table_gives_what_can_be_read_and_an_error(tmp_path):
    path = save(tmp_path / "t.parquet", image=[bytes([index]) * 5000 for index in range(50)])
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 3000] = bytes(3000)
    path.write_bytes(data)
    entries = listed(path)
    assert entries[-1].path == str(path)
    assert "is no Parquet table that can be read to its end" in entries[-1].error
    assert "\n" not in entries[-1].error


@pytest.mark.parametrize("place", ["image/50", "other/1", "image/x", "image/0/0", "image"])
def test_values_that_are_not_there(place, tmp_path):
    path = save(tmp_path / "t.parquet", image=ROWS)
    with pytest.raises(OSError, match=r"t\.parquet"):
        open_path(f"parquet://{place}::{path}")


def test_one_value_is_opened_without_reading_the_whole_table(tmp_path, monkeypatch):
    from nsfw_guard.scan import tables

    rows = [bytes([index]) * 100_000 for index in range(40)]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": rows, "other": rows}), path, row_group_size=10, compression="none", use_dictionary=False
    )
    reads = []

    class Watched(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            reads.append(len(data))
            return data

    monkeypatch.setattr(tables, "open_outer", Watched)
    with open_path(f"parquet://image/25::{path}") as file:
        assert file.read() == rows[25]
    assert 100_000 < sum(reads) < path.stat().st_size // 4


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "t.parquet", image=ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(SettingError, match="Parquet needs pyarrow: pip install"):
        parse_sources([str(path)])
