"""The folder that a run writes to: images, audit logs, and what makes both survive a process that is killed.

An image is written under a temporary name, then its line is added to the log, then it gets its own name, each step on
the disk before the next begins. So no image is there of which the log knows nothing; and of one that the log knows and
that is not there yet, the temporary file is, which the next run gives its name. Other temporary files are of images
that nobody has heard of: they are removed, and drawn again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ..audit import AuditError, AuditLog, audit_files, read
from ..audit_head import headless_logs, missing_logs
from ..errors import GuardError, SettingError
from ..files import is_other_name, place_new, sync_folder, write_synced, write_whole
from .launch import Processes
from .settings import ERROR, FINAL, HEADS, MANIFEST, QUARANTINE, RETRY

SCHEMA = 1
_TAKEN = "{} is there already, and not of this run; it is not overwritten"


class OutputError(GuardError):
    """The folder cannot be written to: the disk is full, or it is not there any more. Nothing of the batch is lost."""


class State(NamedTuple):
    """What the log says of a row.

    Attributes:
        action: What became of it, last.
        request: The SHA-256 of what was asked for.
        attempt: Which attempt that was, from 0.
        file: The name of its file, if it has one.
        sha256: Of that file.
    """

    action: str
    request: str
    attempt: int
    file: str | None
    sha256: str | None


@dataclass(frozen=True)
class Entry:
    """What is to be written of one image.

    Attributes:
        id: Of the row.
        action: What becomes of it.
        record: What else its line in the log says.
        data: The file; ``None`` if there is none.
    """

    id: str
    action: str
    record: Mapping[str, Any]
    data: bytes | None = None


class RunFolder:
    """A folder that is open for one run.

    Args:
        out: Made if it is not there.
        quarantine: Where originals go, if they go anywhere.
        settings: What images depend on: a run goes on only with the same.
        processes: Who shares the work. The first one prepares the folder for all.

    Attributes:
        run: The id of the run, kept when it goes on.
        states: Row id → what the log says of it, as of the opening.

    Raises:
        SettingError: There is another run in it, or the settings are others.
        AuditError: Another process writes to it, or a log is not intact.
        OutputError: It cannot be written to.
    """

    def __init__(
        self, out: Path, *, quarantine: Path | None, settings: Mapping[str, Any], processes: Processes
    ) -> None:
        self.out, self.quarantine = out, quarantine
        self._settings = json.loads(json.dumps(settings))
        self._processes = processes
        self._log: AuditLog | None = None
        self.run = ""
        self.states: dict[str, State] = {}
        try:
            # The first process has the folder's lock, its own log, before any other looks; and nobody writes before all
            # have read.
            self._together(self._open if processes.index == 0 else None)
            self._together(self._open if processes.index > 0 else None)
            start = {"event": "start", "run": self.run, "process": [processes.index, processes.count]}
            self._together(lambda: self._append(start))
        except BaseException:
            self.close()
            raise

    @property
    def stop_file(self) -> Path:
        """Is there when the processes are to stop."""
        return self.out / f".{self.run}.stop"

    def commit(self, entries: Sequence[Entry]) -> list[tuple[str, Path | None, str | None]]:
        """Write images and their lines, in the order that makes them survive a kill at any moment.

        An original that cannot be written to the quarantine is written nowhere, and its line says error.

        Returns:
            For each entry its action, its file and what went wrong.

        Raises:
            OutputError: The folder cannot be written to. What could be is there, and in the log.
            AuditError: It is closed, or its log was removed.
        """
        if self._log is None or self._log.closed:
            raise AuditError(f"{self.out} is closed.")
        prepared: list[tuple[Entry, Path | None, str | None]] = []
        try:
            for entry in entries:
                prepared.append(self._prepare(entry))
            for folder in {path.parent for _, path, _ in prepared if path is not None}:
                sync_folder(folder)
            self._append(*(self._line(entry, path, problem) for entry, path, problem in prepared))
        except (OSError, GuardError) as error:  # not an interrupt, after which the lines may be there
            for entry in entries if not self._may_be_logged else ():
                with suppress(OSError):
                    self._temporary(self._folder_of(entry.action), entry.id).unlink(missing_ok=True)
            if isinstance(error, GuardError):
                raise
            raise OutputError(f"{self.out} cannot be written to: {error}. The same run goes on from here.") from error
        done = [(entry.action, path, problem) for entry, path, problem in prepared]
        for index, (entry, path, _) in enumerate(prepared):
            if path is None:
                continue
            temporary = self._temporary(path.parent, entry.id)
            try:
                _give_name(temporary, path)
            except OSError as error:
                taken = isinstance(error, FileExistsError)
                why = _TAKEN.format(path) if taken else f"{type(error).__name__}: {path.name} could not get its name"
                # Without a line that takes the first one back, the next run needs the temporary file.
                try:
                    self._append(self._line(entry, None, why))
                except (OSError, GuardError):
                    raise OutputError(f"{path} cannot be written: {error}. The same run goes on from here.") from error
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                if path.parent == self.out and not taken:
                    raise OutputError(f"{path} cannot be written: {error}. The same run goes on from here.") from error
                done[index] = (ERROR, None, why if taken else str(error))
        try:
            for folder in {path.parent for _, path, _ in done if path is not None}:
                sync_folder(folder)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written to: {error}. The same run goes on from here.") from error
        return [(ERROR if problem else action, path, problem) for action, path, problem in done]

    def heads(self) -> list[dict[str, Any]]:
        """Return the name, the number of lines and the head of each log here, to be kept elsewhere."""
        found = []
        for path in audit_files(self.out):
            last = next(iter(deque(read(path), maxlen=1)), None)
            if last is not None:
                found.append({"file": path.name, "lines": last["sequence"] + 1, "head": last["hash"]})
        return found

    @property
    def _may_be_logged(self) -> bool:
        """Whether lines that could not be written could not be taken back either; opening the log tells."""
        return self._log is not None and self._log.closed

    def close(self) -> None:
        """Let another run write here."""
        if self._log is not None:
            self._log.close()

    def _together(self, step: Callable[[], None] | None) -> None:
        """Take a step, and go on only if no process has failed in its own."""
        error: BaseException | None = None
        try:
            if step is not None:
                step()
        except GuardError as failed:
            error = failed
        except OSError as failed:
            error = OutputError(f"{self.out} cannot be written to: {failed}. The same run goes on from here.")
            error.__cause__ = failed
        self._processes.agree(error)

    def _open(self) -> None:
        first = self._processes.index == 0
        if gone := missing_logs(self.out):
            raise AuditError(f"{gone[0]} is gone, with what it said of images; put it back, or name another folder.")
        if (lost := headless_logs(self.out)) and self._had_heads():
            raise AuditError(f"The head file of {lost[0]} is gone; put it back, or name another folder.")
        if first:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.quarantine is not None:
                self.quarantine.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log = AuditLog(self.out / f"audit-{self._processes.index:05d}.jsonl")
        if first:
            for path in audit_files(self.out):
                if path != self._log.path:
                    AuditLog(path).close()  # nobody is at work here, and every line is whole
        self._read_manifest()
        for path in audit_files(self.out):
            for line in read(path):
                if line.get("event") == "image" and line.get("run") == self.run:
                    self.states[line["id"]] = State(
                        line["action"], line["request"], line["attempt"], line["file"], line["sha256"]
                    )
        if first:
            self._recover()

    def _had_heads(self) -> bool:
        """Whether all logs of the run have had head files: since an older version, some may have none."""
        try:
            return bool(json.loads((self.out / MANIFEST).read_bytes()).get(HEADS))
        except (OSError, ValueError, AttributeError, RecursionError):
            return False

    def _read_manifest(self) -> None:
        path = self.out / MANIFEST
        try:
            found = json.loads(path.read_bytes())
            schema, self.run, settings = found["schema"], str(found["run"]), dict(found["settings"])
        except FileNotFoundError:
            if any(True for log in audit_files(self.out) for line in read(log) if line.get("event") == "image"):
                raise SettingError(f"{self.out} has audit logs and no {MANIFEST}; name another folder.") from None
            self.run = secrets.token_hex(8)
            manifest = {"schema": SCHEMA, "run": self.run, "settings": self._settings, HEADS: True}
            write_whole(path, json.dumps(manifest, indent=2).encode() + b"\n")
            return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SettingError(f"{path} cannot be read ({error}); name another folder.") from error
        # It becomes part of the names of files that are removed.
        if not re.fullmatch("[0-9a-f]{16}", self.run):
            raise SettingError(f"{path} has the run {self.run!r}; expected 16 hex digits. Name another folder.")
        if schema != SCHEMA:
            raise SettingError(f"{path} has the schema {schema!r}; this version knows {SCHEMA}. Name another folder.")
        other = [name for name in {**settings, **self._settings} if settings.get(name) != self._settings.get(name)]
        if other:
            said = "; ".join(f"{name} was {settings.get(name)!r} and is {self._settings.get(name)!r}" for name in other)
            raise SettingError(f"{self.out} holds a run with other settings: {said}. Name another folder.")

    def _recover(self) -> None:
        """Give images that the log knows their names, and remove what it does not know."""
        folders = [self.out] if self.quarantine is None else [self.out, self.quarantine]
        left = {path for folder in folders for path in folder.glob(f".{self.run}.*.tmp")}
        for name, state in self.states.items():
            if state.file is None or state.action not in FINAL:
                continue
            path = self._folder_of(state.action) / state.file
            temporary = self._temporary(path.parent, name)
            if temporary in left and sha256(temporary.read_bytes()).hexdigest() == state.sha256:
                self._make_room(temporary, path)
                _give_name(temporary, path)
        for path in left:
            path.unlink(missing_ok=True)
        (self.out / f".{MANIFEST}.tmp").unlink(missing_ok=True)
        self.stop_file.unlink(missing_ok=True)
        for folder in folders:
            sync_folder(folder)

    def _make_room(self, temporary: Path, path: Path) -> None:
        """Remove what a kill has left under a name, where files cannot have two: a part of what is to be there."""
        if not os.path.lexists(path) or is_other_name(temporary, path):
            return
        part = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        if part is not None and temporary.read_bytes().startswith(part):
            path.unlink()
        elif path.parent == self.out:
            raise SettingError(f"{path} is there already, and not of this run; move it away, and run it again.")

    def _prepare(self, entry: Entry) -> tuple[Entry, Path | None, str | None]:
        """Write an image under its temporary name; return its own one, or what went wrong."""
        if entry.data is None:
            return entry, None, None
        folder = self._folder_of(entry.action)
        name = entry.id if folder == self.out else f"{entry.id}-{sha256(entry.data).hexdigest()[:12]}"
        path = folder / f"{name}.png"
        if folder == self.out and os.path.lexists(path):  # also a link to nothing
            return entry, None, _TAKEN.format(path)
        try:
            write_synced(self._temporary(folder, entry.id), entry.data, private=folder != self.out)
        except OSError as error:
            if folder == self.out:
                raise
            return entry, None, f"it could not be written to the quarantine, and is nowhere: {error}"
        return entry, path, None

    def _line(self, entry: Entry, path: Path | None, problem: str | None) -> dict[str, Any]:
        line = {
            "event": "image",
            "run": self.run,
            "id": entry.id,
            "action": ERROR if problem else entry.action,
            "file": None if path is None else path.name,
            "sha256": None if path is None or entry.data is None else sha256(entry.data).hexdigest(),
            **entry.record,
        }
        return {**line, "error": problem} if problem else line

    def _append(self, *lines: Mapping[str, Any]) -> None:
        if self._log is None:
            raise AuditError(f"{self.out} is closed.")
        self._log.append(*lines)

    def _folder_of(self, action: str) -> Path:
        return self.quarantine if action == QUARANTINE and self.quarantine is not None else self.out

    def _temporary(self, folder: Path, name: str) -> Path:
        return folder / f".{self.run}.{name}.tmp"


def _give_name(temporary: Path, path: Path) -> None:
    """Give an image its name, unless something has it that came in the meantime.

    Raises:
        OSError: It has, or the folder cannot be written to.
    """
    try:
        place_new(temporary, path)
    except FileExistsError:
        if not path.is_file() or path.read_bytes() != temporary.read_bytes():
            raise
        temporary.unlink(missing_ok=True)  # in a quarantine of several runs, names say the content


def is_done(state: State | None) -> bool:
    """Whether nothing is left to do for a row."""
    return state is not None and state.action in FINAL


def next_attempt(state: State | None, request: str) -> int:
    """Which attempt a row is at; an attempt that failed is made again."""
    if state is None or state.request != request:
        return 0
    return state.attempt + (state.action == RETRY)
