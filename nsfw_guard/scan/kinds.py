"""What a file is likely to be, by its name and its first bytes."""

from __future__ import annotations

from collections import Counter

# Of the formats that Pillow, or pillow-heif, opens: those of pictures that people have.
PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs", ".heic", ".heif",
    ".heics", ".heifs", ".hif", ".bmp", ".dib", ".tif", ".tiff", ".ico", ".cur", ".icns", ".jp2", ".j2k", ".jpc",
    ".jpf", ".jpx", ".j2c", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".psd", ".dds", ".qoi", ".pcx", ".sgi",
)  # fmt: skip
VIDEOS = (
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m2v", ".mts",
    ".m2ts", ".m2t", ".vob", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".3gp", ".3g2", ".mxf", ".rm", ".rmvb",
)  # fmt: skip
TABLES = (".parquet", ".pq")
ZIPS = (".zip", ".cbz")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")

# How many of a file's first bytes tell that it is an archive.
ARCHIVE_HEAD = 512


class Choice:
    """Which files are taken by their names where none was named itself; the others are counted.

    Args:
        every_name: Take all, whatever their names.
        archives: Look into archives and tables.

    Attributes:
        skipped: Why → how many were passed over.
    """

    def __init__(self, *, every_name: bool = False, archives: bool = False) -> None:
        self.every_name = every_name
        self.archives = archives
        self.skipped: Counter[str] = Counter()

    def takes(self, name: str) -> bool:
        """Return whether a file is taken; if not, it is counted."""
        if archive_kind(name):
            taken = self.archives
            self.skipped["archive"] += not taken
        else:
            taken = self.every_name or is_media_name(name)
            self.skipped["other type"] += not taken
        return taken

    def takes_member(self, name: str) -> bool:
        """Return whether a member of an archive is taken: archives in archives never are."""
        if archive_kind(name):
            self.skipped["archive"] += 1
            return False
        return self.takes(name)


def is_media_name(name: str) -> bool:
    """Return whether a name is one of a picture or a video."""
    return name.lower().endswith(PICTURES + VIDEOS)


def archive_kind(name: str, start: bytes = b"") -> str | None:
    """Return ``"zip"``, ``"tar"`` or ``"parquet"`` for the name of such a file; its first bytes decide if none fits."""
    lower = name.lower()
    for kind, endings in (("zip", ZIPS), ("tar", TARS), ("parquet", TABLES)):
        if lower.endswith(endings):
            return kind
    if not start or is_media_name(name):
        return None
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    return "parquet" if start[:4] == b"PAR1" else None


def looks_like_video(start: bytes, name: str) -> bool:
    """Return whether a file is rather a video than a picture.

    Args:
        start: Its first ``HEAD`` bytes. They decide, where they are known ones.
        name: Otherwise this does.
    """
    from ..images.sniff import sniff  # with torch, which a report's page does not need

    media = sniff(start).media
    return media == "film" or (media is None and name.lower().endswith(VIDEOS))
