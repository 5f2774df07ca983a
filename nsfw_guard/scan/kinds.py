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

# How many of a file's first bytes tell what it is.
HEAD = 512
_VIDEO_BOXES = (b"moov", b"mdat", b"wide", b"pnot")
_PICTURE_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"jpx ")
_VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b".RMF",
)
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*", b"8BPS", b"\x00\x00\x00\x0cjP  ")


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
    if start.startswith(_VIDEO_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return True
    if start[4:8] == b"ftyp":
        return start[8:12] not in _PICTURE_BRANDS
    if start[4:8] in _VIDEO_BOXES:
        return True
    # Transport streams: packets of 188 bytes that begin with G, on discs each with a time stamp of 4 bytes before it.
    if len(start) > 200 and (start[0] == start[188] == 0x47 or start[4] == start[196] == 0x47):
        return True
    if start.startswith(_PICTURE_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return False
    return name.lower().endswith(VIDEOS)
