"""The audit log: what it writes, what its chain shows, what a killed process leaves, who may write."""

import json
import os
import re
import subprocess
import sys
from hashlib import sha256

import pytest
from typer.testing import CliRunner

from nsfw_guard.audit import GENESIS, AuditError, AuditLog, audit_files, read, verify
from nsfw_guard.audit_head import head_file, read_head
from nsfw_guard.cli import app


def command(*arguments):
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, ["audit", "verify", *map(str, arguments)])


@pytest.fixture
def log(tmp_path):
    """A log of five lines."""
    path = tmp_path / "audit-00000.jsonl"
    with AuditLog(path) as audit:
        audit.append({"n": 0})
        audit.append({"n": 1, "text": "ü \u2028 \n"}, {"n": 2, "score": 0.1}, {"n": 3})
        audit.append({"n": 4})
    return path


def test_each_line_has_the_hash_of_the_one_before(log):
    previous = GENESIS
    for number, line in enumerate(log.read_bytes().splitlines()):
        record = json.loads(line)
        assert list(record)[:4] == ["schema", "sequence", "previous", "time"]
        assert (record["sequence"], record["previous"], record["n"]) == (number, previous, number)
        # As anybody would check it, in any language: the line without its hash.
        without = re.sub(rb',"hash":"[0-9a-f]{64}"\}$', b"}", line)
        assert record["hash"] == sha256(without).hexdigest()
        previous = record["hash"]
    report = verify(log)
    assert (report.intact, report.lines, report.head, report.torn) == (True, 5, previous, False)
    assert [record["n"] for record in read(log)] == [0, 1, 2, 3, 4]
    assert list(read(log))[1]["text"] == "ü \u2028 \n"


def test_it_goes_on_where_it_ended(log):
    head = verify(log).head
    with AuditLog(log) as audit:
        assert (audit.lines, audit.head) == (5, head)
        (line,) = audit.append({"n": 5})
        assert (line["previous"], line["sequence"]) == (head, 5)
    assert verify(log).lines == 6


def swap(lines):
    lines[1], lines[2] = lines[2], lines[1]


def edit(lines):
    lines[2] = lines[2].replace(b'"score":0.1', b'"score":0.2')


def insert(lines):
    lines.insert(2, lines[2])


def chain_anew_without(lines):
    """The second line taken out, and the third one made to fit with its own hash as it should be."""
    record = json.loads(lines[2])
    first = json.loads(lines[0])
    del record["hash"], lines[1]
    record |= {"previous": first["hash"], "sequence": 1}
    text = json.dumps(record, separators=(",", ":")).encode()
    lines[1] = text[:-1] + f',"hash":"{sha256(text).hexdigest()}"}}'.encode()


def forge(lines, **changes):
    """The last line made anew, with a hash of its own that is right."""
    record = {**json.loads(lines[-1]), **changes}
    del record["hash"]
    text = json.dumps(record, separators=(",", ":")).encode()
    lines[-1] = text[:-1] + f',"hash":"{sha256(text).hexdigest()}"}}'.encode()


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (edit, 3, "was changed"),
        (swap, 2, "removed, added or moved"),
        (insert, 4, "removed, added or moved"),
        (lambda lines: lines.pop(0), 1, "removed, added or moved"),
        (lambda lines: lines.pop(2), 3, "removed, added or moved"),
        (chain_anew_without, 3, "removed, added or moved"),
        (lambda lines: forge(lines, previous="1" * 64), 5, "removed, added or moved"),
        (lambda lines: forge(lines, sequence=5), 5, "removed, added or moved"),
        (lambda lines: lines.insert(1, b""), 2, "not a line of an audit log"),
        (lambda lines: lines.insert(1, b"[]"), 2, "not a line of an audit log"),
        (lambda lines: lines.insert(5, b"\xff\x00"), 6, "not a line of an audit log"),
        (lambda lines: lines.__setitem__(0, lines[0].replace(b'"n":0', b'"n":0,"n":0')), 1, "was changed"),
        (lambda lines: lines.__setitem__(0, lines[0].replace(b'"n":0', b'"n": 0')), 1, "was changed"),
    ],
)
def test_what_was_done_to_a_line_is_seen_there(log, change, line, problem):
    lines = log.read_bytes().splitlines()
    change(lines)
    log.write_bytes(b"".join(one + b"\n" for one in lines))
    report = verify(log)
    assert not report.intact
    assert (report.line, report.lines) == (line, line - 1)
    assert problem in report.problem
    before = log.read_bytes()
    with pytest.raises(AuditError, match=f"line {line}: .*Nothing is appended"):
        AuditLog(log)
    assert log.read_bytes() == before
    result = command(log)
    assert result.exit_code == 1
    assert f"broken at line {line}" in result.stdout


def test_a_line_of_another_schema_is_not_taken_for_intact(log):
    record = {"schema": 2, "sequence": 0, "previous": GENESIS, "time": ""}
    text = json.dumps(record, separators=(",", ":")).encode()
    log.write_bytes(text[:-1] + f',"hash":"{sha256(text).hexdigest()}"}}\n'.encode())
    assert "its schema is 2" in verify(log).problem


def test_a_tail_that_was_cut_off_is_seen_by_a_head_that_was_kept(log):
    head = verify(log).head
    assert command(log, "--expect", head).exit_code == 0
    with AuditLog(log) as audit:
        audit.append({"n": 5})
    assert command(log, "--expect", head).exit_code == 0  # it has grown since
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    head_file(log).unlink()  # as of an older version, or by whoever cut it
    result = command(log)
    assert result.exit_code == 0
    assert "there is no head file: lines cut off its end would not be seen" in result.stdout
    result = command(log, "--expect", head)
    assert result.exit_code == 1
    assert f"{head} is in none of them" in result.stdout


@pytest.mark.parametrize("kept", range(5))
def test_lines_that_were_cut_off_the_end_are_seen_by_the_head_file(log, kept):
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:kept]))
    report = verify(log)
    assert not report.intact
    assert not report.torn
    assert (report.lines, report.line) == (kept, kept + 1)
    assert "cut off: head-of-audit-00000.jsonl says that there were 5" in report.problem
    assert command(log).exit_code == command(log.parent).exit_code == 1
    before = log.read_bytes()
    with pytest.raises(AuditError, match=f"line {kept + 1}: it and all after it were cut off"):
        AuditLog(log)
    assert log.read_bytes() == before


def test_a_cut_in_the_middle_of_a_line_is_not_taken_for_a_kill(log):
    whole = log.read_bytes()
    log.write_bytes(whole[:-30])
    assert (verify(log).intact, verify(log).torn) == (False, False)
    with pytest.raises(AuditError, match="line 5: the line is incomplete"):
        AuditLog(log)
    assert log.read_bytes() == whole[:-30]


def test_an_emptied_log_without_a_head_file_is_not_intact(log):
    head_file(log).unlink()
    log.write_bytes(b"")
    assert "the file is empty, and no head file" in verify(log).problem
    assert command(log).exit_code == 1
    with pytest.raises(AuditError, match="is empty"):
        AuditLog(log)


def test_a_log_that_is_gone_is_seen_by_its_head_file(log):
    log.unlink()
    for where in (log, log.parent):
        result = command(where)
        assert result.exit_code == 1
        assert "audit-00000.jsonl is gone, which had 5 lines by head-of-audit-00000.jsonl" in result.stdout
    with pytest.raises(AuditError, match="is gone, which had 5 lines"):
        AuditLog(log)
    assert not log.exists()


def test_a_log_that_was_made_anew_is_seen_by_its_head_file(log):
    kept = head_file(log).read_bytes()
    for path in (log, head_file(log)):
        path.unlink()
    with AuditLog(log) as audit:
        audit.append(*({"n": n} for n in range(7)))
    head_file(log).write_bytes(kept)
    assert "has another hash of line 5: the log was made anew" in verify(log).problem
    assert command(log).exit_code == 1


def test_a_head_file_that_was_changed_is_said(log):
    for content in (
        b"",
        b"{}",
        head_file(log).read_bytes()[:-1],
        head_file(log).read_bytes().replace(b"head", b"HEAD"),
    ):
        head_file(log).write_bytes(content)
        assert "says nothing that a head file says" in verify(log).problem
        with pytest.raises(AuditError, match="says nothing that a head file says"):
            AuditLog(log)


def test_a_head_file_that_is_behind_is_of_a_machine_that_went_down(log):
    before = head_file(log).read_bytes()
    with AuditLog(log) as audit:
        audit.append({"n": 5})
    after = head_file(log).read_bytes()
    assert len(after) == len(before)
    assert read_head(log) == (6, verify(log).head)
    head_file(log).write_bytes(before)
    assert (verify(log).intact, verify(log).anchored) == (True, True)
    with AuditLog(log) as audit:
        audit.append({"n": 6})
    assert read_head(log) == (7, verify(log).head)


def test_a_log_of_an_older_version_gets_a_head_file_when_it_is_opened(log):
    head_file(log).unlink()
    report = verify(log)
    assert (report.intact, report.anchored) == (True, False)
    AuditLog(log).close()
    assert read_head(log) == (5, report.head)


def test_a_head_file_that_cannot_be_written_costs_no_line(log, monkeypatch, caplog):
    with AuditLog(log) as audit:
        monkeypatch.setattr("nsfw_guard.audit_head.os.open", lambda *_: (_ for _ in ()).throw(OSError(30, "read-only")))
        audit.append({"n": 5})
    monkeypatch.undo()
    assert verify(log).lines == 6
    assert "head-of-audit-00000.jsonl cannot be written" in caplog.text


def test_a_full_disk_is_named(log, monkeypatch):
    with AuditLog(log) as audit:
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device: '.*audit-00000.jsonl'"):
            audit.append({"n": 5})


@pytest.mark.parametrize("torn", range(1, 40, 7))
def test_a_torn_last_line_is_cut_off_and_said(log, torn):
    whole = log.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    log.write_bytes(whole + last[: -torn - 1])
    report = verify(log)
    assert (report.torn, report.lines, report.line) == (True, 5, 6)
    assert "as a killed process leaves it" in command(log).stdout
    assert [record["n"] for record in read(log)] == [0, 1, 2, 3, 4]
    with AuditLog(log) as audit:
        audit.append({"n": 5})
    *_, recovered, line = read(log)
    assert (recovered["event"], recovered["cut_bytes"]) == ("recovered", len(last) - torn - 1)
    assert line["n"] == 5
    assert verify(log).intact
    assert log.read_bytes().startswith(whole)


def test_a_line_that_lacks_only_its_end_is_kept(log):
    whole = log.read_bytes()
    log.write_bytes(whole[:-1])
    with AuditLog(log) as audit:
        assert audit.lines == 5
    assert log.read_bytes() == whole


@pytest.mark.parametrize("content", [b"notes of mine", b"\x89PNG", b'{"schema":2,"sequence":0', bytes(50)])
def test_a_file_that_is_no_log_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert not verify(path).torn
    assert "cuts it off" not in command(path).stdout
    with pytest.raises(AuditError, match="line 1: the line is incomplete"):
        AuditLog(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("beginning", [b"", b'{"schema"', b'{"schema":1,"sequence":5,"prev'])
def test_zeros_that_a_machine_that_went_down_leaves_are_cut_off(log, beginning):
    whole = log.read_bytes()
    log.write_bytes(whole + beginning + bytes(4096))
    assert verify(log).torn
    with AuditLog(log) as audit:
        assert audit.lines == 6
    assert log.read_bytes().startswith(whole)
    assert list(read(log))[-1]["cut_bytes"] == len(beginning) + 4096
    assert verify(log).intact


@pytest.mark.parametrize(
    "line", [b"[" * 200_000, b'{"a":' * 100_000, b"1" * 10_000, b"\xff\xfe{", b"\r", b""], ids=range(6)
)
def test_no_line_is_too_odd_to_be_said(log, line):
    before = log.read_bytes()
    log.write_bytes(before + line + b"\n")
    assert verify(log).problem == "it is not a line of an audit log"
    assert "broken at line 6" in command(log).stdout
    with pytest.raises(AuditError, match="line 6"):
        AuditLog(log)
    with pytest.raises(AuditError, match="line 6: it is no JSON object"):
        list(read(log))
    assert log.read_bytes() == before + line + b"\n"


def test_a_tampered_last_line_without_its_end_is_not_cut_off(log):
    broken = log.read_bytes()[:-1].replace(b'"n":4', b'"n":5')
    log.write_bytes(broken)
    assert not verify(log).torn
    with pytest.raises(AuditError, match="line 5"):
        AuditLog(log)
    assert log.read_bytes() == broken


def test_one_process_writes(log, tmp_path):
    with AuditLog(log):
        with pytest.raises(AuditError, match="is being written by another process"):
            AuditLog(log)
        code = "import sys, nsfw_guard.audit as a\ntry: a.AuditLog(sys.argv[1])\nexcept a.AuditError as e: print(e)"
        done = subprocess.run([sys.executable, "-c", code, log], capture_output=True, text=True, timeout=60)
        assert "is being written by another process" in done.stdout
        assert verify(log).intact  # reading needs no lock
    AuditLog(log).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_write_into_its_parents_log(log):
    with AuditLog(log) as audit:
        child = os.fork()
        if child == 0:
            try:
                audit.append({"n": "child"})
            except AuditError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        audit.append({"n": 5})
    assert verify(log).lines == 6


def test_a_full_disk_leaves_the_log_as_it_was(log, monkeypatch):
    before = log.read_bytes()
    with AuditLog(log) as audit:
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            audit.append({"n": 5}, {"n": 6})
        assert log.read_bytes() == before
        monkeypatch.setattr(os, "fsync", real)
        audit.append({"n": 5})
    assert [record["n"] for record in read(log)] == [0, 1, 2, 3, 4, 5]
    assert verify(log).intact


@pytest.mark.parametrize(
    ("record", "error"), [({"hash": "x"}, AuditError), ({"time": 1}, AuditError), ({"score": float("nan")}, ValueError)]
)
def test_what_cannot_be_a_line_changes_nothing(log, record, error):
    before = log.read_bytes()
    with AuditLog(log) as audit:
        with pytest.raises(error):
            audit.append({"n": 5}, record)
        assert log.read_bytes() == before
        audit.append({"n": 5})
    assert verify(log).lines == 6


def test_a_closed_log_refuses(log):
    audit = AuditLog(log)
    audit.close()
    with pytest.raises(AuditError, match="is not open in this process"):
        audit.append({"n": 5})


def test_a_file_without_line_ends_is_not_read_as_one_line(log, monkeypatch):
    monkeypatch.setattr("nsfw_guard.audit.LONGEST", 50)
    report = verify(log)
    assert "longer than 50 bytes" in report.problem
    assert not report.torn
    with pytest.raises(AuditError, match="longer than 50"):
        AuditLog(log)


def test_the_command_takes_folders_and_says_json(log, tmp_path):
    second = tmp_path / "audit-00001.jsonl"
    AuditLog(second).close()
    assert audit_files(tmp_path) == [log, second]
    result = command(tmp_path, "--json", "--expect", verify(log).head)
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [(one["intact"], one["lines"]) for one in found["files"]] == [(True, 5), (True, 0)]
    assert found["files"][1]["head"] == GENESIS
    result = command(tmp_path, "--json", "--expect", "0" * 63 + "1")
    assert (result.exit_code, json.loads(result.stdout)["missing"]) == (1, ["0" * 63 + "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "No such file"),
        (["."], "holds no audit log"),
        (["missing.jsonl", "--expect", "abc"], "64 hex digits"),
    ],
)
def test_what_cannot_be_read_ends_with_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_log_that_was_removed_is_not_written_into_the_void(log):
    with AuditLog(log) as audit:
        log.unlink()
        with pytest.raises(AuditError, match="was removed while it was written"):
            audit.append({"n": 5})
