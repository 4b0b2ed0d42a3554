"""What a cancelled job keeps: the LoRA of its last checkpoint, if it is sound."""

from collections.abc import Callable

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Stage

from services.runtime.cluster import NOT_A_SERVICE, WorkerLost, kill
from services.runtime.service import Runtime, store_address
from services.runtime.store import Edit, Store
from services.runtime.work import Retryable
from services.train.actors import AuditActor, Failed, Remote
from services.train.artifacts import artifacts, latest_checkpoint
from services.train.failures import trainer_failure
from services.train.training import job_output


async def last_checkpoint(runtime: Runtime, jobs: Store[Job], job: Job) -> Callable[[Edit[Job]], None]:
    """Sets the output of a job that ends as cancelled; a LoRA that fails its audit is warned of and not given."""
    found = await artifacts(jobs, job.name)
    lora = latest_checkpoint(found).get("LORA")
    fault = None if lora is None else await _audited(runtime, job, lora)

    def apply(edit: Edit[Job]) -> None:
        edit.body.ClearField("queue_position")
        if fault is not None:
            edit.add_event(Event(stage=Stage.STAGE_PUBLISH, warning=trainer_failure(fault, found).status()))
        elif lora is not None:
            edit.body.output.CopyFrom(job_output([lora]))

    return apply


async def _audited(runtime: Runtime, job: Job, lora: Artifact) -> Failed | None:
    settings = runtime.settings
    # Never waits for a CPU, of which others may hold all.
    actor = AuditActor.options(num_cpus=0, label_selector=NOT_A_SERVICE).remote(store_address(settings))  # type: ignore[attr-defined]
    remote, with_audio = Remote(lora.blob.key, lora.blob.sha256), job.effective_spec.with_audio
    try:
        call = actor.audit.remote(remote, settings.model, settings.model_revision or None, with_audio)
        outcome: Failed | None = await runtime.cluster.value(call)
        return outcome
    except WorkerLost as error:
        raise Retryable(str(error)) from error
    finally:
        kill(actor)
