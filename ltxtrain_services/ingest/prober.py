"""Ray actors that probe: each decodes one clip after another, within limits that its own process enforces."""

import errno
import importlib
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ltxtrain.v1.ingest_pb2 import Clip, ClipProbe
from ltxtrain.v1.work_pb2 import AudioNumbers

from ltxtrain_services.runtime.disk import temporary_folder, told_when_full
from ltxtrain_services.runtime.objects import Objects, StoreAddress
from ltxtrain_services.runtime.process_limits import limits
from ltxtrain_services.runtime.telemetry import resumed_trace
from ltxtrain_trainer.errors import ClipDamaged, ClipError, NoVideoTrack, PresentationUnsupported, StillImage

if TYPE_CHECKING:
    from ltxtrain_trainer.media.probe import Probe

log = logging.getLogger(__name__)

# FFmpeg's words when its process reaches the memory limit.
OUT_OF_MEMORY = os.strerror(errno.ENOMEM)


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """A stored clip to probe."""

    key: str
    sha256: str
    # Kept for decoders that look at it; the contents decide.
    suffix: str


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The clip as decoding found it, or why the file cannot be used."""

    # As far as its bytes decide it: without name, path, caption and blob.
    clip: Clip | None = None
    failure: str = ""
    still_image: bool = False
    no_video: bool = False
    # Its end is missing, or not one frame of it is whole.
    damaged: bool = False
    # Its pictures are shown in a way that is not supported.
    unsupported: bool = False
    # It took more time or memory than a clip may, or ended its worker.
    exhausted: bool = False

    @property
    def tells_damage(self) -> bool:
        """Whether the file is said to be unreadable, in part or as a whole."""
        if self.clip is not None:
            return bool(self.clip.probe.damage)
        return not (self.still_image or self.no_video or self.unsupported or self.exhausted)


@ray.remote(num_cpus=1, max_restarts=0)
class Prober:
    """An actor whose process a hostile clip can end at worst: by its memory limit, or by its alarm."""

    def __init__(self, store: StoreAddress, seconds: float, memory_bytes: int, trace: Mapping[str, str]) -> None:
        self._objects = Objects(store)
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._trace = trace
        # Made with the first clip: whoever asks for that is told when the disk is full.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._path = Path()
        # Before the first limit is set, and not above: the service imports this module for its types, without FFmpeg.
        importlib.import_module("ltxtrain_trainer.media.probe")
        numpy = importlib.import_module("numpy")
        # OpenBLAS takes its buffers at the first product, and ends the process when a clip's limit forbids it.
        numpy.ones((64, 64)) @ numpy.ones((64, 64))

    def load(self, task: ProbeTask) -> None:
        """Fetch the clip. Raises ObjectStoreUnavailable, ObjectMissing, ObjectCorrupt and DiskFull."""
        with told_when_full(temporary_folder()):
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="ltxtrain-probe-")
            else:
                self._path.unlink(missing_ok=True)
            self._path = Path(self._folder.name) / f"clip{task.suffix}"
            self._objects.get_file(task.key, self._path, sha256=task.sha256)

    def probe(self) -> ProbeResult:
        """Decode the clip that was loaded."""
        with resumed_trace(self._trace, "probe"):
            result = self._probed(self._memory_bytes)
            # Decoders report memory that they are refused as damage of the file. Real damage is the same with less.
            if result.tells_damage and self._probed(self._memory_bytes // 2) != result:
                return _unreadable(OUT_OF_MEMORY)
            return result

    def _probed(self, memory_bytes: int) -> ProbeResult:
        with limits(self._seconds, memory_bytes):
            return probe_file(self._path)


def probe_file(path: Path) -> ProbeResult:
    """Probe a clip in one thread, for the actor has one processor."""
    from ltxtrain_trainer.media.probe import probe

    try:
        found = probe(path, threads=1)
    except StillImage as error:
        return ProbeResult(failure=str(error), still_image=True)
    except NoVideoTrack as error:
        return ProbeResult(failure=str(error), no_video=True)
    except PresentationUnsupported as error:
        return ProbeResult(failure=str(error), unsupported=True)
    except ClipDamaged as error:
        return _unreadable(str(error), damaged=True)
    except ClipError as error:
        return _unreadable(str(error))
    except MemoryError:
        return _unreadable(OUT_OF_MEMORY)
    except Exception as error:
        # Files are untrusted input: an unexpected error is blamed on the file, and logged here in full.
        log.exception("unexpected error of a probe")
        return _unreadable(f"Reading it failed in a way that was not foreseen ({type(error).__name__}).")
    # A transfer that broke off is to be sent again; what is damaged in itself is used as far as it is whole.
    if found.damage is not None and found.cut_off:
        return _unreadable(found.damage, damaged=True)
    return ProbeResult(clip=described(found))


def described(probe: "Probe") -> Clip:
    """A probe in the words of the contract."""
    clip = Clip(
        width=probe.width,
        height=probe.height,
        frame_count=probe.frame_count,
        frame_rate=probe.frame_rate,
        probe=ClipProbe(
            duration_seconds=probe.duration_seconds,
            variable_frame_rate=probe.variable_frame_rate,
            codec=probe.codec,
            pixel_format=probe.pixel_format,
            rotation=probe.rotation,
            sample_aspect_ratio=probe.sample_aspect_ratio,
            interlaced=probe.interlaced,
            color_matrix=probe.color_matrix,
            color_range=probe.color_range,
            color_primaries=probe.color_primaries,
            color_transfer=probe.color_transfer,
            hdr=probe.hdr,
            container=probe.container,
            audio_error=probe.audio_error or "",
            damage=probe.damage or "",
            leading_frames=probe.leading_frames,
        ),
    )
    if probe.audio is not None:
        clip.audio_sample_rate = probe.audio.sample_rate
        clip.probe.audio.CopyFrom(
            AudioNumbers(
                sample_rate=probe.audio.sample_rate,
                channels=probe.audio.channels,
                duration_seconds=probe.audio.duration_seconds,
                start_offset_seconds=probe.audio.start_offset_seconds,
                silence_share=probe.audio.silence_share,
            )
        )
    return clip


def _unreadable(why: str, *, damaged: bool = False) -> ProbeResult:
    if OUT_OF_MEMORY in why:
        return ProbeResult(failure="Decoding it needs more memory than a clip may use.", exhausted=True)
    return ProbeResult(failure=why, damaged=damaged)
