"""A process that ends with this one, and is started again when it ends by itself.

systemd or supervisord would do as much, but neither is on every machine that `ltxtrain up` runs on, nor ends with it.
"""

import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

from ltxtrain_client.backoff import Backoff

from ltxtrain_services.local import tether

log = logging.getLogger(__name__)

BACKOFF = Backoff(first_seconds=0.2, last_seconds=10.0)
# One that ran this long starts again without delay.
STEADY_SECONDS = 60.0
MAX_LOG_BYTES = 16 * 2**20
LOG_SECONDS = 10.0
TAIL_BYTES = 2_000


class ChildFailed(Exception):
    """A process ended in a way that a new start would not change, or is not ready in time; with the end of its log."""


class Child:
    """One supervised command, in a session of its own: Ctrl-C in a terminal reaches this process alone."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environ: Mapping[str, str],
        log_path: Path,
        cwd: Path,
        final: Collection[int] = (),
        session: bool = False,
    ) -> None:
        self.name = name
        self._command = [str(part) for part in command]
        self._environ = dict(environ)
        self._log_path = log_path
        self._cwd = cwd
        # Whether processes that the command leaves behind are ended too.
        self._reach = "session" if session else "one"
        # Exit statuses after which it is not started again.
        self.final = frozenset(final)
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # How often it was started.
        self.starts = 0
        # The kernel ends a child with the thread that made it, so this one lives as long as the child.
        self._thread = threading.Thread(target=self._supervise, name=f"child {name}", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    @property
    def pid(self) -> int:
        """Process id of the latest start."""
        if self._process is None:
            raise self.failure("could not be started")
        return self._process.pid

    def check(self) -> None:
        """Raises ChildFailed when it has ended for good."""
        if not self._thread.is_alive():
            raise self.failure("has ended")

    def failure(self, what: str) -> ChildFailed:
        """The error that says so, with the end of the log."""
        tail = b""
        with contextlib.suppress(OSError):
            tail = self._log_path.read_bytes()[-TAIL_BYTES:]
        text = tail.decode(errors="replace").strip()
        return ChildFailed(f"{self.name} {what}. Its log {self._log_path} ends with:\n{text}")

    def stop(self, grace_seconds: float, *, hangs: bool = False) -> None:
        """SIGTERM, then after the grace SIGKILL to its process group. Nothing happens when it runs no more.

        hangs: needing SIGKILL is expected, and logged at DEBUG.
        """
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                level = logging.DEBUG if hangs else logging.WARNING
                log.log(level, "%s did not end in %.0f s and is killed", self.name, grace_seconds)
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        if self._thread.ident is not None:
            self._thread.join()

    def _supervise(self) -> None:
        crashes = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                status = self._run_once()
            except OSError as error:
                log.error("%s cannot be started: %s", self.name, error)
                self._started.set()
                return
            if self._stopping.is_set() or status in self.final:
                return
            lived = time.monotonic() - began
            crashes = 1 if lived > STEADY_SECONDS else crashes + 1
            pause = BACKOFF.seconds(crashes)
            log.warning("%s ended with status %d and is started again in %.1f s", self.name, status, pause)
            self._stopping.wait(pause)

    def _run_once(self) -> int:
        self._rotate_log()
        with self._log_path.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), self._reach, *self._command],
                env=self._environ,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1
        self._started.set()
        if self._stopping.is_set():
            self._process.kill()
        while not _ends_within(self._process, LOG_SECONDS):
            self._rotate_log()
        return self._process.wait()

    def _rotate_log(self) -> None:
        """Keep the log and one older part, each about MAX_LOG_BYTES; lines written meanwhile may be lost."""
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(self._log_path, self._log_path.with_suffix(".old.log"))
                # The command goes on appending to the same file.
                os.truncate(self._log_path, 0)


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within some seconds. Popen.wait would look twenty times a second."""
    if not hasattr(os, "pidfd_open"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode is not None
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
