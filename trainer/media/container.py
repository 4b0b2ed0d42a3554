"""Opening a clip that somebody else made: which files are read at all, and which of their tracks are the clip."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from trainer.errors import NoVideoTrack, StillImage, Undecodable

# Contents choose the demuxer, but only among these: a playlist or a script that calls itself .avi opens nothing.
# Names, not extensions: "mov" also reads mp4, "matroska" also reads webm.
OPTIONS = {"format_whitelist": "mov,avi,matroska", "protocol_whitelist": "file"}
# 8K is decoded; a header that claims more is refused before its frames are allocated.
MAX_PIXELS = 8192 * 5120
OPTIONS["max_pixels"] = str(MAX_PIXELS)

# One frame of these is a picture that nobody marked as a cover.
PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls"}
BESIDE_THE_SOUND = Disposition.comment | Disposition.visual_impaired | Disposition.hearing_impaired
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
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")


@contextmanager
def open_clip(path: Path) -> Iterator[InputContainer]:
    """The file as a container; raises StillImage or Undecodable where it is none of the four kinds."""
    refuse_images(path)
    try:
        # The prefix keeps a name like "http:x.mp4" a name.
        container = av.open(f"file:{path.absolute()}", "r", options=OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        raise Undecodable(why_unreadable(path)) from error
    with container:
        yield container


def find_video(container: InputContainer) -> VideoStream:
    """The track that a player shows; cover art, thumbnails and stills are none. Raises NoVideoTrack or Undecodable."""
    tracks = [stream for stream in container.streams.video if not stream.disposition & NOT_MOVING]
    decodable = [stream for stream in tracks if stream.codec_context is not None]
    if tracks and not decodable:
        raise Undecodable("No decoder knows the codec of the video track.")
    decodable.sort(key=lambda stream: not stream.disposition & Disposition.default)
    if len(decodable) == 1 and decodable[0].codec_context.name not in PICTURE_CODECS:
        return decodable[0]
    moving = _first_moving(container, [stream.index for stream in decodable]) if decodable else None
    for stream in decodable:
        if stream.index == moving:
            return stream
    pictures = [stream for stream in decodable if stream.codec_context.name not in PICTURE_CODECS]
    if not pictures:
        raise NoVideoTrack("The file has no moving picture, only sound, subtitles or a cover picture.")
    return pictures[0]


def _first_moving(container: InputContainer, tracks: Sequence[int]) -> int | None:
    """The first of the tracks, in their order, that holds more than one frame."""
    counts = dict.fromkeys(tracks, 0)
    # A second handle, because to have read a file and gone back is not to have it as it was.
    with av.open(container.name, "r", options=OPTIONS, metadata_errors="replace") as second:
        try:
            for packet in second.demux([second.streams[index] for index in tracks]):
                counts[packet.stream_index] += packet.size > 0
                if counts[tracks[0]] > 1:
                    break
        except av.FFmpegError:
            pass
    return next((index for index in tracks if counts[index] > 1), None)


def find_audio(container: InputContainer) -> AudioStream | None:
    """The track that a player plays: marked as default, or else the first that is no commentary. None: no track."""

    def rank(stream: AudioStream) -> tuple[bool, bool, bool]:
        marks = stream.disposition
        return stream.codec_context is None, not marks & Disposition.default, bool(marks & BESIDE_THE_SOUND)

    return min(container.streams.audio, key=rank, default=None)


def refuse_images(path: Path) -> None:
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


def why_unreadable(path: Path) -> str:
    """In words for the person who sent the file."""
    head = _head(path)
    text = head.lstrip().lower()
    if not head:
        return "The file is empty."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "The file is a web page, not a video: the download needs another link, or a login."
    if text.startswith((b"#extm3u", b"ffconcat", b"[playlist]")):
        return "The file is a playlist, not a video."
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip"):
        return "The file has no index (moov): it was cut off, or its recording was never finished."
    return "The file is not a readable MP4, MOV, AVI or MKV."


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)
