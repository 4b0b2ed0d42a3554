"""The frames of a clip in the order and at the times of a player, one by one."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from trainer.errors import Undecodable
from trainer.media.container import MAX_PIXELS, find_video
from trainer.media.deinterlace import Deinterlacer
from trainer.media.orientation import orientation_of, pixel_aspect
from trainer.media.wholeness import missing_bytes

# Two frames closer than this have one time stamp and a rounding error between them.
LEAST_INTERVAL = 1e-4
USUAL_RATE = 25.0
# Time that runs backwards by more than this begins anew: recordings that were glued together.
RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class DecodedFrame:
    """A frame, shown from `seconds` until `end_seconds` after the first frame of the clip appears."""

    index: int
    seconds: float
    end_seconds: float
    picture: VideoFrame
    # Nothing comes after it.
    last: bool = False


class VideoReader:
    """Iterates over the frames of a container's video, once, and is closed after. Memory: the decoder's, and one frame.

    Nothing is guessed from headers: edit lists, reordering and missing time stamps are as decoding shows them. A clip
    that is damaged ends before the damage, and `damage` says how; one without a single frame raises Undecodable.
    """

    def __init__(self, container: InputContainer, *, threads: int = 0, deinterlace: bool = True) -> None:
        """threads: of the decoder; 0 is one for each processor."""
        self.container = container
        self.stream: VideoStream = find_video(container)
        self.stream.thread_type = "AUTO"
        self.stream.thread_count = threads
        self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.damage: str | None = None
        # Seconds on the clock of the container at which the first frame appears; known once it is read.
        self.origin = 0.0
        self.interlaced = False
        self._deinterlacer = Deinterlacer(self.stream.time_base, threads) if deinterlace else None
        # AVI has no time stamps, only places in the file, which are those of decoding.
        self._counts_frames = container.format.name == "avi"
        self._first_place: int | None = None
        self._delay: int | None = None
        missing = missing_bytes(Path(container.name.removeprefix("file:")))
        self._cut_off = missing > 0
        if missing and self._counts_frames:
            # What lies between threads when the file ends is lost below, so there must be but one.
            self.stream.thread_count = 1
        if missing:
            self.damage = f"The file is cut off, {missing} bytes are missing at its end."
        self._last_pts: int | None = None
        self._timeline = self._timed()
        self._frames: Iterator[DecodedFrame] = self._timeline

    def __iter__(self) -> Iterator[DecodedFrame]:
        return self._frames

    def close(self) -> None:
        """Lets go of the decoder's frames, which the iteration and this object would keep each other alive with."""
        self._timeline.close()
        self._frames = iter(())

    def first(self) -> DecodedFrame:
        """The first frame, which stays in the iteration."""
        frame = next(self._frames, None)
        if frame is None:
            raise Undecodable(self.damage or "The video track holds no frame.")
        self._frames = chain((frame,), self._frames)
        self.orientation = orientation_of(frame.picture)
        self.aspect = pixel_aspect(self.stream)
        return frame

    @property
    def nominal_rate(self) -> float | None:
        """Frames a second as the container claims them."""
        for rate in (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate):
            if rate and 0.1 <= rate <= 1000:
                return float(rate)
        return None

    def _timed(self) -> Generator[DecodedFrame]:
        interval = 1 / (self.nominal_rate or USUAL_RATE)
        held: VideoFrame | None = None
        start = shift = last_gap = 0.0
        index = -1
        for picture in self._pictures():
            stamp = self._seconds(picture)
            if held is None:
                held, index, self.origin = picture, 0, stamp or 0.0
                continue
            time = start + (last_gap or interval) if stamp is None else stamp - self.origin + shift
            if time <= start:
                moved = interval if start - time > RESTART_SECONDS else LEAST_INTERVAL
                shift += start + moved - time if moved == interval else 0.0
                time = start + moved
            if index == 0 and self._counts_frames and time > 1.5 * interval:
                # Sound that begins with the silence of its coder moves all frames but the first, which has no room.
                self.origin += time - interval
                time = interval
            yield DecodedFrame(index, start, time, held)
            held, start, last_gap, index = picture, time, time - start, index + 1
        if held is not None:
            # Muxers write the last duration carelessly; no frame is shown for less than the one before it.
            declared = float(held.duration * (held.time_base or 0)) if held.duration else 0.0
            yield DecodedFrame(index, start, start + (max(declared, last_gap) or interval), held, last=True)

    def _seconds(self, picture: VideoFrame) -> float | None:
        base = picture.time_base or self.stream.time_base
        return None if picture.pts is None or base is None else float(picture.pts * base)

    def _pictures(self) -> Iterator[VideoFrame]:
        for picture in self._decoded():
            self.interlaced = self.interlaced or picture.interlaced_frame
            if self._deinterlacer is None or not self.interlaced:
                yield picture
            else:
                yield from self._deinterlacer.push(picture)
        if self._deinterlacer is not None:
            yield from self._deinterlacer.flush()

    def _decoded(self) -> Iterator[VideoFrame]:
        begun = False
        for packet in self._packets():
            try:
                pictures = self.stream.decode(packet)
            except av.FFmpegError as error:
                self.damage = f"The video is damaged: {error.strerror}."
                if begun:
                    return
                self._first_place = None
                continue
            for picture in pictures:
                if self._counts_frames:
                    picture.pts = self._place(picture)
                if picture.is_corrupt and not begun:
                    continue
                if packet is None and self._cut_off and self._skips(picture):
                    return
                if not begun and not self._cut_off:
                    self.damage = None
                begun, self._last_pts = True, picture.pts
                yield picture

    def _place(self, picture: VideoFrame) -> int | None:
        """Where in an AVI a frame is shown: where the packet lies that made the decoder give it up, less its delay."""
        if picture.dts is None or self._first_place is None:
            return None if self._last_pts is None else self._last_pts + 1
        if self._delay is None:
            self._delay = picture.dts - self._first_place
        return picture.dts - self._delay

    def _skips(self, picture: VideoFrame) -> bool:
        """Frames are missing before this one: they would have come after it in the file, which was cut off there."""
        base = self.stream.time_base
        if self._counts_frames:
            return self.stream.codec_context.has_b_frames
        if picture.pts is None or self._last_pts is None or base is None:
            return False
        return float((picture.pts - self._last_pts) * base) > 1.5 / (self.nominal_rate or USUAL_RATE)

    def _packets(self) -> "Iterator[Packet[VideoStream] | None]":
        """Every whole packet, then the None that makes the decoder give up its last frames."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    self._cut_off = True
                    self.damage = self.damage or "The file is damaged: a frame is not there as a whole."
                    break
                # An empty packet repeats a frame in AVI, and would end the decoding here.
                if packet.size:
                    if self._first_place is None:
                        self._first_place = packet.dts
                    yield packet
        except av.FFmpegError as error:
            self._cut_off = True
            self.damage = self.damage or f"The file is damaged: {error.strerror}."
        yield None
