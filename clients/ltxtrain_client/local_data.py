"""Training data on this machine: a zip, folders or videos, looked into before a byte is sent."""

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from ltxtrain_client.errors import LtxtrainError
from ltxtrain_client.quantities import count_text, size_text
from ltxtrain_client.upload_source import FileSource, Source, StoredZip


def _suffixes(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


VIDEO_SUFFIXES = _suffixes("mp4 mov avi mkv")
# The kinds of files are those of Ingest.
CAPTION_SUFFIXES = _suffixes("txt caption json")
CAPTION_TABLES = frozenset({"metadata.jsonl", "metadata.csv"})
# Ingest refuses data with images, so they are found before the upload.
IMAGE_SUFFIXES = _suffixes(
    "jpg jpeg jpe jfif png apng gif bmp dib webp tif tiff heic heif avif jxl jp2 j2k jpx svg ico psd tga exr hdr "
    "ppm pgm pbm pnm dng cr2 cr3 nef arw raf orf rw2"
)
JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})
JUNK_FOLDERS = frozenset({"__macosx"})
MAX_NAMED = 5
ENCRYPTED = 0x1
_HINT = "Training data is a zip, a folder or videos (.mp4, .mov, .avi, .mkv)"


class DataInvalid(LtxtrainError):
    """Local data that the services would refuse; the message names the files and the remedy."""


class Kind(Enum):
    """Kind of a file by its name."""

    VIDEO = "video"
    CAPTION = "caption"
    TABLE = "table of captions"
    IMAGE = "image"
    JUNK = "left by an operating system"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """Training data that is ready to be uploaded; see open_local_data."""

    source: Source
    """The zip, or a zip composed of the files while they are sent."""

    videos: tuple[str, ...]
    """Paths of the videos inside the zip."""

    captions: tuple[str, ...]
    """Paths of caption files inside the zip."""

    tables: tuple[str, ...] = ()
    """Paths of tables of captions inside the zip: metadata.jsonl and metadata.csv."""

    left_out: tuple[str, ...] = ()
    """Files of the folders that are not sent: neither videos nor captions."""

    size_bytes: int
    """Size of the upload."""

    def summary(self) -> str:
        """One line for people: "clips: 12 videos, 11 caption files, 184.2 MB"."""
        parts = [count_text(len(self.videos), "video")]
        if self.captions or not self.tables:
            parts.append(count_text(len(self.captions), "caption file"))
        if self.tables:
            parts.append(f"captions in {_named(self.tables)}")
        text = f"{self.source.name}: {', '.join(parts)}, {size_text(self.size_bytes)}"
        if not self.left_out:
            return text
        return f"{text}; not sent: {_named(self.left_out)} (neither videos nor captions)"


def open_local_data(paths: Sequence[Path]) -> LocalData:
    """Look into a zip, or into folders and videos, which become one zip while they are sent.

    Files lie in that zip by their path below the folder that all have in common; a single video brings the caption
    files of its name and the tables of its folder along.
    Raises DataInvalid when the services would refuse the data, OSError when a file cannot be read.
    """
    for path in paths:
        path.stat()
    if len(paths) == 1 and paths[0].is_file() and kind_of(paths[0].name) is not Kind.VIDEO:
        return _open_zip(paths[0])
    for path in paths:
        if path.is_file() and kind_of(path.name) is not Kind.VIDEO:
            raise DataInvalid(f"{path} is not a video. {_HINT}; a zip is given alone.")
    return _open_files(paths)


def check_video(path: Path) -> None:
    """Raises DataInvalid when a file is surely not a video by its first bytes, OSError when it cannot be read."""
    found = looks_like(path)
    if found not in _PERHAPS_VIDEO:
        raise DataInvalid(f"{path} is {found}, not a video.")


def kind_of(path: str) -> Kind:
    """Kind of a file by its path with slashes, as Ingest sees it."""
    *folders, name = path.casefold().split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in (*folders, name))
    if hidden or name in JUNK_FILES or JUNK_FOLDERS.intersection(folders):
        return Kind.JUNK
    if name in CAPTION_TABLES:
        return Kind.TABLE
    suffix = PurePosixPath(name).suffix
    if suffix in VIDEO_SUFFIXES:
        return Kind.VIDEO
    if suffix in CAPTION_SUFFIXES:
        return Kind.CAPTION
    return Kind.IMAGE if suffix in IMAGE_SUFFIXES else Kind.OTHER


def looks_like(path: Path) -> str:
    """Phrase for a file's content by its first bytes: "a video", "a zip", "an HTML page", "text", ...

    Raises OSError when it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        return "empty"
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        return "a zip"
    if start[4:8] in _BOXES or start[:4] == b"\x1aE\xdf\xa3" or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return "a video"
    for magic, phrase in _MAGIC.items():
        if start.startswith(magic):
            return phrase
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return "text" if b"\0" not in start and _is_text(start) else UNKNOWN


# Ingest knows more containers than these first bytes.
UNKNOWN = "neither a zip nor a video"
_PERHAPS_VIDEO = frozenset({"a video", UNKNOWN})
# First boxes of MP4 and QuickTime files.
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"})
_MAGIC = {
    b"\xff\xd8\xff": "an image",
    b"\x89PNG": "an image",
    b"GIF8": "an image",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
}


def _is_text(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # cut inside a character
    return True


def _open_zip(path: Path) -> LocalData:
    source = FileSource(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        found = looks_like(path)
        if found == "a zip":
            raise DataInvalid(f"{path} begins like a zip, but its end is missing or damaged. Is it complete?") from None
        raise DataInvalid(f"{path} is {found}, not a zip. {_HINT}.") from None
    if encrypted := [entry.filename for entry in entries if entry.flag_bits & ENCRYPTED]:
        raise DataInvalid(f"{path} is encrypted ({_named(encrypted)}). Zip the files without a password.")
    names = _by_kind(entry.filename.replace("\\", "/") for entry in entries)
    _refuse(str(path), names)
    return LocalData(
        source=source,
        videos=tuple(names[Kind.VIDEO]),
        captions=tuple(names[Kind.CAPTION]),
        tables=tuple(names[Kind.TABLE]),
        size_bytes=source.size_bytes,
    )


def _by_kind(paths: Iterable[str]) -> dict[Kind, list[str]]:
    """Paths by their kind; a caption file that no video is named like is an other file."""
    names: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    for path in paths:
        names[kind_of(path)].append(path)
    stems = {stem for video in names[Kind.VIDEO] for stem in (video.casefold(), _stem(video))}
    captions, names[Kind.CAPTION] = names[Kind.CAPTION], []
    for path in captions:
        names[Kind.CAPTION if _stem(path) in stems else Kind.OTHER].append(path)
    return names


def _stem(path: str) -> str:
    return path.casefold().rpartition(".")[0]


def _open_files(paths: Sequence[Path]) -> LocalData:
    files = _collect(paths)
    names = _by_kind(files)
    given = ", ".join(str(path) for path in paths[:MAX_NAMED]) + (" …" if len(paths) > MAX_NAMED else "")
    _refuse(given, names)
    videos = {name: looks_like(files[name]) for name in names[Kind.VIDEO]}
    if _PERHAPS_VIDEO.isdisjoint(videos.values()):
        listed = ", ".join(f"{name} is {found}" for name, found in list(videos.items())[:MAX_NAMED])
        raise DataInvalid(f"{given}: no file with a video's name is a video ({listed}).")
    sent = {name: files[name] for kind in (Kind.VIDEO, Kind.CAPTION, Kind.TABLE) for name in names[kind]}
    source = StoredZip(f"{paths[0].resolve().stem or 'data'}.zip", sent)
    return LocalData(
        source=source,
        videos=tuple(names[Kind.VIDEO]),
        captions=tuple(names[Kind.CAPTION]),
        tables=tuple(names[Kind.TABLE]),
        left_out=tuple(names[Kind.OTHER]),
        size_bytes=source.size_bytes,
    )


def _collect(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their path below the folder that all have in common, in order."""
    found: set[Path] = set()
    for path in (path.absolute() for path in paths):
        if path.is_dir():
            for folder, _, names in os.walk(path, onerror=_raise):
                found.update(Path(folder, name) for name in names if Path(folder, name).is_file())
        else:
            beside = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
            beside += [path.with_name(name) for name in CAPTION_TABLES]
            found.update((path, *(caption for caption in beside if caption.is_file())))
    roots = [path if path.is_dir() else path.parent for path in (path.absolute() for path in paths)]
    root = Path(os.path.commonpath(roots))
    return {path.relative_to(root).as_posix(): path for path in sorted(found)}


def _raise(error: OSError) -> None:
    raise error


def _refuse(given: str, names: Mapping[Kind, Sequence[str]]) -> None:
    """Raises DataInvalid for images, and when there is no video."""
    if images := names[Kind.IMAGE]:
        raise DataInvalid(
            f"{given} has {count_text(len(images), 'image')} ({_named(images)}): images cannot be trained on. "
            "Take them out, or give the videos alone."
        )
    if not names[Kind.VIDEO]:
        others = [*names[Kind.OTHER], *names[Kind.CAPTION], *names[Kind.TABLE]]
        raise DataInvalid(f"{given} has no video{f', only {_named(others)}' if others else ''}. {_HINT}.")


def _named(paths: Sequence[str]) -> str:
    rest = len(paths) - MAX_NAMED
    return ", ".join(paths[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
