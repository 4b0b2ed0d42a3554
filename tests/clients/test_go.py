"""The Go example: what it names is in the contract; where there is Go and its modules, it is built and run."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2, status_pb2
from ltxtrain.v1 import (
    artifact_pb2,
    error_pb2,
    extend_prefix_pb2,
    ingest_pb2,
    preprocess_pb2,
    task_pb2,
    train_pb2,
    work_pb2,
)
from ltxtrain.v1.artifact_pb2 import Artifact

from tests.clients.far_side import Act, FarSide, abort_with, progress_events, status, violations
from tests.clients.object_host import Fault, ObjectHost
from tests.clients.programs import Ended, run_program, sheet

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/go"
LORA = bytes(range(256)) * 1024
FILES = (artifact_pb2, error_pb2, extend_prefix_pb2, ingest_pb2, preprocess_pb2, task_pb2, train_pb2, work_pb2)


def camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def go_names(message: Descriptor, prefix: str = "") -> set[str]:
    """Go's names of a message, of the members of its oneofs, and of what is declared in it."""
    name = prefix + message.name
    found = {name, *(f"{name}_{camel(member.name)}" for oneof in message.oneofs for member in oneof.fields)}
    found |= {f"{name}_{value.name}" for enum in message.enum_types for value in enum.values}
    return found.union(*(go_names(nested, f"{name}_") for nested in message.nested_types))


def test_the_example_names_what_is_in_the_contract() -> None:
    """Where no Go compiler is, this much is known: types, values, stubs and fields are those of today's contract."""
    source = "".join(path.read_text() for path in sorted(FOLDER.glob("*.go")))
    declared: set[str] = set()
    fields: set[str] = set()
    for file in FILES:
        for message in file.DESCRIPTOR.message_types_by_name.values():
            declared |= go_names(message)
            fields |= {camel(field.name) for field in message.fields} | {camel(item.name) for item in message.oneofs}
        for enum in file.DESCRIPTOR.enum_types_by_name.values():
            declared |= {f"{enum.name}_{value.name}" for value in enum.values}
        for service in file.DESCRIPTOR.services_by_name.values():
            declared |= {f"{service.name}Client", f"New{service.name}Client"}
            fields |= {method.name for method in service.methods}
    for other in (error_details_pb2, status_pb2):
        for message in other.DESCRIPTOR.message_types_by_name.values():
            for part in (message, *message.nested_types):
                fields |= {camel(field.name) for field in part.fields}
    named = set(re.findall(r"\bpb\.(\w+)", source))
    assert len(named) > 20 and named <= declared
    got = set(re.findall(r"\.Get(\w+)\(\)", source)) | set(re.findall(r"s\.(?:train|ingest)\.(\w+)\(", source))
    assert len(got) > 20 and got <= fields


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled example; GO_EXAMPLE names one that was built elsewhere."""
    if built := os.environ.get("GO_EXAMPLE"):
        return Path(built)
    missing = [name for name in ("go", "protoc-gen-go", "protoc-gen-go-grpc") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("go")
    for path in FOLDER.iterdir():
        shutil.copy(path, folder)
    buf = [str(Path(sys.executable).parent / "buf"), "generate", "--template", "buf.gen.go.yaml", "-o", str(folder)]
    subprocess.run(buf, cwd=ROOT, check=True)
    tidied = subprocess.run(["go", "mod", "tidy"], cwd=folder, capture_output=True, text=True)
    if tidied.returncode:
        pytest.skip(f"Go's modules cannot be had: {tidied.stderr[-300:]}")
    subprocess.run(["go", "vet", "."], cwd=folder, check=True)
    subprocess.run(["go", "build", "-o", "ltxtrain-example", "."], cwd=folder, check=True)
    return folder / "ltxtrain-example"


async def run(program: Path, far: FarSide, *arguments: object, **environment: str) -> Ended:
    return await run_program([str(program)], far, *arguments, **environment)


@pytest.mark.soak
async def test_a_whole_job_with_files_and_broken_streams(
    far: FarSide, store: ObjectHost, program: Path, tmp_path: Path
) -> None:
    far.events = progress_events(7)
    far.acts.extend([Act(send=2, then=abort_with(grpc.StatusCode.UNAVAILABLE)), Act(send=3), Act(repeat=2)])
    digest = hashlib.sha256(LORA).hexdigest()
    far.output.lora_file = far.add_artifact("jobs/1", "lora.safetensors", LORA, Artifact.KIND_LORA, digest)
    store.objects["/jobs/1/lora.safetensors"] = LORA
    clips, opening, out = tmp_path / "clips.zip", tmp_path / "opening.mp4", tmp_path / "out"
    clips.write_bytes(LORA[:30_001])
    opening.write_bytes(LORA[:5])
    store.faults.append(Fault(status=503))
    ended = await run(program, far, "submit", sheet(tmp_path), "--data", clips, "--validation", opening, "--out", out)
    assert ended.code == 0, ended.err
    checked, created = far.requests("CreateJob")
    assert (checked.validate_only, created.validate_only) == (True, False)
    spec = created.spec.extend_prefix
    for path, url in ((clips, spec.training_data_url), (opening, spec.validation[0].video_url)):
        assert store.objects["/" + url.removeprefix("upload:")] == path.read_bytes()
    assert [int(line.split()[0]) for line in ended.err.splitlines()] == list(range(1, 8))
    assert (out / "lora.safetensors").read_bytes() == LORA and "secret" not in ended.out + ended.err
    again = await run(program, far, "watch", ended.out.split()[0], "--after", 5)
    assert [line.split()[0] for line in again.err.splitlines()] == ["6", "7"]


@pytest.mark.soak
async def test_faults_are_told_all_at_once(far: FarSide, program: Path, tmp_path: Path) -> None:
    text = '{"rankk": 1, "rank": "a few", "aspect_ratio": "4:3", "number_of_steps": 100, "options": {"optimizer": "x"}}'
    ended = await run(program, far, "submit", sheet(tmp_path, text))
    assert (ended.code, far.calls) == (2, [])
    told = ended.err.splitlines()
    assert told[0] == "The sheet is invalid:" and len(told) == 5
    for line, says in zip(told[1:], ("aspect_ratio", "options.optimizer", "rank", "rankk"), strict=True):
        assert line.startswith(f"  {says}: ")
    wrong = violations(
        ("spec.extend_prefix.rank", "FIELD_NOT_ALLOWED", "7 is not allowed"),
        ("spec.extend_prefix.frame_rate", "FIELD_OUT_OF_RANGE", "too fast"),
    )
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "2 fields", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(b"zip")
    ended = await run(program, far, "submit", sheet(tmp_path), "--data", tmp_path / "clips.zip")
    assert (ended.code, far.requests("CreateUpload")) == (2, [])
    assert all(part in ended.err for part in ("INVALID_SPEC: ", "  rank: FIELD_NOT_ALLOWED: ", "  frame_rate: "))


@pytest.mark.soak
async def test_help_codes_and_the_token(far: FarSide, program: Path, tmp_path: Path) -> None:
    for flag in ("--help", "-h"):
        ended = await run(program, far, flag)
        assert (ended.code, ended.err) == (0, "") and "Exit codes" in ended.out
    assert (await run(program, far, "submit")).code == 2
    assert (await run(program, far, "watch", "jobs/none")).code == 5
    assert (await run(program, far, "submit", sheet(tmp_path), LTXTRAIN_TRAIN="127.0.0.1:1")).code == 4
    shown = {"LTXTRAIN_TOKEN": "open sesame"}
    assert (await run(program, far, "submit", sheet(tmp_path), **shown)).code == 0
    assert far.calls[-1][2]["authorization"] == "Bearer open sesame"
    refused = await run(program, far, "submit", sheet(tmp_path), LTXTRAIN_TRAIN="192.0.2.1:7003", **shown)
    assert refused.code == 2 and "unencrypted" in refused.err and "sesame" not in refused.err
