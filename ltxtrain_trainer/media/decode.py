"""The frames of a clip in the order and at the times of a player, one by one."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ltxtrain_trainer.errors import ClipDamaged, Undecodable
from ltxtrain_trainer.media.color import colors_of
from ltxtrain_trainer.media.container import MAX_PIXELS, Rescue, find_video, index_is_whole, leaps, open_clip, path_of
from ltxtrain_trainer.media.picture import Deinterlacer
from ltxtrain_trainer.media.pieces import HOLE, ffv1_is_intact, jpeg_has_hole
from ltxtrain_trainer.media.presentation import (
    Orientation,
    declared_by,
    orientation_of,
    pixel_aspect,
    refuse_unsupported,
    side_data_of,
)
from ltxtrain_trainer.media.rate import Rate, measure_rate
from ltxtrain_trainer.media.skipped import Skipped
from ltxtrain_trainer.media.truncation import missing_bytes

# Two frames closer than this have one time stamp and a rounding error between them.
LEAST_INTERVAL = 1e-4
USUAL_RATE = 25.0
# Time that runs backwards by more than this begins anew: recordings that were glued together.
RESTART_SECONDS = 0.25
# Frames that are shown before others that are decoded before them lie no further back.
REORDER_SECONDS = 1.0
PASSED_OVER = "The video is damaged (the file cannot be read there, and frames are missing)"
# Coders whose frames are never zeros for long, and whose decoders take any bytes for pixels.
ARITHMETIC = ("vp8", "vp9")
# Decoders that fill in what is damaged and report it only when told to; all others mark such frames, or cannot tell.
STRICT = {"mjpeg": "explode", "mjpegb": "explode", "amv": "explode", "hevc": "explode", "png": "crccheck+explode"}


@dataclass(frozen=True)
class DecodedFrame:
    """A frame, shown from `seconds` until `end_seconds` after the first frame of the clip appears."""

    index: int
    seconds: float
    end_seconds: float
    picture: VideoFrame
    # Nothing comes after it.
    last: bool = False


@dataclass
class Clock:
    """Where the times of a file begin anew, and what is added to them from there on, for pictures and sound alike."""

    # Byte of the file up to which pictures were read.
    position: int = 0
    # Byte and seconds.
    restarts: list[tuple[int, float]] = field(default_factory=list)

    def shift_at(self, position: int | None) -> float | None:
        """Return what is added to times that begin anew near this byte; None: pictures do not begin anew there."""
        if position is None or not self.restarts:
            return None
        return min(self.restarts, key=lambda restart: abs(restart[0] - position))[1]


class VideoReader:
    """Iterates over the frames of a container's video, once, and is closed after. Memory: the decoder's, and one frame.

    Headers are not believed where decoding shows more: edit lists, reordering, missing time stamps. Frames before the
    first key frame are left out where there is one. A clip that is damaged ends before the damage, and `damage` says
    how; one without a single frame raises Undecodable.
    """

    def __init__(self, container: InputContainer, *, threads: int = 0, deinterlace: bool = True) -> None:
        """threads: of the decoder; 0 is one for each processor."""
        self.container = container
        self.stream: VideoStream = find_video(container)
        self.stream.thread_type = "AUTO"
        self.stream.thread_count = threads
        codec = self.stream.codec_context
        strict = {"err_detect": STRICT[codec.name]} if codec.name in STRICT else {}
        codec.options = {"max_pixels": str(MAX_PIXELS)} | strict
        path = path_of(container)
        self.declared = declared_by(path, self.stream)
        self.clock = Clock()
        # Seconds on the clock of the container at which the first frame appears; known once it is read.
        self.origin = 0.0
        self.interlaced = False
        # Frames before the first whole one: what they build on is not in the file, or damaged.
        self.leading_frames = 0
        # Places of the packets up to the one that gave out the first frame.
        self._leading: list[int] = []
        # The file is not there up to its end.
        self.cut_off = False
        self._deinterlacer = Deinterlacer(self.stream.time_base, threads) if deinterlace else None
        # AVI has no time stamps, only places in the file, which are those of decoding.
        self._counts_frames = container.format.name == "avi"
        self._first_place: int | None = None
        self._delay: int | None = None
        # Whether the times of packets ascend, so far, and those of packets whose frames have not come out yet.
        self._ascending = not self._counts_frames
        self._stamps: deque[int] = deque()
        self._latest_pts: int | None = None
        # An edit list begins between key frames: what comes before is decoded and not shown.
        self._has_preroll = False
        # FFV1 may carry checksums, and the first frame shows that it does.
        self._has_checksums = False
        self._skipped = Skipped(container, self.stream)
        self._fault: str | None = None
        # FFmpeg's words about packets before the first frame.
        self._refusal = ""
        self._ended: tuple[int, float] | None = None
        missing = missing_bytes(path)
        if missing and not index_is_whole(container):
            self._cut_off(f"{missing} bytes are missing at its end")
            if self._counts_frames:
                # Frames between threads are lost below when the file ends, so there must be but one.
                self.stream.thread_count = 1
        self._last_pts: int | None = None
        self._timeline = self._timed()
        self._frames: Iterator[DecodedFrame] = self._timeline

    def __iter__(self) -> Iterator[DecodedFrame]:
        return self._frames

    def close(self) -> None:
        """Let go of the decoder's frames, which the iteration and this object would keep each other alive with."""
        self._timeline.close()
        self._frames = iter(())

    def first(self) -> DecodedFrame:
        """Return the first frame, which stays in the iteration. Raises Undecodable or PresentationUnsupported."""
        frame = next(self._frames, None)
        if frame is None:
            if self.damage:
                raise ClipDamaged(self.damage, frame_count=0, needed_frames=1)
            if self._refusal:
                raise Undecodable(f"The video cannot be decoded: {self._refusal}.")
            raise Undecodable("The video track holds no frame.")
        self._frames = chain((frame,), self._frames)
        side_data = side_data_of(frame.picture)
        refuse_unsupported(side_data, self.declared)
        colors_of(frame.picture).refuse_unsupported()
        turned = self.declared.orientation
        self.orientation = turned if turned != Orientation() else orientation_of(side_data)
        self.aspect = pixel_aspect(self.stream)
        return frame

    @property
    def damage(self) -> str | None:
        """How and where the clip ends before its file does; None: it is whole as far as it was read."""
        if self._fault is None:
            return None
        if self._ended is None:
            return f"{self._fault}."
        index, seconds = self._ended
        return f"{self._fault}: frame {index} ({seconds:.3f} s) and what follows cannot be used."

    @property
    def nominal_rate(self) -> float | None:
        """Frames a second as the container claims them."""
        for rate in (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate):
            if rate and 0.1 <= rate <= 1000:
                return float(rate)
        return None

    @property
    def tick_seconds(self) -> float:
        """The step in which times are counted."""
        return float(self.stream.time_base or 0)

    def measure_rate(self, times: Sequence[float], end: float) -> Rate:
        """Measure the rate of frames that appear at these times, ascending from 0; end: of the last one."""
        nominal = self.nominal_rate
        # FFmpeg's average is the declared duration as a fraction, where there is one.
        declared = nominal if self.declared.frame_seconds else None
        return measure_rate(times, end, nominal, declared=declared, tick_seconds=self.tick_seconds)

    def _timed(self) -> Generator[DecodedFrame]:
        interval = 1 / (self.nominal_rate or USUAL_RATE)
        held: VideoFrame | None = None
        start = shift = last_gap = end = 0.0
        index = -1
        for picture in self._pictures():
            stamp = self._seconds(picture)
            if held is None:
                held, index, self.origin = picture, 0, stamp or 0.0
                continue
            begin, gap = self.origin - shift, last_gap or interval
            time = start + gap if stamp is None else stamp - begin
            if start - time > RESTART_SECONDS or leaps(self.container, begin + start, begin + time, gap):
                shift += start + interval - time
                time = start + interval
                self.clock.restarts.append((self.clock.position, shift))
            elif time <= start:
                time = start + LEAST_INTERVAL
            if index == 0 and self._counts_frames and time > 1.5 * interval:
                # Sound that begins with the silence of its coder moves all frames but the first, which has no room.
                self.origin += time - interval
                time = interval
            yield DecodedFrame(index, start, time, held)
            held, start, last_gap, index = picture, time, time - start, index + 1
        if held is not None:
            # Muxers write the last duration carelessly; no frame is shown for less than the one before it.
            declared = float(held.duration * (held.time_base or 0)) if held.duration else 0.0
            end = start + (max(declared, last_gap) or interval)
        self._ended = index + 1, end
        if held is not None:
            yield DecodedFrame(index, start, end, held, last=True)

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
        begin: int | None = None
        for packet in self._packets():
            try:
                pictures = self.stream.decode(packet)
            except MemoryError:
                # The limit of this process, not the clip's damage.
                raise
            except av.FFmpegError as error:
                self._ask_for_memory()
                if begun and not self.cut_off:
                    self._fault = f"The video is damaged ({error.strerror})"
                if begun:
                    return
                self._refusal = str(error.strerror)
                self._first_place = None
                continue
            for picture in pictures:
                if self._counts_frames:
                    picture.pts = self._place(picture)
                if picture.is_corrupt:
                    self._ask_for_memory()
                    if begun:
                        self._fault = "The video is damaged (its decoder fills in what it cannot read)"
                        return
                    continue
                if not begun and not picture.key_frame and not self._has_preroll:
                    begin = self._first_key_frame() if begin is None else begin
                    if picture.pts is not None and picture.pts < begin:
                        continue
                if self._skips(picture) and self._lacks(packet, picture):
                    return
                if not begun and not self.cut_off:
                    self._fault = None
                if picture.pts is not None:
                    if not begun:
                        self.leading_frames = sum(place < picture.pts for place in self._leading)
                    picture.pts = self._in_order(picture.pts, begun)
                begun, self._last_pts = True, picture.pts
                yield picture

    def _ask_for_memory(self) -> None:
        """Raises MemoryError when the process may not have that of a few frames more.

        FFmpeg calls it damage when it is refused memory in the midst of a frame.
        """
        codec = self.stream.codec_context
        bytearray(8 * codec.width * codec.height)

    def _in_order(self, pts: int, begun: bool) -> int:
        """Return when a frame is shown.

        Muxers that write no composition offsets leave every frame with its time of decoding: frames come out in order,
        and their times permuted. Then the times are taken in the order of decoding.
        """
        if not self._ascending or not self.stream.codec_context.reorder_depth:
            return pts
        while not begun and self._stamps and self._stamps[0] < pts:
            self._stamps.popleft()
        return self._stamps.popleft() if self._stamps else pts

    def _first_key_frame(self) -> int:
        """Return the time stamp of the first key frame, or one before all others where there is none."""
        with open_clip(path_of(self.container)) as container:
            stream = container.streams[self.stream.index]
            assert isinstance(stream, VideoStream)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            stream.codec_context.skip_frame = "NONKEY"
            try:
                for picture in container.decode(stream):
                    if picture.key_frame and not picture.is_corrupt and picture.pts is not None:
                        return picture.pts
            except av.FFmpegError:
                pass
        return -(1 << 63)

    def _place(self, picture: VideoFrame) -> int | None:
        """Return where in an AVI a frame is shown: where the packet lies that gave it out, less the decoder's delay."""
        if picture.dts is None or self._first_place is None:
            return None if self._last_pts is None else self._last_pts + 1
        if self._delay is None:
            self._delay = picture.dts - self._first_place
        return picture.dts - self._delay

    def _skips(self, picture: VideoFrame) -> bool:
        """Whether frames are missing before this one: they would come after it in the file, which was cut off there."""
        base = self.stream.time_base
        if self._counts_frames:
            return self.stream.codec_context.has_b_frames
        if picture.pts is None or self._last_pts is None or base is None:
            return False
        return float((picture.pts - self._last_pts) * base) > 1.5 / (self.nominal_rate or USUAL_RATE)

    def _lacks(self, packet: "Packet[VideoStream] | None", picture: VideoFrame) -> bool:
        """Whether the frames before one that skips some are in the file no more, or were there and are not read."""
        if packet is None and self.cut_off:
            return True
        if self._counts_frames or self._last_pts is None or picture.pts is None:
            return False
        if self._skipped.between(self._last_pts, picture.pts):
            # What the file lacks, it lacks here and not at its end.
            self._fault, self.cut_off = PASSED_OVER, False
            return True
        return False

    def _packets(self) -> "Iterator[Packet[VideoStream] | None]":
        """Yield every whole packet, then the None that makes the decoder give up its last frames."""
        rescue = Rescue(self.container)
        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    self._cut_off("a frame is not there as a whole")
                    break
                harm = self._harm(packet)
                if harm:
                    self._fault = f"The video is damaged ({harm})"
                    if self._first_place is not None:
                        break
                # An empty packet repeats a frame in AVI, and would end the decoding here.
                elif packet.size:
                    if self._skipped.note(packet):
                        self._fault = PASSED_OVER
                        break
                    self._note(packet)
                    yield rescue.packet(packet)
            else:
                if self._skipped.at_end():
                    self._fault = self._fault or PASSED_OVER
        except av.FFmpegError as error:
            self._cut_off(str(error.strerror))
        yield None

    def _harm(self, packet: "Packet[VideoStream]") -> str | None:
        """Return what is wrong with the bytes of a frame, of the kinds that its decoder fills in without a word."""
        codec = self.stream.codec_context.name
        if (codec == "mjpeg" and jpeg_has_hole(bytes(packet))) or (codec in ARITHMETIC and HOLE in bytes(packet)):
            return "a part of a frame is zeros"
        if codec == "ffv1" and packet.size:
            intact = ffv1_is_intact(bytes(packet))
            if self._has_checksums and not intact:
                return "the checksum of a frame is wrong"
            self._has_checksums = self._has_checksums or intact
        return None

    def _note(self, packet: "Packet[VideoStream]") -> None:
        place = packet.dts if self._counts_frames else packet.pts
        if self._last_pts is None and place is not None and not packet.is_discard:
            self._leading.append(place)
        if self._first_place is None:
            self._first_place = packet.dts
        self._has_preroll = self._has_preroll or packet.is_discard
        self.clock.position = max(self.clock.position, packet.pos or 0)
        if packet.pts is not None and self._ascending:
            back = (self._latest_pts or 0) - packet.pts
            self._latest_pts = packet.pts
            self._stamps.append(packet.pts)
            if 0 < back * self.tick_seconds <= REORDER_SECONDS:
                self._ascending = False
                self._stamps.clear()

    def _cut_off(self, how: str) -> None:
        self.cut_off = True
        self._fault = self._fault or f"The file is cut off ({how})"
