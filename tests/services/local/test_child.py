"""A supervised child: its log has an end, whether it talks for ever or ends again and again."""

import os
import sys
import time
from pathlib import Path

import pytest
from ltxtrain_client.backoff import Backoff

from ltxtrain_services.local import child as module
from ltxtrain_services.local.child import Child

LIMIT = 200_000
FOR_EVER = "import time\nfor number in range(10**9):\n    print('x' * 10_000, flush=True); time.sleep(0.002)"
AGAIN_AND_AGAIN = "print('x' * 100_000)"


@pytest.mark.parametrize("program", [FOR_EVER, AGAIN_AND_AGAIN], ids=["for ever", "again and again"])
def test_a_log_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(module, "MAX_LOG_BYTES", LIMIT)
    monkeypatch.setattr(module, "LOG_SECONDS", 0.02)
    monkeypatch.setattr(module, "BACKOFF", Backoff(first_seconds=0.001, last_seconds=0.002))
    log, older = tmp_path / "child.log", tmp_path / "child.old.log"
    command = [sys.executable, "-c", program]
    child = Child("It", command, environ=dict(os.environ), log_path=log, cwd=tmp_path).start()
    try:
        turns, last, deadline = 0, -1, time.monotonic() + 60
        while turns < 3 and time.monotonic() < deadline:
            if older.exists() and (changed := older.stat().st_mtime_ns) != last:
                turns, last = turns + 1, changed
            time.sleep(0.005)
    finally:
        child.stop(5.0)
    assert turns == 3
    # What is written between two looks at it is beyond the limit; without an end it would be all of it.
    assert log.stat().st_size < 5 * LIMIT and older.stat().st_size < 5 * LIMIT
