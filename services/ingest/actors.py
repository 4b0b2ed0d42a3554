"""Ray actors that probe: each decodes one clip after another, within limits that its own process enforces."""

import contextlib
import faulthandler
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from services.runtime.objects import Objects, StoreAddress
from trainer.errors import ClipError, NoVideoTrack, StillImage
from trainer.media.probe import Probe, probe


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
    exhausted: bool = False


@ray.remote(num_cpus=1, max_restarts=0)
class Prober:
    """A hostile clip ends this process at worst: by its memory limit, or by its alarm."""

    def __init__(self, store: StoreAddress, seconds: float, memory_bytes: int) -> None:
        self._objects = Objects(store)
        self._seconds = seconds
        self._memory_bytes = memory_bytes

    def probe(self, task: ProbeTask) -> Verdict:
        with tempfile.TemporaryDirectory(prefix="ltxtrain-probe-") as folder:
            path = Path(folder) / f"clip{task.suffix}"
            self._objects.get_file(task.key, path, sha256=task.sha256)
            with _limits(self._seconds, self._memory_bytes):
                return look(path)


def look(path: Path) -> Verdict:
    """Probe a clip; one thread, for the actor has one processor."""
    try:
        return Verdict(probe=probe(path, threads=1))
    except StillImage as error:
        return Verdict(failure=str(error), still_image=True)
    except NoVideoTrack as error:
        return Verdict(failure=str(error), no_video=True)
    except ClipError as error:
        return Verdict(failure=str(error))
    except MemoryError:
        return Verdict(failure="Decoding it needs more memory than a clip may use.", exhausted=True)


@contextlib.contextmanager
def _limits(seconds: float, memory_bytes: int) -> Iterator[None]:
    """End the process when the time is over, and refuse it memory beyond the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # Private memory alone: address space is taken by the gigabyte without being used.
    resource.setrlimit(resource.RLIMIT_DATA, (_private_bytes() + memory_bytes, hard))
    # This alarm needs no interpreter lock, so a decoder that never returns does not stop it.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """What the kernel counts against RLIMIT_DATA now."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith("VmData:"):
            return int(row.split()[1]) << 10
    return 0
