"""The TypeScript example from a fresh clone: installed, generated, compiled, and run against a scripted server."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import trustme
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution
from ltxtrain.v1.train_pb2 import BasePrecision
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Stage, State

from tests.clients.far_side import (
    EXAMPLE,
    Act,
    FarSide,
    abort_with,
    abort_with_status,
    end_ok,
    progress_events,
    serving,
    status,
    violations,
)
from tests.clients.object_host import Fault, ObjectHost
from tests.clients.programs import Ended, run_program, sheet
from tests.messages import every_message, filled

ROOT = Path(__file__).parent.parent.parent
EXAMPLE_CLIENT = ROOT / "clients/typescript"
COUNT = 7
LORA = bytes(range(256)) * 8192

needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")


def test_the_lockfile_names_digests_and_no_addresses() -> None:
    packages = json.loads((EXAMPLE_CLIENT / "package-lock.json").read_text())["packages"]
    installed = {path: package for path, package in packages.items() if path}
    assert installed
    assert all(package["integrity"].startswith("sha512-") for package in installed.values())
    assert [
        path for path, package in installed.items() if "resolved" in package or package.get("hasInstallScript")
    ] == []
    assert "omit-lockfile-registry-resolved=true" in (EXAMPLE_CLIENT / ".npmrc").read_text().splitlines()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled command line, made once in a copy that holds what a clone would."""
    clone = tmp_path_factory.getbasetemp() / "typescript"
    folder = clone / "clients/typescript"
    compiled = folder / "dist/main.js"
    if compiled.exists():  # by another folder's tests
        return compiled
    made = shutil.ignore_patterns("node_modules", "dist", "generated", "*.py", "*.pyi", "__pycache__")
    for part in ("clients/typescript", "protos", "third_party"):
        shutil.copytree(ROOT / part, clone / part, ignore=made)
    environment = os.environ | {"PROTOC": f"{sys.executable} -m grpc_tools.protoc"}
    for command in (["npm", "ci", "--no-progress"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return compiled


async def run(program: Path, far: FarSide, *arguments: object, **environment: str) -> Ended:
    return await run_program(["node", str(program)], far, *arguments, **environment)


def finish(far: FarSide, store: ObjectHost, content: bytes = LORA) -> None:
    """The job succeeds, and leaves a LoRA."""
    far.events = progress_events(COUNT)
    name = far.add_artifact(
        "jobs/1", "lora.safetensors", content, Artifact.KIND_LORA, hashlib.sha256(content).hexdigest()
    )
    store.objects["/jobs/1/lora.safetensors"] = content
    far.output.lora_file = name


@needs_node
async def test_the_sheets_own_example_goes_through_word_for_word(far: FarSide, program: Path, tmp_path: Path) -> None:
    ended = await run(program, far, "submit", sheet(tmp_path))
    assert (ended.code, ended.err) == (0, "")
    (request,) = far.requests("CreateJob")
    expected = json.loads(EXAMPLE) | {"resolution": "RESOLUTION_MEDIUM", "aspect_ratio": "ASPECT_RATIO_1_1"}
    assert request.spec.extend_prefix == json_format.ParseDict(expected, ExtendPrefixSpec())
    assert len(request.request_id) == 36
    assert ended.out.split() == list(far.jobs)


@needs_node
async def test_words_and_options_become_the_contracts(far: FarSide, program: Path, tmp_path: Path) -> None:
    text = """{"dataset": "datasets/1", "resolution": "low", "aspect_ratio": "16:9", "validation_aspect_ratio": "9:16",
        "validation_resolution": "RESOLUTION_HIGH", "options": {"seed": 7, "base_precision": "int8"}}"""
    ended = await run(program, far, "submit", sheet(tmp_path, text))
    assert ended.code == 0, ended.err
    (request,) = far.requests("CreateJob")
    assert request.spec.extend_prefix.dataset == "datasets/1"
    assert request.spec.extend_prefix.resolution == Resolution.RESOLUTION_LOW
    assert request.spec.extend_prefix.aspect_ratio == AspectRatio.ASPECT_RATIO_16_9
    assert request.spec.extend_prefix.validation_aspect_ratio == AspectRatio.ASPECT_RATIO_9_16
    assert request.spec.extend_prefix.validation_resolution == Resolution.RESOLUTION_HIGH
    assert (request.options.seed, request.options.base_precision) == (7, BasePrecision.BASE_PRECISION_INT8)


@needs_node
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"rankk": 32}', "rankk"),
        ('{"rank": "a few"}', "rank"),
        ('{"aspect_ratio": "4:3"}', "16:9"),
        ('{"options": []}', "options"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
    ],
)
async def test_what_is_no_sheet_is_never_sent(
    far: FarSide, program: Path, tmp_path: Path, text: str, says: str
) -> None:
    ended = await run(program, far, "submit", sheet(tmp_path, text))
    assert (ended.code, ended.out, far.calls) == (2, "", [])
    assert says in ended.err


@needs_node
async def test_all_faults_of_a_sheet_are_told_at_once(far: FarSide, program: Path, tmp_path: Path) -> None:
    text = '{"rankk": 1, "rank": "a few", "aspect_ratio": "4:3", "number_of_steps": 100, "options": {"optimizer": "x"}}'
    ended = await run(program, far, "submit", sheet(tmp_path, text))
    assert (ended.code, far.calls) == (2, [])
    told = ended.err.splitlines()
    assert told[0] == "The sheet is invalid:" and len(told) == 5
    for line, says in zip(told[1:], ("rankk", "rank", "aspect_ratio", "options.optimizer"), strict=True):
        assert says in line


@needs_node
async def test_help_is_there(far: FarSide, program: Path) -> None:
    for flag in ("--help", "-h"):
        ended = await run(program, far, flag)
        assert (ended.code, ended.err) == (0, "")
        assert "--validation" in ended.out and "Exit codes" in ended.out


@needs_node
async def test_files_are_uploaded_and_results_downloaded(
    far: FarSide, store: ObjectHost, program: Path, tmp_path: Path
) -> None:
    finish(far, store)
    clips, opening = tmp_path / "clips.zip", tmp_path / "opening.mp4"
    clips.write_bytes(LORA[:300_001])
    opening.write_bytes(LORA[:5])
    store.faults.append(Fault(status=503))
    out = tmp_path / "out"
    ended = await run(program, far, "submit", sheet(tmp_path), "--data", clips, "--validation", opening, "--out", out)
    assert ended.code == 0, ended.err
    checked, created = far.requests("CreateJob")
    assert (checked.validate_only, created.validate_only) == (True, False)
    for path, url in (
        (clips, created.spec.extend_prefix.training_data_url),
        (opening, created.spec.extend_prefix.validation[0].video_url),
    ):
        assert store.objects["/" + url.removeprefix("upload:")] == path.read_bytes()
    announced = [(request.size_bytes, request.sha256) for request in far.requests("CreateUpload")]
    assert announced == [
        (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in (clips, opening)
    ]
    assert ended.sequences == list(range(1, COUNT + 1))
    assert [path.name for path in out.iterdir()] == ["lora.safetensors"]
    assert (out / "lora.safetensors").read_bytes() == LORA
    assert "secret" not in ended.out + ended.err


@needs_node
async def test_a_large_file_goes_up_in_parts_and_each_part_once(
    far: FarSide, store: ObjectHost, program: Path, tmp_path: Path
) -> None:
    """Whatever was stored before a failure, in this run or an earlier one, is not sent again."""
    far.part_bytes = 64 << 10
    above = {"LTXTRAIN_MULTIPART_ABOVE_BYTES": str(8 * far.part_bytes)}
    clips = tmp_path / "clips.zip"
    with clips.open("wb") as file:
        for number in range(9):
            file.write(bytes([number]) * far.part_bytes)
        file.write(b"the rest")
    store.faults.extend([Fault(), Fault(status=503), Fault(), Fault(status=403)])
    ended = await run(program, far, "submit", sheet(tmp_path), "--data", clips, **above)
    assert ended.code == 0, ended.err
    (created,) = [request for request in far.requests("CreateJob") if not request.validate_only]
    name = created.spec.extend_prefix.training_data_url.removeprefix("upload:")
    assert store.objects[f"/{name}"] == clips.read_bytes()
    assert all(request.multipart for request in far.requests("CreateUpload"))
    sent = [path.rpartition("/")[2] for method, path, _ in store.requests if method == "PUT"]
    assert len(sent) == 10 + 2 and len(set(sent)) == 10
    # The same file again is there already.
    again = await run(program, far, "submit", sheet(tmp_path), "--data", clips, **above)
    assert again.code == 0 and sum(method == "PUT" for method, _, _ in store.requests) == len(sent)
    assert "secret" not in ended.err + again.err


DRAINING = status(
    grpc.StatusCode.UNAVAILABLE,
    "shutting down",
    "DRAINING",
    details=[error_details_pb2.RetryInfo(retry_delay=Duration(nanos=1_000_000))],
)
CUTS = (
    abort_with(grpc.StatusCode.UNAVAILABLE),
    abort_with(grpc.StatusCode.INTERNAL),
    abort_with_status(DRAINING),
    end_ok,
)


JSON_ROUND_TRIP = """
import { fromBinary, fromJson, toBinary } from "@bufbuild/protobuf";
import { json, registry } from "./index.js";

let text = "";
for await (const chunk of process.stdin) text += chunk;
for (const [name, bytes] of Object.entries(JSON.parse(text))) {
  const type = registry.getMessage(name);
  const message = fromBinary(type, Buffer.from(bytes, "base64"));
  const written = json(type, message);
  const again = fromJson(type, written, { registry });
  if (!Buffer.from(toBinary(type, again)).equals(Buffer.from(toBinary(type, message)))) throw new Error(name);
  console.log(JSON.stringify([name, written]));
}
"""


@needs_node
def test_json_of_every_message_goes_there_and_back(program: Path) -> None:
    """With the contract's own descriptors alone; Python reads what protobuf-es has written."""
    script = program.parent / "round_trip.js"
    script.write_text(JSON_ROUND_TRIP)
    sent = {kind.DESCRIPTOR.full_name: filled(kind) for kind in every_message()}
    encoded = {name: base64.b64encode(message.SerializeToString()).decode() for name, message in sent.items()}
    done = subprocess.run(
        ["node", script.name], cwd=program.parent, input=json.dumps(encoded), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = dict(json.loads(line) for line in done.stdout.splitlines())
    assert {name: json_format.ParseDict(written[name], type(message)()) for name, message in sent.items()} == sent


@needs_node
async def test_a_watch_survives_every_kind_of_cut(
    far: FarSide, store: ObjectHost, program: Path, tmp_path: Path
) -> None:
    finish(far, store)
    far.acts.extend(Act(send=1, then=cut, repeat=index % 2) for index, cut in enumerate(CUTS))
    ended = await run(program, far, "submit", sheet(tmp_path), "--watch")
    assert ended.code == 0, ended.err
    assert ended.sequences == list(range(1, COUNT + 1))
    # An act that repeats an event sends no new one.
    assert [request.after_sequence for request in far.requests("WatchJob")] == [0, 1, 1, 2, 2]


@needs_node
async def test_a_watch_goes_on_from_a_cursor(far: FarSide, store: ObjectHost, program: Path, tmp_path: Path) -> None:
    finish(far, store)
    (job,) = (await run(program, far, "submit", sheet(tmp_path))).out.split()
    ended = await run(program, far, "watch", job, "--after", "4", "--out", tmp_path)
    assert (ended.code, ended.sequences) == (0, [5, 6, 7])
    assert (tmp_path / "lora.safetensors").read_bytes() == LORA


@needs_node
async def test_a_download_goes_on_where_it_broke_and_trusts_no_wrong_byte(
    far: FarSide, store: ObjectHost, program: Path, tmp_path: Path
) -> None:
    finish(far, store)
    store.faults.extend([Fault(corrupt=True), Fault(cut_after=1_000_000)])
    ended = await run(program, far, "submit", sheet(tmp_path), "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out/lora.safetensors").read_bytes() == LORA
    ranges = [ranged for method, _, ranged in store.requests if method == "GET"]
    assert ranges[:2] == ["", ""]
    assert ranges[2].startswith("bytes=")


@needs_node
async def test_wrong_bytes_are_never_kept(far: FarSide, store: ObjectHost, program: Path, tmp_path: Path) -> None:
    finish(far, store)
    store.faults.extend(Fault(corrupt=True) for _ in range(5))
    ended = await run(program, far, "submit", sheet(tmp_path), "--out", tmp_path / "out")
    assert ended.code == 4
    assert "sha256" in ended.err
    assert list((tmp_path / "out").iterdir()) == []


@needs_node
async def test_every_wrong_field_is_told_before_anything_is_uploaded(
    far: FarSide, program: Path, tmp_path: Path
) -> None:
    wrong = violations(
        ("spec.extend_prefix.rank", "FIELD_NOT_ALLOWED", "7 is not allowed"),
        ("spec.extend_prefix.frame_rate", "FIELD_OUT_OF_RANGE", "too fast"),
    )
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "2 fields", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(b"zip")
    ended = await run(program, far, "submit", sheet(tmp_path), "--data", tmp_path / "clips.zip")
    assert ended.code == 2
    assert far.requests("CreateUpload") == []
    assert all(part in ended.err for part in ("INVALID_SPEC", "  rank: FIELD_NOT_ALLOWED", "  frame_rate"))


@needs_node
async def test_a_file_that_nobody_gives_is_missed_before_anything_is_uploaded(
    far: FarSide, program: Path, tmp_path: Path
) -> None:
    wrong = violations(("spec.extend_prefix.validation[0].video_url", "FIELD_REQUIRED", "Name a video."))
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "1 field", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(b"zip")
    ended = await run(program, far, "submit", sheet(tmp_path), "--data", tmp_path / "clips.zip")
    assert ended.code == 2
    assert far.requests("CreateUpload") == []


@needs_node
@pytest.mark.parametrize(("ending", "code"), [(State.STATE_FAILED, 1), (State.STATE_CANCELLED, 3)])
async def test_the_exit_code_tells_how_the_job_ended(
    far: FarSide, program: Path, tmp_path: Path, ending: "State", code: int
) -> None:
    error = status(grpc.StatusCode.FAILED_PRECONDITION, "too short", "ALL_CLIPS_TOO_SHORT")
    lifecycle = Lifecycle(state=ending, error=error if ending == State.STATE_FAILED else None)
    far.events = [Event(stage=Stage.STAGE_PREPROCESS, lifecycle=lifecycle)]
    ended = await run(program, far, "submit", sheet(tmp_path), "--watch")
    assert ended.code == code
    assert ("ALL_CLIPS_TOO_SHORT: too short" in ended.err) == (ending == State.STATE_FAILED)


@needs_node
async def test_a_lost_answer_makes_no_second_job(far: FarSide, program: Path, tmp_path: Path) -> None:
    far.fail("CreateJob", status(grpc.StatusCode.UNAVAILABLE, "gone"))
    ended = await run(program, far, "submit", sheet(tmp_path))
    assert ended.code == 0, ended.err
    first, second = far.requests("CreateJob")
    assert first == second


@needs_node
async def test_what_cannot_be_reached_or_is_refused_has_its_own_code(
    far: FarSide, program: Path, tmp_path: Path
) -> None:
    assert (await run(program, far, "submit", sheet(tmp_path), LTXTRAIN_TRAIN="127.0.0.1:1")).code == 4
    assert (await run(program, far, "watch", "jobs/none")).code == 5


@needs_node
async def test_the_token_is_shown_and_stays_on_this_machine(far: FarSide, program: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open sesame\n")
    shown = {"LTXTRAIN_TOKEN_FILE": str(tmp_path / "token")}
    assert (await run(program, far, "submit", sheet(tmp_path), **shown)).code == 0
    assert far.calls[0][2]["authorization"] == "Bearer open sesame"
    refused = await run(program, far, "submit", sheet(tmp_path), LTXTRAIN_TRAIN="192.0.2.1:7003", **shown)
    assert refused.code == 2
    assert "unencrypted" in refused.err
    assert "sesame" not in refused.err


@needs_node
async def test_mutual_tls(program: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@example.com")
    chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
    root = authority.cert_pem.bytes()
    credentials = grpc.ssl_server_credentials([(server.private_key_pem.bytes(), chain)], root, require_client_auth=True)
    (tmp_path / "root.pem").write_bytes(root)
    (tmp_path / "cert.pem").write_bytes(client.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(client.private_key_pem.bytes())
    trusted = {"LTXTRAIN_TLS_ROOT": str(tmp_path / "root.pem")}
    shown = {f"LTXTRAIN_TLS_{part.upper()}": str(tmp_path / f"{part}.pem") for part in ("cert", "key")}
    far = FarSide()
    async with serving(far, credentials=credentials):
        assert (await run(program, far, "submit", sheet(tmp_path), **trusted, **shown)).code == 0
        assert (await run(program, far, "submit", sheet(tmp_path), **trusted)).code == 4
    assert len(far.calls) == 1
