"""Names of archive entries: how they are written, what they say about the file, and which of them are refused."""

import enum
import re
import unicodedata
import zlib

MAX_PATH_CHARS = 1000
UTF8_FLAG = 0x800
# Bytes of a name that are looked at: more than the longest path that is taken.
MAX_NAME_BYTES = 4 * MAX_PATH_CHARS + 4
# Marks in a row that are put into order when a name is composed (UAX 15, stream-safe text): ordering is quadratic.
MAX_MARKS = 30


def _suffixes(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


VIDEOS = _suffixes("mp4 mov avi mkv")
# In this order one counts before another of the same clip.
CAPTION_ORDER = (".txt", ".caption", ".json")
CAPTIONS = frozenset(CAPTION_ORDER)
# Captions of many clips, by whole name.
TABLES = frozenset({"metadata.jsonl", "metadata.csv"})
IMAGES = _suffixes(
    "jpg jpeg jpe jfif png apng gif bmp dib webp tif tiff heic heif avif jxl jp2 j2k jpx svg ico psd tga exr hdr "
    "ppm pgm pbm pnm dng cr2 cr3 nef arw raf orf rw2"
)
ARCHIVES = _suffixes("zip zipx rar 7z tar gz tgz bz2 tbz2 xz txz zst lz4 cab iso")
OTHER_VIDEOS = _suffixes("webm m4v wmv flv mpg mpeg mpe ts mts m2ts 3gp 3g2 ogv vob mxf asf rm rmvb divx f4v")
# Made by operating systems, NAS devices and file managers next to people's files; names that begin with a dot are junk
# without being listed.
JUNK_FOLDERS = frozenset(
    {
        "__macosx",
        "network trash folder",
        "thevolumesettingsfolder",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@__thumb",
        "@tmp",
        "@transcode",
        "@sharesnap",
        # Of Sony's cameras: a picture of each clip.
        "thmbnl",
    }
)
JUNK_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "zbthumbnail.info", "picasa.ini"}
)
_DRIVE = re.compile(r"[A-Za-z]:/")


class Kind(enum.Enum):
    """The kind of a file by its name."""

    VIDEO = "video"
    CAPTION = "caption"
    # The caption of a clip when a clip has its name, and any other file when none has.
    JSON = "caption in JSON"
    TABLE = "table of captions"
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
    if name in TABLES:
        return Kind.TABLE
    suffix = suffix_of(name)
    for kind, suffixes in _BY_KIND.items():
        if suffix in suffixes:
            return kind
    return Kind.OTHER


def suffix_of(path: str) -> str:
    """The extension in lower case with its dot; empty without one."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.casefold()}" if dot else ""


def decoded_name(raw: bytes, flags: int, unicode_path: bytes) -> str:
    """Decode a name as its author saw it, composed (NFC). `unicode_path` is the body of the Unicode Path field.

    Without the UTF-8 flag the format says code page 437. Many tools write UTF-8 without the flag, and bytes that are
    valid UTF-8 are hardly ever anything else. A Unicode Path field wins when it belongs to this name.
    """
    name = None if flags & UTF8_FLAG else _unicode_path(unicode_path, raw)
    raw = raw[:MAX_NAME_BYTES]
    if name is None:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = raw.decode("utf-8", "replace") if flags & UTF8_FLAG else raw.decode("cp437")
    return composed(name)


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
    name = name[:MAX_PATH_CHARS]
    if name.isprintable():  # false for a surrogate, too
        return name
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _unicode_path(field: bytes, raw: bytes) -> str | None:
    """The name of a Unicode Path field; None unless it was written for `raw`."""
    if len(field) <= 5 or field[0] != 1 or int.from_bytes(field[1:5], "little") != zlib.crc32(raw):
        return None
    try:
        return field[5:].decode("utf-8")
    except UnicodeDecodeError:
        return None


def composed(name: str) -> str:
    """The name in NFC; as it is where more marks follow each other than any script stacks."""
    if name.isascii():
        return name
    marks = 0
    for character in name:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > MAX_MARKS:
            return name
    return unicodedata.normalize("NFC", name)


_BY_KIND = {
    Kind.VIDEO: VIDEOS,
    Kind.CAPTION: CAPTIONS - {".json"},
    Kind.JSON: frozenset({".json"}),
    Kind.IMAGE: IMAGES,
    Kind.ARCHIVE: ARCHIVES,
    Kind.OTHER_VIDEO: OTHER_VIDEOS,
}
