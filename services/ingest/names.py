"""Names of archive entries: how they are written, what they say about the file, and which of them are refused."""

import enum
import re
import unicodedata
import zlib

MAX_PATH_CHARS = 1000
UNICODE_PATH_FIELD = 0x7075
UTF8_FLAG = 0x800


def _suffixes(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


VIDEOS = _suffixes("mp4 mov avi mkv")
CAPTIONS = _suffixes("txt")
IMAGES = _suffixes(
    "jpg jpeg jpe jfif png apng gif bmp dib webp tif tiff heic heif avif jxl jp2 j2k jpx svg ico psd tga exr hdr "
    "ppm pgm pbm pnm dng cr2 cr3 nef arw raf orf rw2"
)
ARCHIVES = _suffixes("zip zipx rar 7z tar gz tgz bz2 tbz2 xz txz zst lz4 cab iso")
OTHER_VIDEOS = _suffixes("webm m4v wmv flv mpg mpeg mpe ts mts m2ts 3gp 3g2 ogv vob mxf asf rm rmvb divx f4v")
JUNK_FOLDERS = frozenset({"__macosx"})
JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})
_DRIVE = re.compile(r"[A-Za-z]:/")


class Kind(enum.Enum):
    """What a file is by its name."""

    VIDEO = "video"
    CAPTION = "caption"
    IMAGE = "image"
    ARCHIVE = "archive"
    OTHER_VIDEO = "video of another container"
    JUNK = "left by an operating system"
    OTHER = "other"


class UnsafePath(Exception):
    """A name that leads out of the archive; the text says how."""


def kind_of(path: str) -> Kind:
    *folders, name = path.casefold().split("/")
    if name.startswith(".") or name in JUNK_FILES or any(part in JUNK_FOLDERS for part in folders):
        return Kind.JUNK
    if any(part.startswith(".") for part in folders):
        return Kind.JUNK
    suffix = suffix_of(name)
    for kind, suffixes in _BY_KIND.items():
        if suffix in suffixes:
            return kind
    return Kind.OTHER


def suffix_of(path: str) -> str:
    """The extension in lower case with its dot; empty without one."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.casefold()}" if dot else ""


def decoded_name(written: str, flags: int, extra: bytes) -> str:
    """The name as its author saw it, composed (NFC); `written` is zipfile's reading.

    Without the UTF-8 flag zipfile reads code page 437. Many tools write UTF-8 without the flag, and bytes that are
    valid UTF-8 are hardly ever anything else. A Unicode Path field wins when it belongs to this name.
    """
    if not flags & UTF8_FLAG:
        raw = written.encode("cp437", "replace")
        if (name := _unicode_path(extra, raw)) is None:
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError:
                name = written
        written = name
    return unicodedata.normalize("NFC", written)


def safe_path(name: str) -> str:
    """The name with slashes and without empty parts. Raises UnsafePath for one that leads elsewhere."""
    path = name.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        raise UnsafePath("an absolute path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafePath("a path that leads out of the archive")
    if "\0" in path:
        raise UnsafePath("a name with a NUL character")
    if len(path) > MAX_PATH_CHARS:
        raise UnsafePath(f"a path of more than {MAX_PATH_CHARS} characters")
    return "/".join(parts)


def printable(name: str) -> str:
    """The name for reports and errors: bounded, without control characters and lone surrogates."""
    text = "".join(character if character.isprintable() else "�" for character in name[:MAX_PATH_CHARS])
    return text.encode("utf-8", "replace").decode("utf-8")


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    while len(extra) >= 4:
        identity, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if identity == UNICODE_PATH_FIELD and len(field) > 5 and field[0] == 1:
            if int.from_bytes(field[1:5], "little") != zlib.crc32(raw):
                return None
            try:
                return field[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None


_BY_KIND = {
    Kind.VIDEO: VIDEOS,
    Kind.CAPTION: CAPTIONS,
    Kind.IMAGE: IMAGES,
    Kind.ARCHIVE: ARCHIVES,
    Kind.OTHER_VIDEO: OTHER_VIDEOS,
}
