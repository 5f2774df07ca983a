"""What a report counts and picks: the last row of every path, folders, messages, the best of many."""

import random
import re
from collections import Counter

import pytest
from scan_report_samples import failed, row, write_scan

from nsfw_guard import SettingError
from nsfw_guard.scan.parts import FOLDER, write_part
from nsfw_guard.scan.places import common as common_root
from nsfw_guard.scan.report.describe import headline_of, percent
from nsfw_guard.scan.report.folders import Folders, folder_of, name_of
from nsfw_guard.scan.report.gallery import PATHS_LISTED, Best
from nsfw_guard.scan.report.latest import latest_rows
from nsfw_guard.scan.report.manifest import read_manifest
from nsfw_guard.scan.report.tally import MESSAGES, SLOWEST, Tally


def tally(rows, limit=10, misses=10):
    counted = Tally(Best(limit), Best(misses))
    for one in rows:
        counted.add(one)
    return counted


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_of_each_path_the_last_row_counts(tmp_path, kind):
    rows = [
        row(f"/d/{name}.jpg", score) for name, score in [("a", 0.9), ("b", 0.2), ("a", 0.1), ("c", 0.3), ("a", 0.7)]
    ]
    out = write_scan(tmp_path / "scan", rows, kind=kind, per_part=2)
    assert [(found.path, found.score) for found in latest_rows(out)] == [
        ("/d/b.jpg", 0.2),
        ("/d/c.jpg", 0.3),
        ("/d/a.jpg", 0.7),
    ]


def test_the_last_rows_of_many_are_those_that_a_dict_keeps(tmp_path):
    chance = random.Random(0)
    rows = [row(f"/d/{chance.randrange(900)}\ud800é.jpg", chance.random()) for _ in range(3000)]
    out = write_scan(tmp_path / "scan", rows, per_part=137)
    expected = {one.path: one.score for one in rows}
    found = [(one.path, one.score) for one in latest_rows(out)]
    assert dict(found) == expected
    assert len(found) == len(expected)


def test_a_scan_without_parts_has_no_rows(tmp_path):
    assert list(latest_rows(write_scan(tmp_path / "scan", []))) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part-000001.jsonl", b'{"path": "/a.jpg"}\n{"path": "/b'),
        ("part-000001.jsonl", b'{"score": 0.5}\n'),
        ("part-000001.jsonl", b"[1]\n"),
        ("part-000001.jsonl", b'{"path": 5}\n'),
        ("part-000001.csv", b"path,score\n/a.jpg,high\n"),
        ("part-000001.parquet", b"PAR1 and nothing else"),
    ],
)
def test_a_damaged_part_is_an_error_and_not_left_out(tmp_path, name, content):
    out = write_scan(tmp_path / "scan", [row("/a.jpg")])
    (out / FOLDER / name).write_bytes(content)
    with pytest.raises(SettingError, match=rf"{name} cannot be read \(.+\)\. Delete it and run the same scan again"):
        list(latest_rows(out))


def test_a_part_that_grows_while_it_is_read_is_an_error(tmp_path):
    out = write_scan(tmp_path / "scan", [row("/a.jpg"), row("/b.jpg")])

    def grow(what, done, total):
        if done == 1:
            write_part(out / FOLDER / "part-000000.jsonl", [row(f"/{name}.jpg") for name in "abc"], [])

    with pytest.raises(SettingError, match="changed while it was read; write the report again"):
        list(latest_rows(out, grow))


def test_everything_is_counted_once():
    rows = [row(f"/d/{index}.jpg", index / 10, size=100) for index in range(10)]
    rows += [failed("/d/x.jpg", "no picture"), row("/d/y.jpg", None)]  # what says nothing was not checked either
    rows += [row("/d/long.png", 1.0, reason="too_long", labels={}), row("/d/v.mp4", 0.2, kind="video")]
    found = tally(rows)
    assert (found.files, found.passed, found.flagged, found.failed, found.size) == (14, 6, 6, 2, 1000)
    assert found.kinds == {"image": 11, "video": 1}
    assert found.reasons == {"score": 5, "too_long": 1}
    assert found.labels == {"circle": [7, 1], "triangle": [4, 4]}
    assert sum(found.passed_bins) == 6
    assert [index for index, count in enumerate(found.flagged_bins) if count] == [25, 30, 35, 40, 45]
    assert found.without_score == 1
    assert headline_of(found) == "14 files · 6 flagged (50 %) · 2 could not be read"


@pytest.mark.parametrize(("score", "index"), [(0.0, 0), (0.0199, 0), (0.02, 1), (0.9999, 49), (1.0, 49)])
def test_the_bins_are_fifty_from_0_to_1(score, index):
    found = tally([row("/a.jpg", score)])
    bins = [a + b for a, b in zip(found.passed_bins, found.flagged_bins, strict=True)]
    assert (len(bins), bins[index], sum(bins)) == (50, 1, 1)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, 7.0])
def test_a_score_that_is_none_is_no_bar_and_comes_first(score):
    strange = row("/strange.jpg", 0.9)
    found = tally([row("/a.jpg", 0.8), type(strange)(**{**vars(strange), "score": score})])
    assert sum(found.flagged_bins) == 1
    assert [item.row.path for item in found.shown()[0]] == ["/strange.jpg", "/a.jpg"]


def test_messages_are_counted_without_the_file_that_they_name_and_not_without_end():
    rows = [failed(f"/d/{index}.jpg", f"/d/{index}.jpg is  broken\n") for index in range(30)]
    rows += [failed(f"/e/{index}.jpg", f"reason {index}") for index in range(3 * MESSAGES)]
    failures = tally(rows).failures
    assert (failures["… is broken"].files, failures["… is broken"].paths) == (30, [f"/d/{i}.jpg" for i in range(5)])
    assert len(failures) == MESSAGES + 1
    assert sum(failure.files for failure in failures.values()) == len(rows)


def test_the_slowest_are_the_slowest_and_duplicates_took_no_time():
    chance = random.Random(1)
    times = [chance.random() for _ in range(500)]
    found = tally([row(f"/{index}.jpg", 0.1, decode_ms=taken) for index, taken in enumerate([*times, 0.0])])
    assert [slow.decode_ms for slow in found.slowest()] == sorted(times, reverse=True)[:SLOWEST]
    assert tally([row("/a.jpg", 0.1, decode_ms=0.0)]).slowest() == []


def test_the_best_of_many_are_kept_with_all_their_copies():
    chance = random.Random(2)
    scores = {f"{content:064x}": chance.choice([0.1, 0.5, 0.9, chance.random()]) for content in range(2000)}
    found = [content for content in scores for _ in range(chance.choice([1, 1, 1, 30]))]
    chance.shuffle(found)
    best = Best(40)
    for number, content in enumerate(found):
        best.add(row(f"/{number}.jpg", scores[content], sha256=content))
        assert len(best._kept) <= 2 * 40 + 64
    copies = Counter(found)
    expected = sorted(scores, key=lambda content: (scores[content], content), reverse=True)[:40]
    assert [(item.row.sha256, item.copies) for item in best.items()] == [(name, copies[name]) for name in expected]
    assert all(len(item.paths) == min(item.copies, PATHS_LISTED) for item in best.items())


def test_contents_without_a_hash_are_told_apart_by_path():
    best = Best(5)
    for path in ("/a.jpg", "/b.jpg"):
        best.add(row(path, 0.9))
    assert [item.copies for item in best.items()] == [1, 1]


def test_none_can_be_asked_for():
    assert tally([row("/a.jpg", 0.9), row("/b.jpg", 0.1)], limit=0, misses=0).shown() == ([], [])


def test_what_is_flagged_somewhere_is_no_miss():
    found = tally([row("/a.jpg", 0.9, sha256="0" * 64), row("/b.jpg", 0.4, sha256="0" * 64)])
    flagged, misses = found.shown()
    assert [item.row.path for item in flagged] == ["/a.jpg"]
    assert misses == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/x/a.jpg", "/data/x"),
        ("/a.jpg", "/"),
        ("a.jpg", "."),
        ("/data/odd\\name.jpg", "/data"),
        ("C:\\data\\x\\a.jpg", "C:/data/x"),
        ("bytes:/data/caf%E9/a.jpg", "/data/caf\ufffd"),
        ("s3://bucket/x/a.jpg", "s3://bucket/x"),
        ("https://host/a.jpg", "https://host"),
        ("zip://x/y/a.jpg::/data/z.zip", "/data/z.zip/x/y"),
        ("zip://a.jpg::s3://bucket/z.zip", "s3://bucket/z.zip"),
        ("tar://a.jpg::zip://in/t.tar::/data/z.zip", "/data/z.zip/in/t.tar"),
        ("parquet://image/17::/data/t.parquet", "/data/t.parquet/image"),
        ("", "."),
        ("/data/a::b/c.jpg", "/data/a::b"),
    ],
)
def test_the_folder_of_a_path(path, name):
    assert name_of(folder_of(path)) == name


def test_too_many_folders_are_counted_in_those_above_them():
    folders = Folders(most=50)
    for top in range(10):
        for sub in range(30):
            folders.add(f"/d/{top}/{sub}/a.jpg", flagged=sub == 0, failed=sub == 1)
    assert folders.depth == 3
    assert {name_of(folder): counts for folder, counts in folders.counts.items()} == {
        f"/d/{top}": [30, 1, 1] for top in range(10)
    }


def test_even_one_flat_level_of_too_many_folders_is_bounded():
    folders = Folders(most=50)
    for number in range(500):
        folders.add(f"s3://bucket{number}/a.jpg", flagged=True, failed=False)
    assert folders.counts == {(): [500, 500, 0]}


def test_the_table_has_the_most_flagged_and_the_highest_rates_among_enough_files():
    folders = Folders()
    for name, files, flagged in [("few", 2, 2), ("rate", 30, 20), ("many", 5000, 40), ("big", 9000, 0), ("mid", 50, 1)]:
        for index in range(files):
            folders.add(f"/{name}/{index}.jpg", flagged=index < flagged, failed=False)
    assert [name_of(folder) for folder, _ in folders.worst(1)] == ["/many", "/rate", "/big"]


def test_the_root_that_all_folders_share():
    assert common_root([("", "a", "b"), ("", "a", "c", "d")]) == ("", "a")
    assert common_root([("", "a"), ("s3://x",)]) == ()
    assert common_root([]) == ()


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0 %"),
        (0, 9, "0 %"),
        (87, 12345, "0.7 %"),
        (1, 8000, "0.01 %"),
        (1, 10**6, "<0.01 %"),
        (999_999, 10**6, "99.9 %"),
        (7, 7, "100 %"),
    ],
)
def test_percent_makes_neither_nothing_of_something_nor_everything_of_nearly_everything(part, whole, text):
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged: it has no 'schema_version'. Scan again into another folder"),
        ('{"schema_version": true}', "its schema_version is True; expected 1"),
        ('{"schema_version": 2}', "newer nsfw_guard: schema 2, and this one knows 1. Update it"),
        ('{"schema_version": 0}', "older nsfw_guard: schema 0"),
    ],
)
def test_manifests_of_other_versions_and_damaged_ones_are_refused(tmp_path, text, said):
    (tmp_path / "scan.json").write_text(text)
    with pytest.raises(SettingError, match=re.escape(str(tmp_path))) as caught:
        read_manifest(tmp_path)
    assert said in str(caught.value)


def test_a_manifest_that_says_nothing_or_nonsense_is_empty(tmp_path):
    for more in ("", ', "policy": [1], "labels": 5, "sources": "x", "summary": "y", "model": null, "created": 3'):
        (tmp_path / "scan.json").write_text(f'{{"schema_version": 1{more}}}')
        manifest = read_manifest(tmp_path)
        assert (manifest.policy, manifest.labels, manifest.sources, manifest.summary) == ({}, (), (), None)
        assert (manifest.model, manifest.threshold) == ("", None)
