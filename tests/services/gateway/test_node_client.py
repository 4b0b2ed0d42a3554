"""The hosted endpoint's own JavaScript client, unchanged, against a gateway: see node/client.mjs."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_services.runtime.errors import FailedPrecondition
from ltxtrain_services.runtime.work import Attempt, Ending
from tests.services.gateway.conftest import TOKENS
from tests.services.gateway.running import Suite, leave_the_line, succeed, train_steps, wait_in_line

PROGRAM = Path(__file__).parent / "node"
Scenario = Callable[[str], Awaitable[Any]]

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with its one dependency, at the version and the digest of its lockfile."""
    folder = tmp_path_factory.mktemp("node") / "program"
    shutil.copytree(PROGRAM, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(["npm", "ci", "--no-progress"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return folder / "client.mjs"


@pytest.fixture
def scenario(secure: Suite, program: Path) -> Scenario:
    """Run one scenario of the program; what it prints."""
    assert secure.settings.tokens_file is not None
    environment = os.environ | {
        "GATEWAY": f"https://localhost:{secure.port}",
        "NODE_EXTRA_CA_CERTS": str(secure.settings.tokens_file.parent / "authority.pem"),
        "ANN": TOKENS["ann"],
        "BOB": TOKENS["bob"],
    }

    async def run(name: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            "node", str(program), name, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    return run


def test_the_lockfile_names_digests_and_no_addresses() -> None:
    packages = json.loads((PROGRAM / "package-lock.json").read_text())["packages"]
    installed = [package for path, package in packages.items() if path]
    assert installed and all(package["integrity"].startswith("sha512-") for package in installed)
    assert not any("resolved" in package or package.get("hasInstallScript") for package in installed)


def messages(update: Any) -> list[str]:
    return [line["message"] for line in update["logs"]]


@pytest.mark.parametrize("mode", ["polling", "streaming"])
async def test_subscribe_with_logs(secure: Suite, scenario: Scenario, mode: str) -> None:
    result = await scenario(mode)
    updates = result["updates"]
    assert updates[-1]["status"] == "COMPLETED"
    told = messages(updates[-1])
    assert len(set(told)) == len(told) and "train: step 5/5: loss 0.2000, 0 s left" in told
    data = result["result"]["data"]
    assert data["lora_file"]["file_name"] == "lora.safetensors" and data["video"] is None
    assert result["result"]["requestId"] == updates[-1]["request_id"]


async def test_the_stream_of_statuses(secure: Suite, scenario: Scenario) -> None:
    """The place in the line, then each log line once, then the end."""

    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await wait_in_line(attempt, 2)
        await secure.train.go.wait()
        await leave_the_line(attempt)
        await train_steps(attempt)
        return await succeed(attempt)

    secure.train.play = play
    # Its stream is a watch of the service, which the job waits for.
    secure.train.on_watch = secure.train.go.set
    seen = (await scenario("stream"))["seen"]
    assert [update["queue_position"] for update in seen if update["status"] == "IN_QUEUE"][-1] == 2
    assert seen[-1]["status"] == "COMPLETED"
    told = [message for update in seen for message in messages(update)]
    assert told.count("train: step 1/5: loss 1.0000, 1 min 20 s left") == 1
    assert told[-1] == "job: succeeded"


async def test_a_refused_request(scenario: Scenario) -> None:
    fault = (await scenario("refused"))["fault"]
    assert (fault["name"], fault["status"]) == ("ValidationError", 422)
    assert {tuple(item["loc"]): item["reason"] for item in fault["fields"]} == {
        ("body", "training_data_url"): "FIELD_REQUIRED",
        ("body", "number_of_steps"): "FIELD_OUT_OF_RANGE",
        ("body", "validation", 0, "video_url"): "URL_NOT_ALLOWED",
        ("query", "fal_webhook"): "URL_NOT_ALLOWED",
    }


async def test_a_failed_job(secure: Suite, scenario: Scenario) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        text = "All training videos are too short to be trainable."
        raise FailedPrecondition(ErrorReason.ERROR_REASON_ALL_CLIPS_TOO_SHORT, text)

    secure.train.play = play
    found = await scenario("failed")
    assert found["ended"]["status"] == "COMPLETED"
    assert found["ended"]["error"] == "All training videos are too short to be trainable."
    assert found["fault"]["status"] == 422 and found["fault"]["fields"][0]["reason"] == "ALL_CLIPS_TOO_SHORT"


async def test_cancel_and_foreign_owners(secure: Suite, scenario: Scenario) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await asyncio.Event().wait()
        raise AssertionError

    secure.train.play = play
    found = await scenario("cancelled")
    assert found["foreign"]["status"] == 404
    assert found["ended"]["error_type"] == "client_cancelled"
    assert found["fault"]["status"] == 499
