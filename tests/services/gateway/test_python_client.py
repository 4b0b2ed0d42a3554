"""The hosted endpoint's own Python client, unchanged, against a gateway: only its host and its authority are ours."""

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_services.runtime.errors import FailedPrecondition
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Attempt, Ending
from tests.services.gateway.conftest import TOKENS
from tests.services.gateway.receiver import Receiver
from tests.services.gateway.running import (
    SIZE,
    Suite,
    file_of,
    leave_the_line,
    succeed,
    train_steps,
    wait_in_line,
)

APP = "fal-ai/ltx23-trainer-v2/extend-prefix"
SHEET = {"training_data_url": "https://example.com/clips.zip", "number_of_steps": 100}


@pytest.fixture(scope="session")
def library(secure: Suite) -> Iterator[Any]:
    """The module, which reads its host when it is imported."""
    assert secure.settings.tokens_file is not None
    names = {
        "FAL_QUEUE_RUN_HOST": f"localhost:{secure.port}",
        "SSL_CERT_FILE": str(secure.settings.tokens_file.parent / "authority.pem"),
        "NO_PROXY": "localhost",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        assert "fal_client" not in sys.modules
        import fal_client

        yield fal_client
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture
def ann(library: Any) -> Any:
    return library.AsyncClient(key=TOKENS["ann"])


@pytest.fixture
def bob(library: Any) -> Any:
    return library.AsyncClient(key=TOKENS["bob"])


async def test_subscribe_with_logs(secure: Suite, library: Any, ann: Any) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await wait_in_line(attempt, 3)
        await gates[0].wait()
        await leave_the_line(attempt)
        await train_steps(attempt)
        await gates[1].wait()
        return await succeed(attempt)

    secure.train.play = play
    enqueued: list[str] = []
    seen: list[Any] = []

    def update(status: Any) -> None:
        seen.append(status)
        if isinstance(status, library.Queued) and status.position == 3:
            gates[0].set()
        if isinstance(status, library.InProgress) and any("step 5/5" in line["message"] for line in status.logs):
            gates[1].set()

    result = await ann.subscribe(
        APP, SHEET, with_logs=True, interval=0.02, on_enqueue=enqueued.append, on_queue_update=update
    )
    assert [type(status) for status in seen if isinstance(status, library.Completed)] == [library.Completed]
    done = seen[-1]
    messages = [line["message"] for line in done.logs]
    assert "queue: waiting for its turn on the CPU, 3 jobs ahead" in messages
    assert "train: step 1/5: loss 1.0000, 1 min 20 s left" in messages
    assert {line["level"] for line in done.logs} == {"INFO"}
    assert all(line["timestamp"].endswith("Z") and line["source"] == "USER" for line in done.logs)
    assert done.error is None and done.metrics["inference_time"] >= 0
    job = f"jobs/{enqueued[0]}"
    assert result["lora_file"] == {
        "url": result["lora_file"]["url"],
        "content_type": "application/octet-stream",
        "file_name": "lora.safetensors",
        "file_size": SIZE,
    }
    assert f"{job}/lora.safetensors" in result["lora_file"]["url"]
    assert result["config_file"]["content_type"] == "application/json"
    assert result["video"] is None and result["debug_dataset"] is None


async def test_the_blocking_client_submits_polls_and_reads(secure: Suite, library: Any) -> None:
    """From a thread of its own, as a program without an event loop has it."""

    def program() -> tuple[Any, ...]:
        client = library.SyncClient(key=TOKENS["ann"])
        handle = client.submit(APP, SHEET)
        statuses = list(handle.iter_events(with_logs=True, interval=0.02))
        again = client.status(APP, handle.request_id)
        return statuses, again, handle.get(), client.result(APP, handle.request_id)

    statuses, again, first, second = await asyncio.to_thread(program)
    assert isinstance(statuses[-1], library.Completed) and isinstance(again, library.Completed)
    assert again.logs is None
    assert first["lora_file"]["file_name"] == second["lora_file"]["file_name"]


async def test_cancel(secure: Suite, library: Any, ann: Any) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await train_steps(attempt)
        await asyncio.Event().wait()
        raise AssertionError

    secure.train.play = play
    handle = await ann.submit(APP, SHEET)
    await handle.cancel()
    async for status in handle.iter_events(interval=0.02):
        last = status
    assert (last.error, last.error_type) == ("The request was cancelled.", "client_cancelled")
    with pytest.raises(library.FalClientHTTPError) as caught:
        await handle.get()
    assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")
    with pytest.raises(library.FalClientHTTPError) as caught:
        await handle.cancel()
    assert caught.value.status_code == 400


async def test_a_refused_request_tells_every_fault_at_once(library: Any, ann: Any) -> None:
    wrong = {
        "number_of_steps": 5,
        "rank": "32",
        "steps": 100,
        "validation": [{"prompt": "p", "video_url": "ftp://example.com/a.mp4"}],
    }
    with pytest.raises(library.FalClientHTTPError) as caught:
        await ann.submit(APP, wrong, webhook_url="https://10.0.0.1/hook")
    assert caught.value.status_code == 422 and caught.value.error_type == "bad_request"
    found: Any = caught.value.message
    assert {tuple(item["loc"]): (item["type"], item["reason"]) for item in found} == {
        ("body", "training_data_url"): ("missing", "FIELD_REQUIRED"),
        ("body", "number_of_steps"): ("value_error", "FIELD_OUT_OF_RANGE"),
        ("body", "rank"): ("value_error", "INVALID_SPEC"),
        ("body", "steps"): ("value_error", "INVALID_SPEC"),
        ("body", "validation", 0, "video_url"): ("value_error", "URL_NOT_ALLOWED"),
        ("query", "fal_webhook"): ("value_error", "URL_NOT_ALLOWED"),
    }
    assert all(item["msg"] for item in found)


async def test_a_webhook(secure: Suite, ann: Any, receiver: Receiver) -> None:
    handle = await ann.submit(APP, SHEET, webhook_url=receiver.url("/from-the-client"))
    message = await receiver.message("/from-the-client")
    assert message.document["request_id"] == message.document["gateway_request_id"] == handle.request_id
    assert message.document["status"] == "OK" and message.headers["X-Fal-Webhook-User-Id"] == "ann"
    taken, given = message.document["payload"], await handle.get()
    assert {name: file and file["file_name"] for name, file in taken.items()} == {
        name: file and file["file_name"] for name, file in given.items()
    }


async def test_a_failed_job(secure: Suite, library: Any, ann: Any) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        raise FailedPrecondition(
            ErrorReason.ERROR_REASON_ALL_CLIPS_TOO_SHORT,
            "All training videos are too short to be trainable.",
            subjects=[("a.mp4", "61 frames, 89 needed")],
            kind="CLIP_TOO_SHORT",
        )

    secure.train.play = play
    handle = await ann.submit(APP, SHEET)
    async for status in handle.iter_events(with_logs=True, interval=0.02):
        last = status
    assert last.error == "All training videos are too short to be trainable." and last.error_type == "bad_request"
    assert last.logs[-1]["level"] == "ERROR" and "a.mp4" in last.logs[-1]["message"]
    with pytest.raises(library.FalClientHTTPError) as caught:
        await handle.get()
    detail: Any = caught.value.message
    assert caught.value.status_code == 422
    assert [item["reason"] for item in detail] == ["ALL_CLIPS_TOO_SHORT", "CLIP_TOO_SHORT"]
    assert detail[1]["ctx"] == {"subject": "a.mp4"} and detail[1]["loc"] == ["body", "training_data_url"]


async def test_a_fault_of_ours_is_no_fault_of_the_caller(secure: Suite, library: Any, ann: Any) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        raise RuntimeError("a secret place in the code")

    secure.train.play = play
    handle = await ann.submit(APP, SHEET)
    with pytest.raises(library.FalClientHTTPError) as caught:
        await handle.get(interval=0.02)
    assert (caught.value.status_code, caught.value.error_type) == (500, "internal_error")
    assert "secret" not in caught.value.response.text


async def test_owners_stay_apart(library: Any, ann: Any, bob: Any) -> None:
    handle = await ann.submit(APP, SHEET)
    for call in (bob.status(APP, handle.request_id), bob.result(APP, handle.request_id)):
        with pytest.raises(library.FalClientHTTPError) as caught:
            await call
        assert caught.value.status_code == 404
    with pytest.raises(library.FalClientHTTPError) as caught:
        await bob.cancel(APP, handle.request_id)
    assert caught.value.status_code == 404
    assert (await handle.get(interval=0.02))["lora_file"]


async def test_a_key_that_nobody_has(library: Any) -> None:
    with pytest.raises(library.FalClientHTTPError) as caught:
        await library.AsyncClient(key="carol:unknown").submit(APP, SHEET)
    assert caught.value.status_code == 401


async def test_a_repeated_submit_is_one_job(library: Any, ann: Any, bob: Any) -> None:
    key = {"Idempotency-Key": "order 66"}
    first = await ann.submit(APP, SHEET, headers=key)
    again = await ann.submit(APP, SHEET, headers=key)
    assert first.request_id == again.request_id
    assert (await bob.submit(APP, SHEET, headers=key)).request_id != first.request_id
    with pytest.raises(library.FalClientHTTPError) as caught:
        await ann.submit(APP, SHEET | {"rank": 64}, headers=key)
    detail: Any = caught.value.message
    assert caught.value.status_code == 422 and detail[0]["loc"] == ["header", "Idempotency-Key"]


async def test_the_reel_is_a_file_too(secure: Suite, ann: Any) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        ending = await succeed(attempt)

        def with_reel(edit: Edit[Job]) -> None:
            ending(edit)
            reel = file_of(edit.body.name, "reel.mp4", Artifact.KIND_VALIDATION_REEL)
            edit.put_child("artifacts", "reel.mp4", reel)
            edit.body.output.video = reel.name

        return with_reel

    secure.train.play = play
    result = await ann.subscribe(APP, SHEET, interval=0.02)
    assert result["video"]["content_type"] == "video/mp4" and result["video"]["file_name"] == "reel.mp4"
