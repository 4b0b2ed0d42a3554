"""Messages about the end of a job: whom they may reach, what they say, what a restart or a dead receiver changes."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client import InvalidArgument, TrainClient, connect, parse_sheet
from ltxtrain_client.backoff import Backoff

from ltxtrain_services.runtime.dial import Dialler, Refused
from ltxtrain_services.runtime.errors import FailedPrecondition
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.work import Attempt, Ending
from ltxtrain_services.train import webhooks
from ltxtrain_services.train.webhooks import webhook_refusal
from tests.services.gateway.receiver import SECONDS, Receiver, verified
from tests.services.gateway.running import Suite, running, succeed
from tests.suite.random_requests import ODD_URLS

APP = "/fal-ai/ltx23-trainer-v2/extend-prefix"
SHEET = {"training_data_url": "https://example.com/clips.zip"}
SECRET = "a-secret-of-the-receiver"
NOW = Backoff(first_seconds=0.01, last_seconds=0.01)


def settings(receiver: Receiver) -> Settings:
    return Settings(fetch_allow=(receiver.host,), grace_seconds=1.0)


async def submit(suite: Suite, url: str) -> str:
    """The name of a job that the hosted endpoint's protocol started."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(suite.url + APP, json=SHEET, params={"fal_webhook": url}) as answer,
    ):
        return f"jobs/{(await answer.json())['request_id']}"


async def read(suite: Suite, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(suite.url + path) as answer:
        return await answer.json()


async def settled(suite: Suite, name: str, tries: int = 0) -> Job:
    """The job, once nothing of it is to be sent any more, or so many tries were made."""
    async with connect(suite.train_address) as channel, asyncio.timeout(SECONDS):
        while True:
            job = await TrainClient(channel).get_job(name)
            if job.webhook.tries and (job.webhook.tries == tries or not job.webhook.HasField("next_try_time")):
                return job
            await asyncio.sleep(0.01)


async def test_a_message_outlives_the_process_and_tells_no_secret(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service ends twice: once in the middle of the job, once before the receiver has taken the message."""

    async def endless(attempt: Attempt[Job]) -> Ending[Job]:
        await asyncio.Event().wait()
        raise AssertionError

    caplog.set_level("DEBUG", logger="ltxtrain_services")
    path = f"/hooks/{SECRET}"
    async with running(tmp_path, settings(receiver)) as suite:
        suite.train.play = endless
        name = await submit(suite, receiver.url(path))
        keys = await read(suite, "/.well-known/jwks.json")
    assert receiver.is_empty(path)
    receiver.answers[path] = [500]
    async with running(tmp_path, settings(receiver)) as suite:
        await suite.train.work.resume()
        refused = await receiver.message(path)
        assert (await settled(suite, name, 1)).webhook.failure == "HTTP 500."
    async with running(tmp_path, settings(receiver)) as suite:
        suite.train.webhooks.pause = NOW
        await suite.train.work.resume()
        message = await receiver.message(path)
        job = await settled(suite, name)
        assert await read(suite, "/.well-known/jwks.json") == keys
        result = await read(suite, f"/fal-ai/ltx23-trainer-v2/requests/{name.removeprefix('jobs/')}")
        async with connect(suite.train_address) as channel:
            told = [event async for _, event in TrainClient(channel).watch_job(name)]
    assert message.is_signed_by(keys) and refused.is_signed_by(keys)
    assert not type(message)(message.headers, message.body + b" ").is_signed_by(keys)
    document = message.document
    assert (document["request_id"], document["status"], document["error"]) == (name.removeprefix("jobs/"), "OK", None)
    assert document["payload"].keys() == result.keys()
    assert document["payload"]["lora_file"].keys() == result["lora_file"].keys()
    assert job.webhook.origin == f"http://{receiver.host}" and job.webhook.tries == 2
    assert job.webhook.HasField("delivery_time") and not job.webhook.failure
    assert SECRET not in f"{job}{told}{caplog.text}"
    assert "HTTP 500" in caplog.text


async def test_it_is_sent_again_until_it_is_taken_and_nowhere_else(receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers["/again"] = [500, 307, 404]
    async with running(tmp_path, settings(receiver)) as suite:
        suite.train.webhooks.pause = NOW
        job = await settled(suite, await submit(suite, receiver.url("/again")))
        messages = [await receiver.message("/again") for _ in range(4)]
    assert len({message.headers["X-Fal-Webhook-Request-Id"] for message in messages}) == 1
    assert receiver.is_empty("/again") and receiver.is_empty("/elsewhere")
    assert job.webhook.tries == 4


async def test_a_dead_receiver_changes_no_result(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TRIES", 2)
    # Nobody listens there.
    closed = "127.0.0.1:9"
    async with running(tmp_path, Settings(fetch_allow=(closed,), grace_seconds=1.0)) as suite:
        suite.train.webhooks.pause = NOW
        job = await settled(suite, await submit(suite, f"http://{closed}/hook"))
        assert await suite.train._jobs.outbox(StringValue) == {}
        async with connect(suite.train_address) as channel:
            client = TrainClient(channel)
            events = [event async for _, event in client.watch_job(job.name)]
    assert job.lifecycle.state == State.STATE_SUCCEEDED and job.output.lora_file
    assert events[-1].lifecycle.state == State.STATE_SUCCEEDED and len(events) == job.lifecycle.last_sequence
    assert job.webhook.tries == 2 and "could not be reached" in job.webhook.failure
    assert not job.webhook.HasField("delivery_time")


async def test_other_ends_are_told_as_the_endpoint_answers_them(receiver: Receiver, tmp_path: Path) -> None:
    async def fail(attempt: Attempt[Job]) -> Ending[Job]:
        text = "All training videos are too short to be trainable."
        raise FailedPrecondition(ErrorReason.ERROR_REASON_ALL_CLIPS_TOO_SHORT, text, subjects=[("a.mp4", "61 frames")])

    async def endless(attempt: Attempt[Job]) -> Ending[Job]:
        await asyncio.Event().wait()
        raise AssertionError

    async with running(tmp_path, settings(receiver)) as suite:
        suite.train.play = fail
        failed = await submit(suite, receiver.url("/failed"))
        documents = {failed: (await receiver.message("/failed")).document}
        suite.train.play = endless
        cancelled = await submit(suite, receiver.url("/cancelled"))
        async with connect(suite.train_address) as channel:
            await TrainClient(channel).cancel_job(cancelled)
        documents[cancelled] = (await receiver.message("/cancelled")).document
        for name, document in documents.items():
            answer = await read(suite, f"/fal-ai/ltx23-trainer-v2/requests/{name.removeprefix('jobs/')}")
            assert document["status"] == "ERROR" and document["payload"] == answer
            assert document["error"] == answer["message"]
    assert documents[failed]["payload"]["detail"][1]["ctx"] == {"subject": "a.mp4"}
    assert documents[cancelled]["payload"]["error_type"] == "client_cancelled"


async def test_what_is_missing_is_told_in_place_of_the_result(receiver: Receiver, tmp_path: Path) -> None:
    async def forgetful(attempt: Attempt[Job]) -> Ending[Job]:
        ending = await succeed(attempt)

        def without_config(edit: Any) -> None:
            ending(edit)
            edit.drop_child("artifacts", "config.json")

        return without_config

    async with running(tmp_path, settings(receiver)) as suite:
        suite.train.play = forgetful
        await submit(suite, receiver.url("/missing"))
        document = (await receiver.message("/missing")).document
    assert document["status"] == "OK" and document["payload"] is None
    assert "config.json" in document["payload_error"]


async def test_a_deleted_job_is_not_told_of(receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers["/deleted"] = [500]
    async with running(tmp_path, settings(receiver)) as suite:
        name = await submit(suite, receiver.url("/deleted"))
        await receiver.message("/deleted")
        await suite.train._jobs.delete(name)
        assert await suite.train._jobs.outbox(StringValue) == {}
    assert receiver.is_empty("/deleted")


ALLOW = ("hooks.internal:80", "127.0.0.1:8080")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/hook?token=1", ""),
        ("http://hooks.internal/hook", ""),
        ("http://127.0.0.1:8080/hook", ""),
        ("http://example.com/hook", "by https"),
        ("http://hooks.internal/hook?token=1", "may hold a token"),
        ("https://127.0.0.1/hook", "not a public address"),
        ("https://[::ffff:10.0.0.1]/hook", "not a public address"),
        ("https://localhost/hook", "this machine"),
        ("https://example.com:8443/hook", "Port 8443"),
        ("https://user:password@example.com/hook", "password"),
        ("https://example.com/a\r\nX: y", "control characters"),
        (f"https://example.com/{'x' * 9000}", "longer"),
        ("ftp://example.com/", "scheme"),
        ("upload:uploads/" + "0" * 32, "https"),
        ("s3://bucket/key", "https"),
        ("nothing", "scheme"),
    ],
)
def test_where_a_message_may_go(url: str, words: str) -> None:
    refusal = webhook_refusal(url, ALLOW)
    assert words in (refusal or "") and bool(refusal) is bool(words)
    assert "pload the file" not in (refusal or "")


async def test_an_address_is_refused_with_the_rest_of_the_request(suite: Suite) -> None:
    """By gRPC as by the gateway."""
    async with aiohttp.ClientSession() as session:
        params = {"fal_webhook": "http://169.254.169.254/latest"}
        async with session.post(suite.url + APP, json={"rank": 7}, params=params) as answer:
            found = {tuple(item["loc"]): item["reason"] for item in (await answer.json())["detail"]}
    assert found[("query", "fal_webhook")] == "URL_NOT_ALLOWED" and found[("body", "rank")] == "FIELD_NOT_ALLOWED"
    async with connect(suite.train_address) as channel:
        sheet = parse_sheet(SHEET)
        for url in ("https://10.0.0.1/", *ODD_URLS):
            with pytest.raises(InvalidArgument) as caught:
                await TrainClient(channel).submit(sheet.spec, webhook_url=url)
            assert [violation.field for violation in caught.value.violations] == ["webhook_url"], url


async def test_a_name_that_leads_inside_is_not_dialled() -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["10.0.0.1"]

    dialler = Dialler(Settings(), lookup)
    with pytest.raises(Refused):
        async with contextlib.aclosing(_posted(dialler)) as answers:
            await anext(answers)


async def _posted(dialler: Dialler) -> Any:
    async with dialler.post("https://hooks.example/", {}, b"{}") as answer:
        yield answer.status


def test_the_check_of_signatures_knows_the_standards_vectors() -> None:
    """RFC 8032, 7.1, test 2."""
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert verified(public, b"\x72", signature) and not verified(public, b"\x73", signature)
