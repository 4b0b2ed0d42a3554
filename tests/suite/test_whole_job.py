"""One job from a zip of clips to a LoRA that diffusers loads, through the front door and through plain stubs."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import av
import grpc.aio
import pytest
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Outcome, ReportReason, Stage, State
from ltxtrain_client.sheet import parse_sheet
from safetensors import safe_open

from ltxtrain_services.local.up import Suite
from ltxtrain_trainer.training.lora import VIDEO_MODULES
from tests.services.runtime.collector import Collector
from tests.services.runtime.postgres import Postgres
from tests.suite.conftest import (
    FREE_PORTS,
    SETTINGS,
    SHEET,
    Clients,
    connected,
    files_of,
    finished,
    follow,
    ingest,
    new_databases,
    sha256_of,
    submit,
)
from tests.suite.trainings import loss_on_fixed_noise


@pytest.fixture
async def elsewhere(suite: Suite, postgres: Postgres, tiny_model: Path, tmp_path: Path) -> AsyncIterator[Suite]:
    """Three more services, on PostgreSQL, with a bucket of their own and a Ray of one CPU."""
    store = suite.store.address
    environ = {
        **SETTINGS,
        "LTXTRAIN_S3_ENDPOINT": store.endpoint,
        "LTXTRAIN_S3_ACCESS_KEY": store.access_key,
        "LTXTRAIN_S3_SECRET_KEY": store.secret_key,
        "LTXTRAIN_S3_BUCKET": "on-postgresql",
    }
    async with Suite(
        tmp_path,
        model=str(tiny_model),
        ports=FREE_PORTS,
        num_cpus=1,
        databases=new_databases(postgres),
        environ=environ,
    ) as running:
        yield running


@pytest.fixture(scope="session")
async def job(clients: Clients, clips_zip: Path, opening: Path) -> Job:
    return await finished(clients, (await submit(clients, clips_zip, validation=opening)).name)


async def test_a_job_succeeds_and_is_billed(job: Job) -> None:
    assert job.billable_units == 100 and not job.HasField("price")
    assert job.output.lora_file and job.output.config_file and job.output.video
    assert job.effective_spec.extend_prefix.rank == 8 and job.options.seed == 42


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
async def test_no_service_has_loaded_torch_after_a_job(suite: Suite, job: Job) -> None:
    """It would stay 250 MB larger: what actors report is made of modules without torch."""
    with_torch = [name for name, pid in suite.pids.items() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    assert job.output.lora_file and with_torch == []


async def test_every_file_of_the_zip_has_a_line(clients: Clients, job: Job) -> None:
    lines = [line async for line in clients.ingest.list_dataset_report(job.dataset)]
    lines += [line async for line in clients.preprocess.list_training_set_report(job.training_set)]
    skipped = [line for line in lines if line.outcome == Outcome.OUTCOME_SKIPPED]
    assert [list(line.reasons) for line in skipped] == [[ReportReason.REPORT_REASON_CLIP_TOO_SHORT]]
    assert any("__MACOSX" in line.path for line in lines if line.outcome == Outcome.OUTCOME_IGNORED)


async def test_events_are_dense_and_end_with_the_end(clients: Clients, job: Job) -> None:
    events = await follow(clients, job.name)
    assert [sequence for sequence, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1].lifecycle.state == State.STATE_SUCCEEDED
    stages = {event.stage for _, event in events}
    assert {Stage.STAGE_INGEST, Stage.STAGE_PREPROCESS, Stage.STAGE_TRAIN, Stage.STAGE_PREVIEW} <= stages
    steps = [event.train_metrics.step for _, event in events if event.HasField("train_metrics")]
    assert steps == sorted(set(steps)) and steps[-1] == 100


async def test_what_services_and_workers_do_for_a_job_is_one_trace(job: Job, collector: Collector) -> None:
    expected = {
        ("probe", "work datasets"),
        ("fit", "work trainingSets"),
        ("embed", "work trainingSets"),
        ("encode", "work trainingSets"),
        ("train", "work jobs"),
    }

    def arrived() -> bool:
        names = {span.span_id: span.name for span in collector.spans()}
        return expected <= {(span.name, names.get(span.parent_span_id)) for span in collector.spans()}

    await asyncio.to_thread(collector.wait_for, arrived)
    services = {f"ltxtrain.v1.{name}Service" for name in ("Train", "Ingest", "Preprocess")}
    assert services | {"ltxtrain-worker"} in collector.services().values()


async def test_the_lora_holds_video_modules_alone(clients: Clients, job: Job, tmp_path: Path) -> None:
    path = await clients.train.download(job.output.lora_file, tmp_path / "lora.safetensors")
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        assert file.metadata()["trigger_phrase"] == "drifting shapes"
    pattern = rf"diffusion_model\.{VIDEO_MODULES}\.lora_[AB]\.weight"
    assert keys and all(re.fullmatch(pattern, key) for key in keys)


async def test_diffusers_loads_every_key(clients: Clients, job: Job, tiny_model: Path, tmp_path: Path) -> None:
    from diffusers import LTX2ConditionPipeline

    path = await clients.train.download(job.output.lora_file, tmp_path / "lora.safetensors")
    pipeline = LTX2ConditionPipeline.from_pretrained(tiny_model, local_files_only=True)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    loaded = {name for name, _ in pipeline.transformer.named_parameters() if ".lora_" in name}
    with safe_open(path, framework="pt") as file:
        assert len(loaded) == len(list(file.keys()))


async def test_config_and_reel_are_what_they_say(clients: Clients, job: Job, tmp_path: Path) -> None:
    config = await clients.train.download(job.output.config_file, tmp_path / "config.json")
    content = json.loads(config.read_text())
    assert content["training_type"] == "extend-prefix" and content["spec"]["resolution"] == "low"
    assert content["audit"]["modules"] > 0 and "code" in content["inference"]
    reel = await clients.train.download(job.output.video, tmp_path / "reel.mp4")
    with av.open(str(reel)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert sum(1 for _ in container.decode(video=0)) == SHEET["validation_number_of_frames"]


async def test_the_loss_on_fixed_noise_falls(
    clients: Clients, job: Job, tiny_model: Path, suite: Suite, tmp_path: Path
) -> None:
    before, after = [
        await loss_on_fixed_noise(suite, clients, tiny_model, job.name, tmp_path, with_lora=with_lora)
        for with_lora in (False, True)
    ]
    assert after < before


async def test_plain_stubs_cut_and_resume_without_a_gap(
    clients: Clients, elsewhere: Suite, job: Job, clips_zip: Path, tmp_path: Path
) -> None:
    """On PostgreSQL and one CPU, of a job on a dataset that is there: it gives the LoRA of the job above."""
    async with connected(elsewhere) as there:
        spec = ExtendPrefixSpec.FromString(job.spec.extend_prefix.SerializeToString())
        spec.ClearField("validation")
        spec.dataset = await ingest(there, clips_zip)
        name = await watched_in_pieces(elsewhere.train_address, spec)
        made = await there.train.get_job(name)
        second = await there.train.download(made.output.lora_file, tmp_path / "second.safetensors")
    first = await clients.train.download(job.output.lora_file, tmp_path / "first.safetensors")
    assert sha256_of(first) == sha256_of(second)


async def watched_in_pieces(address: str, spec: ExtendPrefixSpec) -> str:
    """The name of a job that succeeds though its watch is cut three times, without a gap."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = train_pb2_grpc.TrainServiceStub(channel)
        created = await stub.CreateJob(
            train_pb2.CreateJobRequest(request_id=str(uuid.uuid4()), spec=TaskSpec(extend_prefix=spec))
        )
        sequences: list[int] = []
        terminal = False
        cuts = 0
        while not terminal:
            call = stub.WatchJob(
                train_pb2.WatchJobRequest(name=created.job.name, after_sequence=sequences[-1] if sequences else 0)
            )
            received = 0
            async for response in call:
                if not response.HasField("event"):
                    continue
                sequences.append(response.sequence)
                received += 1
                terminal = response.event.lifecycle.state in (State.STATE_SUCCEEDED, State.STATE_FAILED)
                if cuts < 3 and received == 4:
                    cuts += 1
                    call.cancel()
                    break
        answer = await stub.GetJob(train_pb2.GetJobRequest(name=created.job.name))
    assert cuts == 3
    assert sequences == list(range(1, answer.job.lifecycle.last_sequence + 1))
    assert answer.job.lifecycle.state == State.STATE_SUCCEEDED
    return str(answer.job.name)


async def test_a_second_run_encodes_nothing_and_gives_the_same_lora(clients: Clients, job: Job, tmp_path: Path) -> None:
    """It is asked for by what the first left in its config file."""
    config = await clients.train.download(job.output.config_file, tmp_path / "config.json")
    content = json.loads(config.read_text())
    sheet = parse_sheet(json.dumps(content["spec"] | {"options": content["manifest"]["options"]}), [])
    again = await finished(clients, (await clients.train.submit(sheet.spec, sheet.options)).name)
    assert again.effective_spec.extend_prefix.dataset == job.dataset, "the upload is swept, the dataset is not"
    expected = ExtendPrefixSpec()
    expected.CopyFrom(job.effective_spec.extend_prefix)
    expected.dataset = job.dataset
    for entry, same in zip(expected.validation, again.effective_spec.extend_prefix.validation, strict=True):
        assert same.video_url.startswith(f"dataset:{job.validation_dataset}/clips/")
        entry.video_url = same.video_url
    assert (again.effective_spec.extend_prefix, again.options) == (expected, job.options)
    report = (await clients.preprocess.get_training_set(again.training_set)).report
    assert report.cache_misses == 0 and report.cache_hits > 0
    first = await clients.train.download(job.output.lora_file, tmp_path / "first.safetensors")
    second = await clients.train.download(again.output.lora_file, tmp_path / "second.safetensors")
    assert sha256_of(first) == sha256_of(second)


async def test_artifacts_are_listed_with_their_kinds(clients: Clients, job: Job) -> None:
    kinds = {item.kind for item in (await files_of(clients, job.name)).values()}
    assert kinds >= {
        Artifact.KIND_LORA,
        Artifact.KIND_CONFIG,
        Artifact.KIND_VALIDATION_REEL,
        Artifact.KIND_CHECKPOINT,
        Artifact.KIND_VALIDATION_VIDEO,
        Artifact.KIND_BASE_VIDEO,
        Artifact.KIND_METRICS,
        Artifact.KIND_JOB_PAGE,
        Artifact.KIND_CONTACT_SHEET,
        Artifact.KIND_COMFYUI_WORKFLOW,
    }
