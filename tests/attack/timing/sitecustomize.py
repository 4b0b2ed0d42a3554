"""Times every callback of every event loop of a process that has this folder on its path, for tests/attack/soak.

Once a second the longest is written to $CALLBACK_TIMES/{pid}.json: milliseconds by the clock and of the thread's own
CPU time, with what was called. The clock counts what others did to a busy machine meanwhile; CPU time does not.
"""

import asyncio.events
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

_folder = os.environ.get("CALLBACK_TIMES")


def _install(folder: Path) -> None:
    longest: dict[str, Any] = {"callbacks": 0, "ms": 0.0, "what": "", "cpu_ms": 0.0, "cpu_what": ""}
    run = asyncio.events.Handle._run

    def timed(self: Any) -> None:
        began, cpu_began = time.perf_counter(), time.thread_time()
        try:
            run(self)
        finally:
            spent, cpu_spent = 1000 * (time.perf_counter() - began), 1000 * (time.thread_time() - cpu_began)
            longest["callbacks"] += 1
            if spent > longest["ms"]:
                longest.update(ms=spent, what=repr(self)[:300])
            if cpu_spent > longest["cpu_ms"]:
                longest.update(cpu_ms=cpu_spent, cpu_what=repr(self)[:300])

    asyncio.events.Handle._run = timed  # type: ignore[method-assign]

    def write() -> None:
        path, written = folder / f"{os.getpid()}.json", -1
        while True:
            time.sleep(1.0)
            if longest["callbacks"] != written:
                written = longest["callbacks"]
                part = path.with_suffix(".part")
                part.write_text(json.dumps(longest))
                part.replace(path)

    threading.Thread(target=write, name="callback times", daemon=True).start()


if _folder:
    _install(Path(_folder))
