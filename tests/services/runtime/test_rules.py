"""The rules of the contract and the services' own checks agree: at each bound of each rule, and just beyond it.

What other languages ask protovalidate is compared with what the RPCs answer, for every call of the contract.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, cast

import protovalidate
import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.ingest_pb2 import CreateUploadRequest, Dataset, Upload
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import CreateJobRequest, EstimateJobResponse, Job
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.ingest.service import IngestService
from ltxtrain_services.ingest.uploads import Uploads
from ltxtrain_services.preprocess.service import PreprocessService
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.errors import ApiError, InvalidSpec, PageTokenInvalid
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.extend_prefix import Offer, resolve, resolve_options
from ltxtrain_services.runtime.requests import Watches
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.train.service import TrainService
from tests.services.runtime.rule_probes import ENDED, LONG, NAMED, OF_TRAININGS, TOGETHER, paths_of_rules, probes

# What the services may call the choice between the members of a oneof.
CALLED = {"plan": "spec", "videos.urls": "source"}


class Unkept(Store[Any]):
    """A store that writes nothing: how rows are written is another test's matter."""

    async def create(self, body: Any, **_: Any) -> Any:
        return body


class Unworked:
    """Nothing is done for what was created."""

    def start(self, name: str) -> None:
        pass


class Train(TrainService):
    """The RPCs over records alone, with 64 GPUs; what the estimate says is its own matter."""

    def __init__(self, runtime: Runtime, jobs: Store[Job]) -> None:
        self._runtime, self._jobs, self._watches = runtime, jobs, Watches(runtime.log)
        self._estimator: Any = self
        self.work: Any = Unworked()

    async def estimate(self, *_: Any) -> EstimateJobResponse:
        return EstimateJobResponse()

    async def _offer(self, wanted: int) -> Offer:
        return Offer(present=64)

    async def _has_training_set(self, job: Job) -> bool:
        return True


class Ingest(IngestService):
    def __init__(self, runtime: Runtime) -> None:
        self._settings, self._watches = runtime.settings, Watches(runtime.log)
        self._datasets = Unkept(runtime.database, runtime.log, "datasets", Dataset)
        uploads = Store(runtime.database, runtime.log, "uploads", Upload)
        self._uploads = Uploads(uploads, runtime.objects, 1 << 40)
        self.work: Any = Unworked()

    async def CreateUpload(self, request: CreateUploadRequest, context: Any) -> ingest_pb2.CreateUploadResponse:
        if found := self._uploads._violations(request):
            raise InvalidSpec(found)
        return ingest_pb2.CreateUploadResponse()


class Preprocess(PreprocessService):
    def __init__(self, runtime: Runtime) -> None:
        self._sets = Unkept(runtime.database, runtime.log, "trainingSets", TrainingSet)
        self._watches = Watches(runtime.log)
        self.work: Any = Unworked()


async def ended_job(jobs: Store[Job]) -> None:
    """A job to continue from, of a constant schedule and all frames."""
    spec, wrong = resolve(LONG, lambda url: None)
    options, _ = resolve_options(train_pb2.JobOptions(schedule=train_pb2.SCHEDULE_CONSTANT), spec.number_of_steps)
    assert not wrong
    job = Job(name=ENDED, effective_spec=TaskSpec(extend_prefix=spec), options=options, dataset="datasets/a")
    await jobs.create(job, owner="local", request_id="", digest=b"")
    async with jobs.edit(ENDED) as edit:
        for kind in (Artifact.KIND_LORA, Artifact.KIND_CHECKPOINT):
            name = Artifact.Kind.Name(kind)
            edit.put_child("artifacts", name, Artifact(name=f"{ENDED}/artifacts/{name}", kind=kind, step=10))
        edit.body.output.lora_file = f"{ENDED}/artifacts/KIND_LORA"
        edit.enter(State.STATE_SUCCEEDED)


@pytest.fixture(scope="module")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    """Each service by the name that its calls have in the contract."""
    nothing: Any = None
    settings = Settings(state_dir=tmp_path_factory.mktemp("rules"))
    database = await Database.open(settings.database, settings.state_dir)
    log = EventLog(database, heartbeat_seconds=0.01)
    runtime = Runtime(settings, database, log, Blobs(database), objects=nothing, cluster=nothing)
    jobs = Store(database, log, "jobs", Job)
    await ended_job(jobs)
    for store, body in (
        (Store(database, log, "datasets", Dataset), Dataset(name=NAMED["IngestService"])),
        (Store(database, log, "trainingSets", TrainingSet), TrainingSet(name=NAMED["PreprocessService"])),
    ):
        await cast(Store[Any], store).create(body, owner="local", request_id="", digest=b"")
    yield {
        "TrainService": Train(runtime, jobs),
        "IngestService": Ingest(runtime),
        "PreprocessService": Preprocess(runtime),
    }
    await database.close()


async def refused(answer: Any) -> set[str]:
    """Fields that a call finds wrong. What does not exist was found right before."""
    try:
        if hasattr(answer, "__anext__"):
            await anext(answer)
        else:
            await answer
    except InvalidSpec as error:
        return {violation.field for violation in error.violations}
    except PageTokenInvalid:
        return {"page_size"}
    except ApiError:
        pass
    return set()


def path_of(violation: protovalidate.Violation) -> str:
    """The field of a violation as the services write it."""
    found = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        found += f".{element.field_name}"
        if (subscript := element.subscript) is not None:
            found += f"[{json.dumps(subscript.value, ensure_ascii=False)}]"
    return found.removeprefix(".")


CALLS = [
    method
    for file in (ingest_pb2, preprocess_pb2, train_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def rules_about_several(message: Descriptor) -> set[str]:
    """Names of a request's rules about several fields, and of its oneofs that have to be set."""
    extensions: Any = validate_pb2
    found = {rule.id for rule in message.GetOptions().Extensions[extensions.message].cel}
    found |= {item.name for item in message.oneofs if item.GetOptions().Extensions[extensions.oneof].required}
    within = [field.message_type for field in message.fields if field.message_type is not None]
    return found.union(*map(rules_about_several, within))


def ruled(message: Descriptor) -> bool:
    return bool(rules_about_several(message)) or any(True for _ in paths_of_rules(message))


async def broken(services: dict[str, Any], method: Any, request: Message) -> set[str]:
    """Fields, and names of rules about several, that a request breaks; the service has to see the same."""
    if isinstance(request, CreateJobRequest):
        request.validate_only = True
    told = await refused(getattr(services[method.containing_service.name], method.name)(request, None))
    found = protovalidate.collect_violations(request)
    shown = f"{method.name}: {[str(item.proto) for item in found]} {told} {str(request)[:300]}"
    assert bool(found) == bool(told), shown
    several = rules_about_several(method.input_type)
    rules = {item.proto.rule_id for item in found} & several
    fields = {path_of(item) for item in found if item.proto.rule_id not in several}
    for path in fields:
        names = (path, CALLED.get(path, path))
        assert any(field in names or field.startswith(f"{path}.") for field in told), shown
    return rules | {re.sub(r"\[.*?\]", "", path) for path in fields}


@pytest.mark.parametrize(
    "method", [method for method in CALLS if ruled(method.input_type)], ids=lambda method: method.name
)
async def test_a_call_refuses_what_the_rules_of_its_fields_refuse(method: Any, services: dict[str, Any]) -> None:
    seen: set[str] = set()
    for request in probes(method):
        seen |= await broken(services, method, request)
    paths = {".".join(path) for path, _ in paths_of_rules(method.input_type)}
    if method.name in OF_TRAININGS:
        paths = {path for path in paths if not path.startswith("spec.continue_clips.")}
    assert paths <= seen, "a rule was not broken"


@pytest.mark.parametrize("rule", TOGETHER)
async def test_a_call_refuses_what_a_rule_about_several_fields_refuses(rule: str, services: dict[str, Any]) -> None:
    seen = []
    for request in TOGETHER[rule]:
        method = next(method for method in CALLS if method.input_type is request.DESCRIPTOR)
        seen.append(rule in await broken(services, method, request))
    assert {True, False} == set(seen)


def test_every_rule_about_several_fields_is_tried() -> None:
    assert set().union(*(rules_about_several(method.input_type) for method in CALLS)) == set(TOGETHER)
