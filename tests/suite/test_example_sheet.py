"""The sheet's own example, unchanged but for its files, through both command lines to its end.

The demo's clips are shorter than it asks for, so that the end is near and costs nothing.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ltxtrain.v1.work_pb2 import Outcome, ReportReason, State
from ltxtrain_client.sheet import format_sheet

from ltxtrain_services.local.up import Suite
from tests.clients.test_typescript import needs_node, program
from tests.suite.conftest import Clients

__all__ = ["program"]

EXAMPLE = Path(__file__).parents[1] / "data/extend-prefix-example.json"
MESSAGE = "All training videos are too short to be trainable"


async def submit_and_watch(
    command: Sequence[str], suite: Suite, clips_zip: Path, opening: Path, out: Path
) -> tuple[int, str, str]:
    """Exit code, job and what was told."""
    addresses = {
        "LTXTRAIN_TRAIN": suite.train_address,
        "LTXTRAIN_INGEST": suite.ingest_address,
        "LTXTRAIN_PREPROCESS": suite.preprocess_address,
    }
    files = ["--data", str(clips_zip), "--validation", str(opening), "--out", str(out)]
    process = await asyncio.create_subprocess_exec(
        *command,
        "submit",
        str(EXAMPLE),
        *files,
        env=os.environ | addresses,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told = (await process.communicate())[0].decode()
    assert process.returncode is not None
    job = next(line for line in told.splitlines() if line.startswith("jobs/"))
    return process.returncode, job, told


async def check(clients: Clients, code: int, name: str, told: str) -> None:
    job = await clients.train.get_job(name)
    example = json.loads(EXAMPLE.read_text())
    sheet = format_sheet(job.spec.extend_prefix)
    for document in (example, sheet):
        assert document.pop("training_data_url")
        assert document["validation"][0].pop("video_url")
        document["trigger_phrase"] = document.get("trigger_phrase", "")
    assert sheet == example
    assert (code, job.lifecycle.state) == (1, State.STATE_FAILED)
    assert job.lifecycle.error.message == MESSAGE and MESSAGE in told and "ALL_CLIPS_TOO_SHORT" in told
    assert (job.billable_units, job.HasField("price"), job.output.lora_file) == (0, False, "")
    lines = [line async for line in clients.preprocess.list_training_set_report(job.training_set)]
    skipped = [line for line in lines if line.outcome == Outcome.OUTCOME_SKIPPED]
    assert skipped and {tuple(line.reasons) for line in skipped} == {(ReportReason.REPORT_REASON_CLIP_TOO_SHORT,)}


async def test_through_the_command_line(
    suite: Suite, clients: Clients, clips_zip: Path, opening: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "ltxtrain_client.cli"]
    await check(clients, *await submit_and_watch(command, suite, clips_zip, opening, tmp_path))


@needs_node
async def test_through_the_typescript_client(
    suite: Suite,
    clients: Clients,
    clips_zip: Path,
    opening: Path,
    tmp_path: Path,
    program: Path,
) -> None:
    await check(clients, *await submit_and_watch(["node", str(program)], suite, clips_zip, opening, tmp_path))
