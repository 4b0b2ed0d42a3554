"""Docker, or podman behind Docker's API: one compose project, for bench/containers.py."""

import json
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 3600.0
WAIT_SECONDS = 900.0
POLL_SECONDS = 3.0
SECOND_NS = 10**9


class NoEngine(Exception):
    """There is nothing here that could run the containers; the text says what is missing."""


class Failed(Exception):
    """A command failed, or something did not come about in time."""


@dataclass(frozen=True)
class Container:
    """A container of the project, as it is now."""

    name: str
    service: str
    running: bool
    healthy: bool
    started_at: str
    detail: dict[str, Any]

    @property
    def interval_seconds(self) -> float:
        """Between two checks of its health; 0: it has none."""
        check = self.detail["Config"].get("Healthcheck") or {}
        return float(check.get("Interval", 0)) / SECOND_NS


class Project:
    """The containers of compose.yaml in a folder, under a name of their own."""

    def __init__(self, program: str, compose: Sequence[str], folder: Path, name: str, environ: dict[str, str]) -> None:
        self.program = program
        self._compose = [*compose, "--project-name", name]
        self._folder = folder
        self._name = name
        self._environ = environ

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the folder; its output. Raises Failed with its last words."""
        try:
            done = subprocess.run(
                command, cwd=self._folder, env=self._environ, capture_output=True, timeout=COMMAND_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{shlex.join(command)} has not ended after {COMMAND_SECONDS:.0f} s") from None
        if check and done.returncode:
            words = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise Failed(f"{shlex.join(command)} ended with {done.returncode}:\n{words[-3000:]}")
        return done.stdout.decode(errors="replace")

    def compose(self, *arguments: str, check: bool = True) -> str:
        return self.run(*self._compose, *arguments, check=check)

    def engine(self, *arguments: str, check: bool = True) -> str:
        return self.run(self.program, *arguments, check=check)

    def containers(self) -> list[Container]:
        label = f"label=com.docker.compose.project={self._name}"
        names = self.engine("ps", "--all", "--quiet", "--filter", label).split()
        if not names:
            return []
        # One that goes away in between is left out.
        found = self.engine("inspect", "--type", "container", *names, check=False)
        return [container_of(detail) for detail in json.loads(found or "[]")]

    def container(self, service: str) -> Container:
        for container in self.containers():
            if container.service == service:
                return container
        raise Failed(f"There is no container of {service}.")

    def wait(self, what: str, is_so: Callable[[], bool], seconds: float = WAIT_SECONDS) -> float:
        """Seconds until something is so. Raises Failed when it does not come about."""
        started = time.monotonic()
        while not is_so():
            if time.monotonic() - started > seconds:
                ill = "\n".join(f"{c.service}: {c.detail['State']}" for c in self.containers() if not c.healthy)
                logs = self.compose("logs", "--tail=40", check=False)
                raise Failed(f"{what}: not after {seconds:.0f} s\n{ill}\n{logs[-6000:]}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - started

    def wait_healthy(self) -> float:
        return self.wait("all containers are healthy", lambda: all(c.running and c.healthy for c in self.containers()))

    def lose(self, service: str) -> None:
        """Kill a container at once and for good."""
        name = self.container(service).name
        self.engine("kill", name)
        self.engine("rm", "--force", name)

    def crash(self, service: str) -> float:
        """SIGKILL to all that runs in a container but its init; seconds until the engine has started it again."""
        before = self.container(service)
        self.engine("exec", before.name, "sh", "-c", "kill -9 -1", check=False)
        return self.wait(f"{service} is started again", lambda: self._is_another(service, before.started_at))

    def _is_another(self, service: str, started_at: str) -> bool:
        now = self.container(service)
        return now.running and now.started_at != started_at

    def left(self) -> str:
        """Whatever of the project is still there."""
        label = f"label=com.docker.compose.project={self._name}"
        found = self.engine("ps", "--all", "--quiet", "--filter", label)
        found += self.engine("volume", "ls", "--quiet", "--filter", f"name=^{self._name}_")
        found += self.engine("network", "ls", "--quiet", "--filter", f"name=^{self._name}_")
        return found.strip()


def container_of(detail: dict[str, Any]) -> Container:
    """A container from what `inspect` says of it."""
    state = detail["State"]
    check = detail["Config"].get("Healthcheck")
    health = (state.get("Health") or {}).get("Status", "")
    return Container(
        name=detail["Name"].lstrip("/"),
        service=detail["Config"]["Labels"]["com.docker.compose.service"],
        running=state["Status"] == "running",
        healthy=not check or health == "healthy",
        started_at=str(state["StartedAt"]),
        detail=detail,
    )


@contextmanager
def opened(folder: Path, name: str) -> Iterator[Project]:
    """The project of a folder that has a compose.yaml, on Docker where its engine answers, or else on podman.

    COMPOSE names another command than `docker compose`, or `docker-compose` for podman. Raises NoEngine.
    """
    # Settings of this shell would win over those of the folder's .env.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LTXTRAIN_", "COMPOSE_", "RAY_"))}
    if _answers(["docker", "info"]):
        compose = _compose_command(["docker", "compose"], ["docker-compose"])
        yield Project("docker", compose, folder, name, environ)
        return
    if not _answers(["podman", "info"]):
        raise NoEngine("neither a Docker engine nor podman answers here")
    compose = _compose_command(["docker-compose"], ["docker", "compose"])
    socket = folder / "podman.sock"
    server = subprocess.Popen(
        ["podman", "system", "service", "--time=0", f"unix://{socket}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    project = Project("podman", compose, folder, name, environ | {"DOCKER_HOST": f"unix://{socket}"})
    ended = threading.Event()
    checks = threading.Thread(target=_check_health, args=(project, ended), daemon=True)
    try:
        while not socket.exists():
            if server.poll() is not None:
                raise NoEngine("`podman system service` does not start")
            time.sleep(0.1)
        # podman leaves the checks to timers of systemd.
        if not Path("/run/systemd/system").exists():
            checks.start()
        yield project
    finally:
        ended.set()
        if checks.ident is not None:
            checks.join()
        server.terminate()
        server.wait()


def _check_health(project: Project, ended: threading.Event) -> None:
    last: dict[str, float] = {}
    while not ended.wait(POLL_SECONDS):
        try:
            for container in project.containers():
                interval = container.interval_seconds
                due = time.monotonic() - last.get(container.started_at, 0.0) >= interval
                if container.running and interval and due and not ended.is_set():
                    project.engine("healthcheck", "run", container.name, check=False)
                    last[container.started_at] = time.monotonic()
        except Failed:
            continue


def _compose_command(*known: list[str]) -> list[str]:
    named = os.environ.get("COMPOSE")
    for command in [shlex.split(named)] if named else known:
        if _answers([*command, "version"]):
            return command
    raise NoEngine("Compose (v2.24 or newer) is not installed: no `docker compose` and no `docker-compose`")


def _answers(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
