"""Read the sound of a clip, on the clock of its pictures.

Sound [2, S] is float32, full scale at 1, at 16 kHz unless said otherwise: what the audio VAE hears.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from ltxtrain_trainer.errors import AudioTrackMissing, AudioUndecodable
from ltxtrain_trainer.media.container import LEAP_SECONDS, Rescue, find_audio, open_clip
from ltxtrain_trainer.media.decode import RESTART_SECONDS, Clock
from ltxtrain_trainer.media.downmix import Sound, can_be_joined, stereo

SAMPLE_RATE = 16_000
# Peak after normalisation: as loud as lossy coding leaves unclipped.
PEAK = 0.95
# Sound below this is noise of its recording and stays as quiet as it is (-80 dBFS).
LEAST_PEAK = 1e-4
# Time stamps of packed sound are rounded; a jump beyond this is sound that is missing, or there twice.
JUMP_SECONDS = 0.015
# Around a window, so that the resampler does not hear silence at its ends; a whole number of samples.
MARGIN_SECONDS = 0.05
# Of sound that is measured, or mixed, at once.
BLOCK_SECONDS = 0.01
SILENCE_RMS = 1e-3


@dataclass(frozen=True, kw_only=True)
class AudioNumbers:
    """The audio track as decoded."""

    sample_rate: int
    channels: int
    duration_seconds: float
    # From the first picture to the first sound; negative: sound comes first.
    start_offset_seconds: float
    # Share of the track below -60 dBFS, 0..1.
    silence_share: float


@dataclass(frozen=True)
class Block:
    """Consecutive sound [2, S] at its own rate, from `seconds` on the container's clock."""

    seconds: float
    rate: int
    samples: Sound
    # Channels that the samples were mixed from.
    channels: int = 2

    @property
    def end_seconds(self) -> float:
        return self.seconds + float(self.samples.shape[1]) / self.rate


class AudioReader:
    """Windows of a clip's sound, each asked for no earlier than the one before. Memory: one window."""

    def __init__(self, container: InputContainer, clock: Clock | None = None) -> None:
        """clock: where the times of the pictures begin anew. Raises AudioTrackMissing."""
        stream = find_audio(container)
        if stream is None:
            raise AudioTrackMissing("The clip has no audio track.")
        self._blocks = decode_blocks(container, stream, clock)
        self._held: deque[Block] = deque()
        # Seconds of the window that was read last for which the track has nothing.
        self.missing_seconds = 0.0

    def read(self, start: float, seconds: float) -> Sound:
        """Read [2, round(16000 * seconds)] from `start` on the container's clock; silence where the track has nothing.

        Raises AudioTrackMissing for a track without a packet, AudioUndecodable when it cannot be decoded.
        """
        low, high = start - MARGIN_SECONDS, start + seconds + MARGIN_SECONDS
        while self._held and self._held[0].end_seconds <= low:
            self._held.popleft()
        while not self._held or self._held[-1].seconds < high:
            block = next(self._blocks, None)
            if block is None:
                break
            if block.end_seconds > low:
                self._held.append(block)
        ends = ((max(block.seconds, start), min(block.end_seconds, start + seconds)) for block in self._held)
        self.missing_seconds = max(seconds - sum(max(end - begin, 0.0) for begin, end in ends), 0.0)
        rate = self._held[0].rate if self._held else SAMPLE_RATE
        window = np.zeros((2, math.ceil((high - low) * rate)), np.float32)
        for block in self._held:
            _place(window, block, low, rate)
        length, margin = round(seconds * SAMPLE_RATE), round(MARGIN_SECONDS * SAMPLE_RATE)
        return fit_length(resample(window, rate, SAMPLE_RATE)[:, margin:], length)


def load_audio(path: Path, start: float, seconds: float) -> Sound:
    """Read one window of the clip's sound; see AudioReader.read. Raises AudioTrackMissing or AudioUndecodable."""
    with open_clip(path) as container:
        return AudioReader(container).read(start, seconds)


def probe_audio(path: Path, origin: float, clock: Clock | None = None) -> AudioNumbers:
    """Measure the audio track.

    origin: when the first picture appears on the container's clock; clock: where the times of the pictures begin anew.
    Raises AudioTrackMissing or AudioUndecodable.
    """
    with open_clip(path) as container:
        stream = find_audio(container)
        if stream is None:
            raise AudioTrackMissing("The clip has no audio track.")
        start, total, silent, rate, channels, end = 0.0, 0, 0, 0, 0, 0.0
        for block in decode_blocks(container, stream, clock):
            start = start if total else block.seconds
            length = max(round(block.rate * BLOCK_SECONDS), 1)
            power = np.mean(np.square(block.samples, dtype=np.float64), axis=0)
            edges = np.arange(0, len(power), length)
            sizes = np.diff(np.append(edges, len(power)))
            silent += int(sizes[np.add.reduceat(power, edges) / sizes < SILENCE_RMS**2].sum())
            total += len(power)
            rate, channels, end = block.rate, block.channels, block.end_seconds
        return AudioNumbers(
            sample_rate=rate,
            channels=channels,
            duration_seconds=end - start,
            start_offset_seconds=start - origin,
            silence_share=silent / total,
        )


def decode_blocks(container: InputContainer, stream: AudioStream, clock: Clock | None = None) -> Iterator[Block]:
    """Decode the track in order, without overlaps, on the clock that its pictures have after they were repaired.

    Raises AudioTrackMissing for a track without a packet, AudioUndecodable when less than half of it can be decoded.
    """
    if stream.codec_context is None:
        raise AudioUndecodable("No decoder knows the codec of the audio track.")
    expected: float | None = None
    shift = 0.0
    joined = _Joined()
    for frame, place in _decode(container, stream):
        seconds = frame.time + shift if frame.time is not None else expected or 0.0
        if expected is not None and expected - seconds > RESTART_SECONDS and frame.time is not None:
            # Sound gets the shift of the pictures beside it; where they do not begin anew it goes on without a gap.
            found = clock.shift_at(place) if clock else None
            shift = expected - frame.time if found is None else found
            seconds = frame.time + shift
        elif expected is not None and seconds - expected > LEAP_SECONDS and frame.time is not None and clock:
            found = clock.shift_at(place)
            shift = shift if found is None else found
            seconds = frame.time + shift
        if expected is not None and abs(seconds - expected) < JUMP_SECONDS:
            seconds = expected
        surplus = 0
        if expected is not None and seconds < expected:
            surplus, seconds = round((expected - seconds) * frame.sample_rate), expected
        if surplus < frame.samples:
            if seconds != expected or surplus or not joined.takes(frame):
                yield from joined.blocks()
            joined.add(frame, seconds, surplus)
            if joined.is_full:
                yield from joined.blocks()
            expected = seconds + float(frame.samples - surplus) / frame.sample_rate
    yield from joined.blocks()


class _Joined:
    """Short frames, one after another without a gap, that become one block; longer ones stay as they are.

    AVI cuts some sound into packets of one sample, and to mix one costs as much as to mix a hundredth of a second.
    """

    def __init__(self) -> None:
        self._first: AudioFrame | None = None
        # Joins samples of any format as they are; from the second frame on.
        self._queue: AudioFifo | None = None
        self._seconds = 0.0
        self._samples = self._surplus = 0

    @property
    def is_full(self) -> bool:
        return self._first is not None and not _is_short(self._first, self._samples)

    def takes(self, frame: AudioFrame) -> bool:
        """Whether the frame can follow those that are here."""
        first = self._first
        return first is None or (
            _is_short(frame, frame.samples) and _kind(frame) == _kind(first) and can_be_joined(frame)
        )

    def add(self, frame: AudioFrame, seconds: float, surplus: int) -> None:
        """seconds: where the frame begins after its surplus, the samples that were there already."""
        self._samples += frame.samples
        if self._first is None:
            self._first, self._seconds, self._surplus = frame, seconds, surplus
            return
        if self._queue is None:
            self._queue = AudioFifo()
            self._queue.write(_untimed(self._first))
        self._queue.write(_untimed(frame))

    def blocks(self) -> Iterator[Block]:
        """Give out what is here as one block, if there is anything."""
        frame = self._queue.read() if self._queue else self._first
        if frame is not None:
            samples = stereo(frame)[:, self._surplus :]
            yield Block(self._seconds, frame.sample_rate, samples, frame.layout.nb_channels)
        self._first = self._queue = None
        self._samples = self._surplus = 0


def _is_short(frame: AudioFrame, samples: int) -> bool:
    return samples < frame.sample_rate * BLOCK_SECONDS


def _kind(frame: AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _untimed(frame: AudioFrame) -> AudioFrame:
    """The queue would refuse times that are rounded."""
    frame.pts = None
    return frame


def _decode(container: InputContainer, stream: AudioStream) -> Iterator[tuple[AudioFrame, int | None]]:
    """Yield every frame with the byte of the file at which its packet lies."""
    packets, failures, successes, reason = 0, 0, 0, "it holds no sound"
    rescue = Rescue(container)
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            try:
                frames = stream.decode(rescue.packet(packet) if packet.size else None)
            except MemoryError:
                raise
            except av.FFmpegError as error:
                failures, reason = failures + 1, str(error.strerror)
                continue
            for frame in frames:
                if frame.samples and frame.sample_rate:
                    successes += 1
                    yield frame, packet.pos
    except av.FFmpegError as error:
        reason = str(error.strerror)
    if packets == 0 and reason == "it holds no sound":
        raise AudioTrackMissing("The audio track is empty.")
    if successes == 0 or failures > successes:
        raise AudioUndecodable(f"The audio track cannot be decoded: {reason}.")


def _place(window: Sound, block: Block, low: float, rate: int) -> None:
    samples = block.samples if block.rate == rate else resample(block.samples, block.rate, rate)
    start = round((block.seconds - low) * rate)
    first, last = max(start, 0), min(start + samples.shape[1], window.shape[1])
    if first < last:
        window[:, first:last] = samples[:, first - start : last - start]


def resample(sound: Sound, rate: int, new_rate: int) -> Sound:
    """Resample sound [2, S], in place in time."""
    if rate == new_rate:
        return sound
    resampler = AudioResampler(format="fltp", layout="stereo", rate=new_rate)
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout="stereo")
    frame.sample_rate = rate
    parts = [part.to_ndarray() for part in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate([np.zeros((2, 0), np.float32), *parts], axis=1, dtype=np.float32)


def fit_length(sound: Sound, length: int) -> Sound:
    """Cut sound [2, S] to [2, length], or pad it with silence."""
    kept = sound[:, :length]
    return np.pad(kept, ((0, 0), (0, length - kept.shape[1])))


def normalize_peak(sound: Sound) -> Sound:
    """Scale sound to its full level, the balance of left and right kept; silence stays silence."""
    peak = float(np.abs(sound).max(initial=0.0))
    return sound if peak < LEAST_PEAK else (sound * (PEAK / peak)).astype(np.float32)
