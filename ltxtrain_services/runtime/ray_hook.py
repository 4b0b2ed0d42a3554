"""The hook of `ray start`, here and in the image: RAY_START_HOOK=ltxtrain_services.runtime.ray_hook.trim.

It leaves out what this suite never uses, some 400 MB and 2 % of a core on a head at rest, and makes `ray start --block`
end with its raylet. As a program (python -I -S ray_hook.py ROLE …) it is a process of 6 MB that sleeps: `wait` is what
a blocking `ray start` becomes once Ray runs, the other two are the agents that a raylet must have.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

# Seconds that Ray's processes get to end before they are killed.
GRACE_SECONDS = 5
# No worker is started ahead or kept: only actors run here, and each has a process of its own that ends with it.
QUIET = {"RAY_prestart_worker_first_driver": "0", "RAY_num_workers_soft_limit": "0"}
PROGRAM = [sys.executable, "-I", "-S", __file__]
# Files in which a dashboard's agent tells where it listens.
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")


def trim(parameters: Any, head: bool) -> None:
    """Start no Ray Client server, no dashboard, and agents that sleep; with --block, wait in a small process."""
    from ray._private import services, utils

    parameters.ray_client_server_port = None
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    write_address = utils.write_ray_address

    def write_and_wait(*arguments: Any, **options: Any) -> None:
        # The last thing that `ray start` does before it blocks.
        write_address(*arguments, **options)
        if "--block" in sys.argv:
            sys.stdout.flush()
            sys.stderr.flush()
            # By the thread that started them: the kernel ends Ray's processes with that thread.
            os.execv(sys.executable, [*PROGRAM, "wait"])

    start_process = services.start_ray_process

    def start(command: list[str], *arguments: Any, **options: Any) -> Any:
        return start_process([with_small_agents(word) for word in command], *arguments, **options)

    services.start_ray_process = start
    # It runs without the extra ray[default] too, and has nothing to show then.
    services.start_api_server = lambda *arguments, **options: (None, None)
    utils.write_ray_address = write_and_wait


def with_small_agents(word: str) -> str:
    """An argument of a raylet's, with small processes in place of the agents of 120 MB that it would start."""
    option, _, command = word.partition("=")
    words = shlex.split(command) if option in ("--dashboard_agent_command", "--runtime_env_agent_command") else []
    if "--minimal" in words:
        # Without the extra ray[default] it serves nothing either.
        return f"{option}={subprocess.list2cmdline([*PROGRAM, 'nothing', *words])}"
    if option == "--runtime_env_agent_command":
        # Nothing in this suite asks for a runtime environment.
        return f"{option}={subprocess.list2cmdline([*PROGRAM, 'when-asked', *words])}"
    return word


def serve_nothing(command: list[str]) -> NoReturn:
    """Be an agent that says that it listens nowhere."""
    for name in AGENT_PORTS:
        tell_port(options_of(command), name, -1)
    # Its raylet holds the other end.
    sys.stdin.read()
    sys.exit(0)


def become_when_asked(command: list[str]) -> NoReturn:
    """Listen in the place of an agent, and become it at the first connection; a raylet tries again until it answers."""
    import select
    import socket

    options = options_of(command)
    address = options["node-ip-address"], options["runtime-env-agent-port"]
    family, *_, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    with socket.create_server(place, family=family) as server:
        port = server.getsockname()[1]
        tell_port(options, "runtime_env_agent_port", port)
        ready, _, _ = select.select([server, sys.stdin], [], [])
    if server not in ready:
        sys.exit(0)
    os.execv(command[0], [*command, f"--runtime-env-agent-port={port}"])


def options_of(command: list[str]) -> dict[str, str]:
    """The options of an agent's command that have a value."""
    return {name: value for word in command for name, mark, value in [word.lstrip("-").partition("=")] if mark}


def tell_port(options: dict[str, str], name: str, port: int) -> None:
    """Write the file in which a raylet looks for a port of its agent."""
    told = Path(options["session-dir"]) / f"{name}_{options['node-id']}"
    part = told.with_name(f"{told.name}.part")
    part.write_text(str(port))
    part.replace(told)


def wait() -> NoReturn:
    """Wait for the first of Ray's processes to end, or SIGTERM; end the others, and this one.

    `ray start --block` itself does so only after a crash. But a raylet one of whose agents is killed ends in good
    order, and would leave a head that looks alive and never runs an actor.
    """
    ours = children()
    stopping = False

    def end(number: int) -> None:
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        signal.alarm(GRACE_SECONDS)
        # First, and alone: it ends its workers, and tells the GCS.
        for pid, name in ours.items():
            if name == "raylet":
                os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGALRM, lambda *_: end(signal.SIGKILL))
    ended, _ = os.wait()
    while ended not in ours:
        ended, _ = os.wait()
    print(f"{ours.pop(ended)} ended", flush=True)
    signal.alarm(GRACE_SECONDS)
    end(signal.SIGTERM)
    while ours:
        ours.pop(os.wait()[0], None)
    sys.exit(0 if stopping else 1)


def children() -> dict[int, str]:
    """The children of this process, by process id, with their names."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, fields = (folder / "stat").read_text().rpartition(") ")
        except OSError:
            continue
        if int(fields.split()[1]) == os.getpid():
            found[int(folder.name)] = head.partition("(")[2]
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["nothing", *agent]:
            serve_nothing(agent)
        case ["when-asked", *agent]:
            become_when_asked(agent)
        case _:
            wait()
