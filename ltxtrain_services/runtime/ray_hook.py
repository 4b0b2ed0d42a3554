"""The hook of `ray start`, here and in the image: RAY_START_HOOK=ltxtrain_services.runtime.ray_hook.trim.

It leaves out what this suite never uses, some 300 MB and 2 % of a core on a head at rest, and makes `ray start --block`
end with its raylet. As a program (python -I -S ray_hook.py) it is what a blocking `ray start` becomes once Ray runs:
a process of 6 MB that sleeps until one of Ray's processes ends.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

# Seconds that Ray's processes get to end before they are killed.
GRACE_SECONDS = 5
# No worker is started ahead or kept: only actors run here, and each has a process of its own that ends with it.
QUIET = {"RAY_prestart_worker_first_driver": "0", "RAY_num_workers_soft_limit": "0"}


def trim(parameters: Any, head: bool) -> None:
    """Start neither a Ray Client server nor the dashboard's process; with --block, wait in a small process."""
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
            os.execv(sys.executable, [sys.executable, "-I", "-S", __file__])

    # It runs without the extra ray[default] too, and has nothing to show then.
    services.start_api_server = lambda *arguments, **options: (None, None)
    utils.write_ray_address = write_and_wait


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
    wait()
