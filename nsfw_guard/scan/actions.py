"""What is done with flagged files: moved, copied, linked, or redacted copies made. Nothing is ever overwritten."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import logging
import os
import platform
import shutil
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ..errors import GuardError, ImageError, SettingError, one_line
from ..files import FULL, is_other_name, naming, place_new, sync_file, unlink_same, write_synced
from ..images.sniff import HEAD
from ..redact import Judge, Redaction
from ..saving import format_of, redact_file
from .entry import Entry, path_to_text, text_to_path
from .evidence import now
from .glob import fixed_part, has_magic
from .kinds import looks_like_video
from .row import Row
from .sources import Sources, is_local_file

logger = logging.getLogger(__name__)

KINDS = ("move", "copy", "link", "redact")
LOG = "actions.jsonl"


class Actions:
    """Does one thing with each flagged file, once: what is done already, is left.

    Only with what lies in the sources, which a file that a row of a table names need not. A link is moved as a copy of
    what it shows; what it leads to stays where it is, and so do files behind a link to a folder outside of the sources.
    Members of archives, and what is at URLs, can only be copied.

    Args:
        kind: One of ``KINDS``.
        folder: Where to; a file keeps its place below its source.
        sources: Of the scan.
        out: The scan's folder; ``actions.jsonl`` in it says what went where, before it goes.
        redaction: How, for ``"redact"``.
        judge: Looks at what is written then; ``None``: nobody does.
        dry_run: Only say what would be done.

    Attributes:
        done: How many files are where they should be; with ``dry_run`` none.
        failed: Path → why, of those that are not.
        planned: With ``dry_run``: path → where to.

    Raises:
        SettingError: The folder lies in a source, so that what is put there would be scanned.
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        *,
        sources: Sources,
        given: list[str],
        out: Path,
        redaction: Redaction,
        judge: Judge | None = None,
        dry_run: bool = False,
    ) -> None:
        self.kind, self.folder = kind, Path(os.path.abspath(folder))
        self._sources, self._redaction, self._judge, self._dry_run = sources, redaction, judge, dry_run
        self._log = out / LOG
        # One scan at a time works in a folder: nobody else has passing names with this in them.
        self._token = hashlib.sha256(f"{platform.node()}:{os.path.realpath(out)}".encode()).hexdigest()[:8]
        self._turn = threading.Lock()
        self.done = 0
        self.failed: dict[str, str] = {}
        self.planned: dict[str, str] = {}
        for source in given:
            if lies_in(folder, source):
                raise SettingError(f"{folder} lies in {source}, which is scanned; choose a folder outside of it.")
        if kind == "redact" and redaction.kind == "none":
            raise SettingError(
                "--redact-to with --redaction none would copy what is flagged; choose another redaction."
            )
        if not dry_run:
            self.folder.mkdir(parents=True, exist_ok=True)

    def on_rows(self, rows: list[Row]) -> None:
        """Do it with those that are flagged."""
        for row in rows:
            if row.flagged:
                self.on_flagged(Entry(row.path, size=row.size, mtime=row.mtime, etag=row.etag), reason=row.reason)

    def on_flagged(self, entry: Entry, *, reason: str | None = None) -> None:
        """Do it with a flagged file that is as it was when it was scanned, and why it was flagged, if that is known."""
        with self._turn:
            try:
                self._act(entry, reason)
                self.done += not self._dry_run
            except Exception as error:  # also an encoder's own: the other files are not to wait for this one
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                said = (
                    one_line(error) if isinstance(error, (OSError, GuardError)) else f"{type(error).__name__}: {error}"
                )
                self.failed[entry.path] = " ".join(said.split())
                logger.warning("%s was flagged, and could not be dealt with: %s", entry.path, self.failed[entry.path])

    def _act(self, entry: Entry, reason: str | None) -> None:
        if not self._sources.names(entry.path):
            raise ImageError("lies outside of the sources: a table names it. Name it, or its folder, as a source too.")
        if self.kind == "move" and is_local_file(entry.path) and self._sources.leads_outside(entry.path):
            raise ImageError(
                "lies outside of the sources, in a folder that a link leads to. Name that folder, or use --copy."
            )
        # What Windows cannot have in a name is of no matter elsewhere.
        target = self.folder / PurePosixPath(self._sources.relative_to_source(entry.path))
        if self._dry_run:
            self.planned[entry.path] = path_to_text(str(target))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.kind in ("move", "link") and not is_local_file(entry.path):
            raise ImageError("is no local file of its own; use --copy.")
        path = text_to_path(entry.path)
        if is_local_file(entry.path) and any(_is_itself(path, name) for name in _names(target, entry)):
            # Its copy would be taken for one that is there already, and the original, which it is, removed.
            raise ImageError(f"is already in {self.folder}, where it would go; choose a folder outside of the sources.")
        if self.kind == "link":
            self._link(path, target, entry)
        else:
            self._put(entry, target, reason)

    def _link(self, path: str, target: Path, entry: Entry) -> None:
        for name in _names(target, entry):
            if name.is_symlink() and os.readlink(name) == path:
                return
            if not os.path.lexists(name):
                self._say(entry, name)
                with suppress(FileExistsError):  # somebody was faster
                    name.symlink_to(path)
                    return
        raise FileExistsError(errno.EEXIST, "exists already", str(target))

    def _put(self, entry: Entry, target: Path, reason: str | None) -> None:
        """Make the copy under a passing name, then give it its own; then, to move, remove the original."""
        local = is_local_file(entry.path)
        path = Path(text_to_path(entry.path))
        if local:
            if path.is_symlink() and not path.exists():
                raise ImageError("is a link to a file that is not there any more; remove the link.")
            status = path.stat()
            if (status.st_size, status.st_mtime) != (entry.size, entry.mtime):
                raise ImageError("has changed since it was scanned; scan again.")
        # A link is not renamed: it may lead nowhere from its new place. What it leads to is copied, and stays.
        if self.kind == "move" and not path.is_symlink() and self._is_moved(entry, path, target):
            return
        original = os.lstat(path) if self.kind == "move" else None
        temporary = target.with_name(f".{_mark(entry)}.{self._token}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            if self.kind == "redact":
                write_synced(temporary, self._redacted(entry, target.name, reason))
            else:
                with entry.open() as source, naming(temporary), temporary.open("xb") as file:
                    shutil.copyfileobj(source, file)
                    sync_file(file)
                if local:
                    shutil.copystat(path, temporary)
            self._place(temporary, target, entry)
        finally:
            temporary.unlink(missing_ok=True)
        if original is not None:
            unlink_same(path, original)

    def _is_moved(self, entry: Entry, path: Path, target: Path) -> bool:
        """Move a file by its name alone, which is possible within one file system."""
        for name in _names(target, entry):
            if is_other_name(path, name):  # as a kill leaves it, or a tool that saves space
                place_new(path, name)
                return True
        if path.stat().st_dev != target.parent.stat().st_dev or os.path.lexists(target):
            return False
        self._say(entry, target)
        try:
            place_new(path, target)
        except FileExistsError:
            return False
        return True

    def _place(self, temporary: Path, target: Path, entry: Entry) -> None:
        for name in _names(target, entry):
            # A link is no copy: it may lead to the original, which is removed next.
            if not name.is_symlink() and name.is_file() and filecmp.cmp(temporary, name, shallow=False):
                return
            if not os.path.lexists(name):
                self._say(entry, name)
                with suppress(FileExistsError):  # somebody was faster, maybe with the same content
                    place_new(temporary, name)
                    return
        raise FileExistsError(errno.EEXIST, "exists already", str(target))

    def _redacted(self, entry: Entry, name: str, reason: str | None) -> bytes:
        with entry.open() as source:
            data = source.read()
        if looks_like_video(data[:HEAD], entry.path):
            raise ImageError("is a video, of which no redacted copy is made; use --move or --copy.")
        # Flagged it is, whatever a second look would say: this one is not at the size at which it was scored.
        return redact_file(data, format_of(name), self._redaction, self._judge, reason=reason)

    def _say(self, entry: Entry, target: Path) -> None:
        """Write down where a file goes, before it goes."""
        if self._dry_run:
            return
        line = {"time": now(), "action": self.kind, "path": entry.path, "to": path_to_text(str(target))}
        with naming(self._log), self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
            sync_file(log)


def _mark(entry: Entry) -> str:
    # Only what a row holds, too: an entry has more when it was listed than when it is made of its row.
    version = repr((entry.path, entry.size, entry.mtime, entry.etag))
    return hashlib.sha256(version.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _names(target: Path, entry: Entry) -> tuple[Path, Path]:
    """The name, and the one to take where another file has it: the same for the same version of a file."""
    return target, target.with_name(f"{target.stem}.{_mark(entry)}{target.suffix}")


def _is_itself(path: str, name: Path) -> bool:
    """Whether a name is a file's own, reached another way; another name of its content, a hard link, is not."""
    try:
        same = os.path.samestat(os.lstat(path), os.lstat(name))
    except OSError:
        return False
    return same and not is_other_name(Path(path), name)


def lies_in(folder: Path, source: str) -> bool:
    """Whether a folder is one, or lies in one, all of which a source scans."""
    scanned = _folder_of(source)
    return bool(scanned) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(scanned))


def _folder_of(source: str) -> str:
    """Return the folder all of which a source scans; empty if it scans single files, or not this machine's."""
    source = unquote(source[len("file://") :]) if source.startswith("file://") else source
    if os.path.isdir(source):
        return source
    if is_local_file(source) and has_magic(source) and "**" in source:
        return str(fixed_part(source)[0])
    return ""
