"""JSON of every message by the contract's own descriptors alone, whoever generated code from it."""

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from ltxtrain.v1.error_pb2 import ErrorDetails
from ltxtrain.v1.train_pb2 import Job, ListJobsResponse
from ltxtrain.v1.work_pb2 import State

from tests.clients.far_side import FarSide
from tests.messages import every_message, filled

ROOT = Path(__file__).parent.parent.parent
BUF = Path(sys.executable).parent / "buf"

# A process of its own: nothing is known but what generated code imports.
PLAIN_STUBS = """
import base64, json, sys
from google.protobuf import descriptor_pool, json_format, message_factory
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2

for name, encoded in json.load(sys.stdin).items():
    kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    message = kind.FromString(base64.b64decode(encoded))
    text = json_format.MessageToJson(message)
    assert json_format.Parse(text, kind()) == message, name
    print(name)
"""


def messages() -> dict[str, str]:
    """Bytes of every message, in base 64, by its full name."""
    return {
        kind.DESCRIPTOR.full_name: base64.b64encode(filled(kind).SerializeToString()).decode()
        for kind in every_message()
    }


def test_plain_python_stubs_know_every_type() -> None:
    sent = messages()
    command = [sys.executable, "-c", PLAIN_STUBS]
    done = subprocess.run(command, input=json.dumps(sent), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(sent) and len(sent) > 80


def test_every_detail_of_an_error_is_a_field_of_error_details() -> None:
    """All that the services pack is declared, the ErrorInfo first."""
    fields: Any = ErrorDetails.DESCRIPTOR.fields
    declared = [field.message_type.full_name for field in fields]
    assert declared[0] == error_details_pb2.ErrorInfo.DESCRIPTOR.full_name
    source = (ROOT / "ltxtrain_services/runtime/errors.py").read_text()
    packed = {kind for kind in vars(error_details_pb2) if f"error_details_pb2.{kind}(" in source}
    assert {f"google.rpc.{kind}" for kind in packed} == set(declared)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract as buf reads it: descriptors of its files and of what they import."""
    path = tmp_path_factory.mktemp("contract") / "contract.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"-I{ROOT / 'third_party'}"]
    command += ["--include_imports", f"--descriptor_set_out={path}"]
    subprocess.run([*command, *map(str, (ROOT / "protos/ltxtrain/v1").glob("*.proto"))], check=True)
    return path


async def buf_curl(far: FarSide, image: Path, method: str, request: str) -> tuple[int | None, str, str]:
    """Exit status, stdout and stderr of a call that knows nothing but the image."""
    url = f"http://{far.address}/ltxtrain.v1.TrainService/{method}"
    arguments = ["--schema", str(image), "--protocol", "grpc", "--http2-prior-knowledge", "--data", request, url]
    process = await asyncio.create_subprocess_exec(
        str(BUF), "curl", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out.decode(), err.decode()


async def test_buf_curl_prints_a_list_that_holds_a_failed_job(far: FarSide, image: Path) -> None:
    failed = filled(Job)
    assert isinstance(failed, Job)
    failed.lifecycle.state = State.STATE_FAILED
    far.jobs = {failed.name: failed}
    code, out, err = await buf_curl(far, image, "ListJobs", "{}")
    assert code == 0, err
    assert json_format.Parse(out, ListJobsResponse()).jobs[0] == failed
