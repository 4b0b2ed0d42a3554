"""Open foreign files: which are read at all, and which of their tracks are the clip."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from ltxtrain_trainer.errors import NoVideoTrack, StillImage, Undecodable
from ltxtrain_trainer.media.pieces import EBML, Bytes, Piece, Pieces, mapped, read_box
from ltxtrain_trainer.media.truncation import has_fragments, missing_bytes

# Contents choose the demuxer, but only among these: a playlist or a script that calls itself .avi opens nothing.
# Names, not extensions: "mov" also reads mp4, "matroska" also reads webm.
OPTIONS = {"format_whitelist": "mov,avi,matroska", "protocol_whitelist": "file"}
# 8K is decoded; a header that claims more is refused before its frames are allocated.
MAX_PIXELS = 8192 * 5120
OPTIONS["max_pixels"] = str(MAX_PIXELS)

# One frame of these is a picture that nobody marked as a cover.
PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls"}
BESIDE_THE_SOUND = Disposition.comment | Disposition.visual_impaired | Disposition.hearing_impaired
# A clock that leaps so far ahead, by seconds and by frames, was set: sound goes on beside a picture that is held.
LEAP_SECONDS, LEAP_FRAMES = 60.0, 100
NOT_MOVING = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

IMAGE_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\x00", b"MM\x00*"),
    "BMP": (b"BM",),
    "JPEG XL": (b"\xff\x0a", b"\x00\x00\x00\x0cJXL "),
    "JPEG 2000": (b"\x00\x00\x00\x0cjP  ",),
    "Photoshop": (b"8BPS",),
}
# HEIF is in the boxes of mp4; "avis" and "hevc" brands are image sequences, which move.
FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"wide", b"free", b"skip")
EBML_HEAD = EBML.to_bytes(4, "big")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")


@contextmanager
def open_clip(path: Path) -> Iterator[InputContainer]:
    """Open the file as a container. Raises StillImage, or Undecodable where it is none of the four kinds."""
    refuse_images(path)
    try:
        container = _open(path)
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        raise Undecodable(why_unreadable(path, error)) from error
    with container:
        yield container


def path_of(container: InputContainer) -> Path:
    return Path(container.name.removeprefix("file:"))


def _open(path: Path) -> InputContainer:
    # The prefix keeps a name like "http:x.mp4" a name.
    name = f"file:{path.absolute()}"
    try:
        return av.open(name, "r", options=OPTIONS, metadata_errors="replace")
    except av.InvalidDataError:
        hidden = _tracks_without_entry(path)
        if not hidden:
            raise
    return av.open(_Patched(path, name, hidden), "r", options=OPTIONS, metadata_errors="replace")


def _tracks_without_entry(path: Path) -> dict[int, bytes]:
    """Return what to write where, so that tracks without a sample description are skipped.

    Recorders leave such tracks behind for telemetry that never came; FFmpeg refuses the whole file for one.
    """
    with mapped(path) as data:
        boxes = Pieces(data, read_box)
        moov = boxes.find(None, b"moov")
        tracks = [box for box in boxes.within(moov) if box.kind == b"trak"] if moov else []
        return {track.start - 4: b"free" for track in tracks if _lacks_entry(boxes, track)}


def _lacks_entry(boxes: Pieces, track: Piece) -> bool:
    # stsd: version and flags (4 bytes), count of entries (4 bytes).
    table = boxes.find(track, b"mdia", b"minf", b"stbl", b"stsd")
    return table is not None and boxes.body(table, 8)[4:] == bytes(4)


class _Patched:
    """A file to read from, with some of its bytes replaced."""

    def __init__(self, path: Path, name: str, patches: dict[int, bytes]) -> None:
        self.name = name
        self._file = path.open("rb")
        self._patches = patches

    def read(self, size: int) -> bytes:
        place = self._file.tell()
        data = bytearray(self._file.read(size))
        for start, patch in self._patches.items():
            for offset, byte in enumerate(patch, start - place):
                if 0 <= offset < len(data):
                    data[offset] = byte
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def find_video(container: InputContainer) -> VideoStream:
    """Return the track that a player shows, never cover art, thumbnails or stills.

    Raises NoVideoTrack or Undecodable.
    """
    tracks = [stream for stream in container.streams.video if not stream.disposition & NOT_MOVING]
    decodable = [stream for stream in tracks if stream.codec_context is not None]
    if tracks and not decodable:
        raise Undecodable("No decoder knows the codec of the video track.")
    decodable.sort(key=lambda stream: not stream.disposition & Disposition.default)
    if len(decodable) == 1 and decodable[0].codec_context.name not in PICTURE_CODECS:
        return decodable[0]
    moving = _first_with(container, [stream.index for stream in decodable], packets=2) if decodable else None
    for stream in decodable:
        if stream.index == moving:
            return stream
    pictures = [stream for stream in decodable if stream.codec_context.name not in PICTURE_CODECS]
    if not pictures:
        raise NoVideoTrack("The file has no moving picture, only sound, subtitles or a cover picture.")
    return pictures[0]


def find_audio(container: InputContainer) -> AudioStream | None:
    """Return the track that a player plays: marked as default, or else the first that is no commentary.

    Tracks without a packet count only where every track is empty. None: no track.
    """

    def rank(stream: AudioStream) -> tuple[bool, bool, bool]:
        marks = stream.disposition
        return stream.codec_context is None, not marks & Disposition.default, bool(marks & BESIDE_THE_SOUND)

    tracks = sorted(container.streams.audio, key=rank)
    if len(tracks) < 2:
        return tracks[0] if tracks else None
    heard = _first_with(container, [stream.index for stream in tracks], packets=1)
    return next((stream for stream in tracks if stream.index == heard), tracks[0])


def _first_with(container: InputContainer, tracks: Sequence[int], *, packets: int) -> int | None:
    """Return the first of the tracks, in their order, that holds so many packets."""
    counts = dict.fromkeys(tracks, 0)
    # A second handle: a container that was read and rewound does not give the same packets again.
    with _open(path_of(container)) as second:
        try:
            for packet in second.demux([second.streams[index] for index in tracks]):
                if packet.size:
                    counts[packet.stream_index] += 1
                if counts[tracks[0]] >= packets:
                    break
        except av.FFmpegError:
            pass
    return next((index for index in tracks if counts[index] >= packets), None)


def leaps(container: InputContainer, begin: float, end: float, interval: float) -> bool:
    """Whether the clock of a file was set ahead between two frames: for long there is neither a picture nor sound.

    begin and end: seconds of the frames on the container's clock; interval: of frames before.
    """
    if end - begin <= max(LEAP_SECONDS, LEAP_FRAMES * interval):
        return False
    with _open(path_of(container)) as second:
        track = find_audio(second)
        try:
            for packet in second.demux(track) if track else ():
                if packet.pts is not None and begin + 1 < float(packet.pts * packet.time_base) < end - 1:
                    return False
        except av.FFmpegError:
            pass
    return True


def index_is_whole(container: InputContainer) -> bool:
    """Whether all that an MP4's index lists lies in the file, whatever the length of a box claims."""
    path = path_of(container)
    if not container.format.name.startswith("mov") or has_fragments(path):
        return False
    size, tracks = path.stat().st_size, [find_video(container), find_audio(container)]
    return all(entry.pos + entry.size <= size for track in tracks if track for entry in track.index_entries)


class Rescue:
    """Gives back the frames that FFmpeg leaves out where the times of an MP4's fragments begin anew."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self._begun = False
        self._in_fragments: bool | None = None

    def packet(self, packet: "Packet[Any]") -> "Packet[Any]":
        """Return the packet without its mark; before the first that is shown, the mark is that of an edit list."""
        if not packet.is_discard:
            self._begun = True
            return packet
        if self._begun and self._in_fragments is None:
            is_mp4 = self._container.format.name.startswith("mov")
            self._in_fragments = is_mp4 and has_fragments(path_of(self._container))
        if not self._begun or not self._in_fragments:
            return packet
        shown: Packet[Any] = Packet(bytes(packet))
        shown.pts, shown.dts, shown.duration = packet.pts, packet.dts, packet.duration
        shown.time_base, shown.is_keyframe, shown.stream = packet.time_base, packet.is_keyframe, packet.stream
        return shown


def refuse_images(path: Path) -> None:
    """Raises StillImage."""
    head = _head(path)
    for kind, signatures in IMAGE_SIGNATURES.items():
        if head.startswith(signatures):
            raise StillImage(f"The file is a {kind} picture, not a video.")
    if head.lstrip().startswith(b"<svg") or (head.lstrip().startswith(b"<?xml") and b"<svg" in head):
        raise StillImage("The file is an SVG picture, not a video.")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        raise StillImage("The file is a WebP picture, not a video.")
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        raise StillImage("The file is a HEIF picture, not a video.")


def why_unreadable(path: Path, error: Exception) -> str:
    """Say for the person who sent the file why it cannot be opened: what was seen, or else FFmpeg's own words."""
    head = _head(path)
    text = head.lstrip().lower()
    if not head:
        return "The file is empty."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "The file is a web page, not a video: the download needs another link, or a login."
    if text.startswith((b"#extm3u", b"ffconcat", b"[playlist]")):
        return "The file is a playlist, not a video."
    lacking = missing_bytes(path)
    cut_off = f"The file is cut off, {lacking} bytes are missing at its end" if lacking else ""
    words = str(getattr(error, "strerror", None) or error)
    if head[4:8] in FIRST_BOXES:
        with mapped(path) as data:
            has_index = _has_index(data)
        if not has_index:
            return f"{cut_off}: it has no index (moov)." if cut_off else "The file has no index (moov) of its frames."
    elif head[:4] not in (b"RIFF", EBML_HEAD):
        return "The file is not a readable MP4, MOV, AVI or MKV."
    return f"{cut_off or 'The file cannot be opened'}: {words}."


def _has_index(data: Bytes) -> bool:
    return any(box.kind in (b"moov", b"moof") for box in Pieces(data, read_box).within())


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)
