"""Times every callback of every event loop of a process that has this folder on its path, for the soak of attacks.

Once a second the slowest are written to $CALLBACK_TIMES/{pid}.json: milliseconds of the thread's own CPU time and by
the clock, and where the callback was seen meanwhile. The clock counts what others did to a busy machine. What was
before the file `reset` was made there is forgotten: imports, and the opening of databases.
"""

import asyncio.events
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

# Callbacks that took longer than this are told by where they were.
SLOW_MS = 15.0
KEPT = 12

_folder = os.environ.get("CALLBACK_TIMES")


def _install(folder: Path) -> None:
    slowest: list[dict[str, Any]] = []
    running: dict[str, Any] = {"began": 0.0, "thread": 0, "seen": ""}
    run = asyncio.events.Handle._run
    counted = [0]

    def timed(self: Any) -> None:
        began, cpu_began = time.perf_counter(), time.thread_time()
        running.update(began=began, thread=threading.get_ident(), seen="")
        try:
            run(self)
        finally:
            running["began"] = 0.0
            cpu_ms = 1000 * (time.thread_time() - cpu_began)
            counted[0] += 1
            if cpu_ms > SLOW_MS and (len(slowest) < KEPT or cpu_ms > slowest[-1]["cpu_ms"]):
                ms = 1000 * (time.perf_counter() - began)
                slowest.append({"cpu_ms": cpu_ms, "ms": ms, "what": repr(self)[:200], "seen": running["seen"]})
                slowest.sort(key=lambda found: -found["cpu_ms"])
                del slowest[KEPT:]

    asyncio.events.Handle._run = timed  # type: ignore[method-assign]

    def look() -> None:
        while True:
            time.sleep(0.005)
            began, frame = running["began"], sys._current_frames().get(running["thread"])
            if began and frame is not None and 1000 * (time.perf_counter() - began) > SLOW_MS:
                running["seen"] = "".join(traceback.format_stack(frame, limit=16))[-2_500:]

    def write() -> None:
        path, written, forgotten = folder / f"{os.getpid()}.json", -1, False
        while True:
            time.sleep(1.0)
            if not forgotten and (folder / "reset").exists():
                forgotten = True
                slowest.clear()
            if counted[0] != written:
                written = counted[0]
                part = path.with_suffix(".part")
                part.write_text(json.dumps({"callbacks": written, "slowest": slowest}))
                part.replace(path)

    for work in (look, write):
        threading.Thread(target=work, name="callback times", daemon=True).start()


if _folder:
    _install(Path(_folder))
