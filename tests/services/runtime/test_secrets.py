import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client.backoff import Backoff

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.telemetry import JsonLines, without_secrets
from ltxtrain_services.runtime.work import Attempt, Retryable, WorkRunner
from tests.services.runtime.front import serving

TOKEN, WRONG_TOKEN, SERVICE_TOKEN = "tok-ann-5ecret", "tok-wrong-5ecret", "tok-service-5ecret"
PRESIGNED = (
    "https://store.example.com/ltxtrain/jobs/1/lora.safetensors?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=key-5ecret%2F20260101&X-Amz-Signature=0123456789abcdef5ecret"
)
WITH_PASSWORD = "https://ann:pass-5ecret@example.com/clips.zip"
# As urllib3 words it: a path with its query, without a scheme.
BROKEN = f"Max retries exceeded with url: {PRESIGNED.split('.com')[1]} (Caused by NewConnectionError)"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The log of the whole process at its most talkative, as operators get it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.removeHandler(handler)
    root.setLevel(level)


async def test_no_secret_of_any_call_is_logged(
    database: Database, tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann {TOKEN}\n")
    settings = Settings(tokens_file=tokens, service_token=SERVICE_TOKEN)
    raised = [
        RuntimeError(f"GET {PRESIGNED} failed"),
        RuntimeError(BROKEN),
        RuntimeError(f"{{'authorization': 'Bearer {TOKEN}'}}"),
        errors.NotReady(f"{WITH_PASSWORD} is not ready"),
        Retryable(f"PUT {PRESIGNED}: connection reset"),
    ]
    async with serving(database, settings) as front:

        async def fail() -> None:
            raise raised[-1]

        front.book.estimate = fail
        ann = front.stub(token=TOKEN)
        job = await ann.create(spec={"extend_prefix": {"training_data_url": PRESIGNED}})
        await ann.create(spec={"extend_prefix": {"training_data_url": WITH_PASSWORD}})
        await front.book.finish(job.name)
        assert [response.sequence async for response in ann.watch(job.name)] == [1, 2]
        assert await front.stub(token=SERVICE_TOKEN, owner="ann").list()
        with pytest.raises(grpc.aio.AioRpcError):
            await front.stub(token=WRONG_TOKEN).list()
        while raised:
            with pytest.raises(grpc.aio.AioRpcError):
                await ann.estimate()
            raised.pop()
    written = lines()
    assert len([line for line in written if line["message"].startswith(("unforeseen", "refused"))]) >= 6
    assert any("store.example.com/ltxtrain/jobs/1" in json.dumps(line) for line in written)
    assert [line for line in written if "5ecret" in json.dumps(line)] == []


async def test_no_secret_of_any_work_is_logged(
    jobs: Store[Job], lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxtrain_services.runtime.work.BACKOFF", Backoff(first_seconds=0.0001))
    raised: list[Exception] = [RuntimeError(f"GET {PRESIGNED} failed"), Retryable(BROKEN)]

    class Failing:
        async def run(self, attempt: Attempt[Job]) -> Any:
            raise raised.pop()

        async def salvage(self, attempt: Attempt[Job]) -> Any:
            return lambda edit: None

    await jobs.create(Job(name="jobs/1"), owner="ann", request_id="", digest=b"")
    WorkRunner(jobs, Failing()).start("jobs/1")
    async for _ in jobs.log.follow("jobs/1", 0):
        pass
    about = [line for line in lines() if line.get("resource") == "jobs/1"]
    assert [line["message"].split(":")[0] for line in about] == ["trying again in 0 s", "unforeseen"]
    assert "5ecret" not in json.dumps(lines())
    assert about[1]["trace_id"] in str((await jobs.get("jobs/1")).lifecycle.error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"see {PRESIGNED}, please", "see https://store.example.com/ltxtrain/jobs/1/lora.safetensors?… please"),
        (WITH_PASSWORD, "https://…@example.com/clips.zip"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer …"),
        ("postgresql+psycopg://ltxtrain:secret@db/train", "postgresql+psycopg://…@db/train"),
        ("(https://example.com/a?b=c) and (d)", "(https://example.com/a?…) and (d)"),
        ("an ordinary line: 12 of 30 clips, 4 s?", "an ordinary line: 12 of 30 clips, 4 s?"),
    ],
)
def test_what_may_be_secret_is_taken_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
