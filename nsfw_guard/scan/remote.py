"""Object stores and web servers, through fsspec."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import IO, Any, BinaryIO, cast

from ..errors import SettingError, one_line, why
from .entry import Entry
from .kinds import Choice

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Of web servers few answer to ranges and to listings: what is there is read from the start, once.
_WEB = ("http", "https")
_ETAGS = ("ETag", "etag", "e_tag", "md5Hash", "crc32c", "generation", "content_md5", "Content-MD5", "checksum")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "Last-Modified", "created")
# Smaller files are read in one request; what is streamed is in memory up to here, then on disk.
_AT_ONCE = 2**24
MOST_BYTES = 2**32

Parts = tuple[str, ...]


def protocol_of(text: str) -> str | None:
    """Return the protocol of a URL; ``None`` for a path."""
    match = _URL.match(text)
    return match[1].lower() if match else None


def is_web(url: str) -> bool:
    """Return whether a URL is one of a web server, which has no folders."""
    return protocol_of(url) in _WEB


def check_protocol(url: str) -> None:
    """Refuse a URL that cannot be opened by what is installed.

    Raises:
        SettingError: It says what to install, or that there is no such protocol.
    """
    try:
        import fsspec
    except ImportError as error:
        raise SettingError(f"{url} needs fsspec: pip install 'nsfw-guard[scan]'") from error
    protocol = protocol_of(url)
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}.get(
            str(protocol), ""
        )
        advice = f"pip install {package}" if package else one_line(error)
        raise SettingError(f"{url} needs a package that is not installed: {advice}") from error
    except ValueError as error:
        raise SettingError(
            f"{url} has the unknown protocol {protocol}; "
            "expected a path, https://, s3://, gs:// or another that fsspec knows."
        ) from error


def find_url(url: str, choice: Choice) -> Iterator[Entry]:
    """Yield the file at a URL, or the files in the folder there that are chosen by name."""
    if is_web(url):
        yield url_entry(url)
        return
    try:
        system, path = _system(url)
        info = system.info(path)
    except Exception as error:
        yield Entry(url, error=f"cannot be opened: {_why(error)}")
        return
    if info.get("type") == "directory":
        yield from walk_url(url, choice)
    else:
        yield _entry(url, info)


def url_entry(url: str) -> Entry:
    """Return the entry of the file at a URL; if it is not there, with its error."""
    try:
        system, path = _system(url)
        return _entry(url, system.info(path))
    except Exception as error:
        return Entry(url, error=f"cannot be opened: {_why(error)}")


def walk_url(
    url: str,
    choice: Choice,
    *,
    enter: Callable[[Parts], bool] | None = None,
    pick: Callable[[Parts], bool] | None = None,
) -> Iterator[Entry]:
    """Yield the files below a folder of an object store; see ``local.walk``. A folder is listed at once."""
    try:
        system, root = _system(url)
    except Exception as error:
        yield Entry(url, error=f"cannot be opened: {_why(error)}")
        return
    root = root.rstrip("/")
    pending: list[tuple[str, Parts]] = [(root, ())]
    while pending:
        folder, above = pending.pop()
        try:
            items = system.ls(folder, detail=True)
        except Exception as error:
            yield Entry(_unstripped(system, folder), error=f"folder cannot be read: {_why(error)}")
            continue
        for info in items:
            name = str(info["name"]).rstrip("/")
            if name == folder:  # an empty object that stands for the folder itself
                continue
            parts = (*above, name.rpartition("/")[2])
            if info.get("type") == "directory":
                if enter is None or enter(parts):
                    pending.append((name, parts))
            elif choice.takes(parts[-1]) if pick is None else pick(parts):
                yield _entry(_unstripped(system, name), info)


def open_url(url: str) -> BinaryIO:
    """Open the file at a URL, seekable.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    try:
        system, path = _system(url)
        if is_web(url):
            with open_stream(url) as stream:
                return _spooled(stream, url)
        size = system.info(path).get("size")
        if size is not None and size <= _AT_ONCE:
            return io.BytesIO(system.cat_file(path))
        return cast(BinaryIO, system.open(path, "rb"))
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{url} cannot be read: {_why(error)}") from error


def open_stream(url: str) -> BinaryIO:
    """Open the file at a URL for reading once, from its start to its end.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    try:
        system, path = _system(url)
        options = {"block_size": 0} if is_web(url) else {}
        return cast(BinaryIO, system.open(path, "rb", **options))
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "Not found", url) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{url} cannot be read: {_why(error)}") from error


def _spooled(stream: BinaryIO, url: str) -> BinaryIO:
    file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_AT_ONCE)  # noqa: SIM115 - the caller's
    size = 0
    while block := stream.read(2**20):
        size += len(block)
        if size > MOST_BYTES:
            file.close()
            raise OSError(f"{url} has more than {MOST_BYTES} bytes")
        file.write(block)
    file.seek(0)
    return cast(BinaryIO, file)


def _system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. Listings are not kept: they would be all there is."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return system, str(path)


def _unstripped(system: Any, path: str) -> str:
    return str(system.unstrip_protocol(path))


def _entry(url: str, info: dict[str, Any]) -> Entry:
    size = info.get("size")
    etag = next((str(info[name]).strip('"') for name in _ETAGS if info.get(name)), None)
    mtime = next((time for name in _TIMES if (time := _seconds(info.get(name))) is not None), None)
    return Entry(url, size if isinstance(size, int) else None, mtime, etag)


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = (
                parsedate_to_datetime(value) if "," in value else datetime.fromisoformat(value.replace("Z", "+00:00"))
            )
        except ValueError:
            return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    return float(value) if isinstance(value, (int, float)) else None


def _why(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        # fsspec makes this of whatever a web server does.
        cause = error.__cause__
        return "not found" if cause is None or getattr(cause, "status", 0) in (404, 410) else _why(cause)
    status = getattr(error, "status", None)
    message = getattr(error, "message", None)
    return f"{status} {message}" if status and message else why(error)
