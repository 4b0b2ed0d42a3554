"""Ray actors that probe: each decodes one clip after another, within limits that its own process enforces."""

import errno
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray

from services.runtime.objects import Objects, StoreAddress
from services.runtime.process_limits import limits
from services.runtime.telemetry import resumed_trace
from trainer.errors import ClipError, NoVideoTrack, StillImage
from trainer.media.probe import Probe, probe

log = logging.getLogger(__name__)

# What ffmpeg says when its process reaches the limit.
OUT_OF_MEMORY = os.strerror(errno.ENOMEM)


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One stored clip."""

    key: str
    sha256: str
    # Kept for decoders that look at it; the contents decide.
    suffix: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What decoding found, or why the clip cannot be used."""

    probe: Probe | None = None
    failure: str = ""
    still_image: bool = False
    no_video: bool = False
    # It took more time or memory than a clip may, or ended its worker.
    exhausted: bool = False


@ray.remote(num_cpus=1, max_restarts=0)
class Prober:
    """A hostile clip ends this process at worst: by its memory limit, or by its alarm."""

    def __init__(self, store: StoreAddress, seconds: float, memory_bytes: int, trace: Mapping[str, str]) -> None:
        self._objects = Objects(store)
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._trace = trace
        self._folder = tempfile.TemporaryDirectory(prefix="ltxtrain-probe-")
        self._path = Path(self._folder.name) / "clip"

    def load(self, task: ProbeTask) -> None:
        """Fetch the clip. Raises ObjectStoreUnavailable, ObjectMissing and ObjectCorrupt."""
        self._path.unlink(missing_ok=True)
        self._path = Path(self._folder.name) / f"clip{task.suffix}"
        self._objects.get_file(task.key, self._path, sha256=task.sha256)

    def probe(self) -> Verdict:
        """Decode the clip that was loaded."""
        with resumed_trace(self._trace, "probe"), limits(self._seconds, self._memory_bytes):
            return look(self._path)


def look(path: Path) -> Verdict:
    """Probe a clip; one thread, for the actor has one processor."""
    try:
        found = probe(path, threads=1)
    except StillImage as error:
        return Verdict(failure=str(error), still_image=True)
    except NoVideoTrack as error:
        return Verdict(failure=str(error), no_video=True)
    except ClipError as error:
        return _unreadable(str(error))
    except MemoryError:
        return _unreadable(OUT_OF_MEMORY)
    except Exception as error:
        # The file is somebody's invention: what nobody foresaw of it is its fault, and this worker's log has it all.
        log.exception("unforeseen")
        return _unreadable(f"Its reader does not know what to make of it ({type(error).__name__}).")
    if found.damage is not None:
        return _unreadable(f"{found.damage} {found.frame_count} frames can be decoded before.")
    return Verdict(probe=found)


def _unreadable(why: str) -> Verdict:
    if OUT_OF_MEMORY in why:
        return Verdict(failure="Decoding it needs more memory than a clip may use.", exhausted=True)
    return Verdict(failure=why)
