"""The clocks that sweeps go by: this machine's and the object store's."""

import time
from datetime import UTC, datetime

import pytest

from ltxtrain_services.runtime.objects import ObjectStore


def set_clocks(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have both show a time, in seconds since the epoch."""

    async def now(store: ObjectStore) -> datetime:
        return datetime.fromtimestamp(seconds, UTC)

    monkeypatch.setattr(time, "time", lambda: seconds)
    monkeypatch.setattr(ObjectStore, "now", now)
