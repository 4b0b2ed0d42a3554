"""TrainService: the RPCs. What a job does is in `workflow`."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import CreateJobRequest, Job
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.sheet import continues_clips, name_datasets, name_openings

from ltxtrain_services.runtime.addresses import check_url
from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.cluster import ClusterLost, WorkerLost
from ltxtrain_services.runtime.database import DatabaseUnavailable
from ltxtrain_services.runtime.errors import InvalidSpec, NotFound, NotReady, Violation
from ltxtrain_services.runtime.extend_prefix import Offer, check_offered, resolve, resolve_options
from ltxtrain_services.runtime.paging import request_digest
from ltxtrain_services.runtime.requests import (
    MAX_FILTERS,
    Watches,
    beside,
    check_count,
    check_names,
    check_request_id,
    listed,
    new_name,
    sign_download,
    visible_owner,
)
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.store import StaleAttempt, Store
from ltxtrain_services.runtime.work import WorkRunner
from ltxtrain_services.train.continuation import SOURCE_FIELD, Origin, Resolved
from ltxtrain_services.train.continue_clips import resolve_clips
from ltxtrain_services.train.estimate import Estimator
from ltxtrain_services.train.publication import FACTS
from ltxtrain_services.train.recorder import REQUESTED
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_services.train.webhooks import Webhooks, webhook_refusal
from ltxtrain_services.train.webhooks import origin as webhook_origin
from ltxtrain_services.train.workflow import TrainWorkflow
from ltxtrain_trainer.training.requests import Request

log = logging.getLogger(__name__)


class TrainService(train_pb2_grpc.TrainServiceServicer):
    """The front door."""

    full_name = "ltxtrain.v1.TrainService"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._jobs: Store[Job] = Store(runtime.database, runtime.log, "jobs", Job, fed=True)
        self._watches = Watches(runtime.log)
        upstream = Upstream(runtime.settings)
        self._upstream = upstream
        self._estimator = Estimator(runtime, upstream)
        self.webhooks = Webhooks(self._jobs, runtime.objects, runtime.settings)
        self._workflow = TrainWorkflow(runtime, upstream, self._estimator)
        self.work = WorkRunner(self._jobs, self._workflow, self.webhooks)
        self._deliveries: set[asyncio.Task[None]] = set()

    def register(self, server: grpc.aio.Server) -> None:
        train_pb2_grpc.add_TrainServiceServicer_to_server(self, server)

    async def tidy(self) -> None:
        """A job's own blobs go with the job; nothing is shared here."""

    async def CreateJob(self, request: train_pb2.CreateJobRequest, context: Any) -> train_pb2.CreateJobResponse:
        origin = None
        if request.HasField("continue_from") or request.spec.HasField("continue_clips"):
            if not request.continue_from.source:
                text = "Name a job that has ended, or a checkpoint or LoRA of one."
                missing = Violation(SOURCE_FIELD, ErrorReason.ERROR_REASON_FIELD_REQUIRED, text)
                raise InvalidSpec([missing, *check_request_id(request.request_id)])
            origin = await Origin.read(self._jobs, request.continue_from.source, visible_owner())
        job = await self._resolved(request, origin)
        if continues_clips(job):
            if not request.validate_only:
                job = await self._create(job, request.request_id, request, webhook_url=request.webhook_url)
            return train_pb2.CreateJobResponse(job=job)
        if (dataset := job.effective_spec.extend_prefix.dataset) and not await self._has_training_set(job):
            await self._upstream.dataset(dataset, caller.get())
        if not request.validate_only:
            job = await self._create(job, request.request_id, request, webhook_url=request.webhook_url)
        return train_pb2.CreateJobResponse(job=job)

    async def RetryJob(self, request: train_pb2.RetryJobRequest, context: Any) -> train_pb2.RetryJobResponse:
        if wrong := check_request_id(request.request_id):
            raise InvalidSpec(wrong)
        origin = await Origin.read(self._jobs, request.name, visible_owner())
        if origin.named is not None:
            raise NotFound(request.name)
        job, old = origin.retried(), origin.job
        owner = await self._jobs.owner(old.name)
        # What they were made of may be gone; where they were not made, it is tried again.
        dataset, validation = [
            name if name and await self._upstream.has_dataset(name, owner) else ""
            for name in (old.dataset, old.validation_dataset)
        ]
        if continues_clips(job):
            name_openings(job.effective_spec.continue_clips.openings, validation)
        else:
            name_datasets(job.effective_spec.extend_prefix, dataset, validation)
        violations = check_offered(job.options, await self._offer(job.options.gpu_count))
        violations += self._check_webhook(request.webhook_url)
        if violations:
            raise InvalidSpec(violations)
        again = request.request_id or str(uuid.uuid5(uuid.NAMESPACE_URL, f"{old.name}/retry"))
        if request.webhook_url:
            job.webhook.origin = webhook_origin(request.webhook_url)
        made = await self._create(job, again, request, owner=owner, webhook_url=request.webhook_url)
        return train_pb2.RetryJobResponse(job=made)

    async def CheckpointJob(
        self, request: train_pb2.CheckpointJobRequest, context: Any
    ) -> train_pb2.CheckpointJobResponse:
        return train_pb2.CheckpointJobResponse(job=await self._ask(request.name, Request.CHECKPOINT))

    async def PreviewJob(self, request: train_pb2.PreviewJobRequest, context: Any) -> train_pb2.PreviewJobResponse:
        return train_pb2.PreviewJobResponse(job=await self._ask(request.name, Request.PREVIEW))

    async def GetJob(self, request: train_pb2.GetJobRequest, context: Any) -> train_pb2.GetJobResponse:
        return train_pb2.GetJobResponse(job=await self._jobs.get(request.name, visible_owner()))

    async def ListJobs(self, request: train_pb2.ListJobsRequest, context: Any) -> train_pb2.ListJobsResponse:
        cursor = await self._runtime.log.newest(caller.get())
        jobs, token = await listed(self._jobs, request)
        return train_pb2.ListJobsResponse(jobs=jobs, next_page_token=token, watch_cursor=cursor)

    async def CancelJob(self, request: train_pb2.CancelJobRequest, context: Any) -> train_pb2.CancelJobResponse:
        return train_pb2.CancelJobResponse(job=await self.work.cancel(request.name, visible_owner()))

    async def EstimateJob(self, request: train_pb2.EstimateJobRequest, context: Any) -> train_pb2.EstimateJobResponse:
        if request.spec.HasField("continue_clips"):
            text = "The time of a training is estimated; that of a continuation is not."
            raise InvalidSpec([Violation("spec.continue_clips", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text)])
        # Copied beside the loop: the copy of a megabyte of empty entries takes ten milliseconds and more.
        asked = partial(CreateJobRequest, spec=request.spec, options=request.options)
        job = await self._resolved(await beside(request.ByteSize(), asked))
        return await self._estimator.estimate(job.effective_spec.extend_prefix, job.options, caller.get())

    async def DeleteJob(self, request: train_pb2.DeleteJobRequest, context: Any) -> train_pb2.DeleteJobResponse:
        # Bytes before the row: when the store does not answer, a repeat of the call still finds the job.
        await self._jobs.require_finished(request.name, visible_owner())
        await self._runtime.objects.delete_prefix(f"{request.name}/")
        await self._jobs.delete(request.name, visible_owner())
        return train_pb2.DeleteJobResponse()

    async def WatchJob(
        self, request: train_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobResponse]:
        await self._jobs.get(request.name, visible_owner())
        async for response in self._watches.responses(
            request.name, request.after_sequence, train_pb2.WatchJobResponse, request.kinds
        ):
            yield response

    async def WatchJobs(
        self, request: train_pb2.WatchJobsRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobsResponse]:
        async for response in self._watches.of_owner(caller.get(), request.after_cursor, request.kinds):
            yield response

    async def ListArtifacts(
        self, request: train_pb2.ListArtifactsRequest, context: Any
    ) -> train_pb2.ListArtifactsResponse:
        check_count("kinds", request.kinds, MAX_FILTERS)
        await self._jobs.get(request.parent, visible_owner())
        artifacts, token = await self._jobs.children(
            request.parent, "artifacts", Artifact, request.page_size, request.page_token
        )
        if request.kinds:
            kinds = set(request.kinds)
            artifacts = [artifact for artifact in artifacts if artifact.kind in kinds]
        return train_pb2.ListArtifactsResponse(artifacts=artifacts, next_page_token=token)

    async def GetArtifact(self, request: train_pb2.GetArtifactRequest, context: Any) -> train_pb2.GetArtifactResponse:
        job, found, name = request.name.partition("/artifacts/")
        await self._jobs.get(job, visible_owner())
        artifact = await self._jobs.child(job, "artifacts", name, Artifact) if found else None
        if artifact is None:
            raise NotFound(request.name)
        url, expires = await sign_download(self._runtime.objects, artifact.blob)
        return train_pb2.GetArtifactResponse(artifact=artifact, download_url=url, expire_time=expires)

    async def ListWebhookKeys(
        self, request: train_pb2.ListWebhookKeysRequest, context: Any
    ) -> train_pb2.ListWebhookKeysResponse:
        return train_pb2.ListWebhookKeysResponse(keys=await self.webhooks.keys())

    async def _create(
        self, job: Job, request_id: str, request: Message, *, owner: str | None = None, webhook_url: str = ""
    ) -> Job:
        """Make a job durable and start it. Raises QueueFull and RequestIdReused."""
        job.name = new_name("jobs")
        made = await self._jobs.create(
            job,
            owner=owner or caller.get(),
            request_id=request_id,
            digest=request_digest(request),
            limit=self._runtime.settings.max_queued_jobs,
            owner_limit=self._runtime.settings.max_owner_jobs,
            outgoing=StringValue(value=webhook_url) if webhook_url else None,
        )
        self.work.start(made.name)
        return made

    async def _ask(self, name: str, request: Request) -> Job:
        """Make a request to a training durable, then tell it. Raises NotReady."""
        job = await self._jobs.get(name, visible_owner())
        if continues_clips(job):
            raise NotReady(f"{name} trains nothing: it continues clips.", metadata={"name": name})
        if request is Request.PREVIEW and not job.effective_spec.extend_prefix.validation:
            raise NotReady(f"{name} has no validation inputs to preview.", metadata={"name": name})
        begun = await self._jobs.all_children(name, FACTS, Struct)
        try:
            async with self._jobs.edit(name) as edit:
                if edit.body.lifecycle.state == State.STATE_CANCELLING:
                    raise StaleAttempt(name)
                if not begun:
                    raise NotReady(f"The training of {name} has not begun.", metadata={"name": name})
                fresh = not getattr(edit.body, REQUESTED[request])
                setattr(edit.body, REQUESTED[request], True)
        except StaleAttempt:
            raise NotReady(f"{name} has ended, or is being cancelled.", metadata={"name": name}) from None
        if fresh:
            # One that is told, or even under way, is the same request until it is done.
            delivery = asyncio.create_task(self._deliver(name))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._deliveries.discard)
        return await self._jobs.get(name)

    async def _deliver(self, name: str) -> None:
        try:
            await self._workflow.deliver(name)
        except (WorkerLost, ClusterLost, DatabaseUnavailable) as error:
            # The next start of the training reads it from the job.
            log.info("a request waits for the next start: %s", error, extra={"resource": name})

    async def _has_training_set(self, job: Job) -> bool:
        name = job.continue_from.training_set
        return bool(name) and await self._upstream.has_training_set(name, caller.get())

    async def _resolved(self, request: CreateJobRequest, origin: Origin | None = None) -> Job:
        """The job that a request would become, nameless. Raises InvalidSpec with every violation."""

        continues = request.spec.HasField("continue_clips")

        def resolved() -> Job:
            made = self._continuation(request, origin) if continues else self._training(request, origin)
            options, violations = made.options, made.violations
            named = {violation.field for violation in violations}
            violations += [item for item in check_offered(options, offer) if item.field not in named]
            violations += check_request_id(request.request_id)
            violations += check_names(request.display_name, request.labels)
            violations += self._check_webhook(request.webhook_url)
            job = Job(
                spec=request.spec,
                effective_spec=made.spec,
                options=options,
                continue_from=made.continue_from,
                display_name=request.display_name,
                labels=request.labels,
            )
            if violations:
                raise InvalidSpec(violations)
            if request.webhook_url:
                job.webhook.origin = webhook_origin(request.webhook_url)
            return job

        offer = await self._offer(max(request.options.gpu_count, origin.job.options.gpu_count if origin else 0))
        return await beside(request.ByteSize(), resolved)

    def _training(self, request: CreateJobRequest, origin: Origin | None) -> Resolved:
        given = request.spec.extend_prefix, request.options
        asked = origin.inherited(*given) if origin is not None else given
        spec, violations = resolve(asked[0], self._check_url)
        options, wrong_options = resolve_options(asked[1], spec.number_of_steps)
        violations += wrong_options
        continue_from = None
        if origin is not None:
            continue_from, wrong = origin.continuation(request.continue_from, given[0], spec, options)
            named = {violation.field for violation in violations}
            violations += [violation for violation in wrong if violation.field not in named]
        return Resolved(TaskSpec(extend_prefix=spec), options, continue_from, violations)

    def _continuation(self, request: CreateJobRequest, origin: Origin | None) -> Resolved:
        assert origin is not None, "CreateJob has read it"
        clips = request.spec.continue_clips
        return resolve_clips(origin, request.continue_from, clips, request.options, self._check_url)

    def _check_webhook(self, url: str) -> list[Violation]:
        refusal = webhook_refusal(url, self._runtime.settings.fetch_allow) if url else None
        if refusal is None:
            return []
        return [Violation("webhook_url", ErrorReason.ERROR_REASON_URL_NOT_ALLOWED, refusal)]

    def _check_url(self, url: str) -> str | None:
        return check_url(url, self._runtime.settings.fetch_allow, self._runtime.settings.source_buckets)

    async def _offer(self, wanted: int) -> Offer:
        """The cluster's offer; when more is wanted than there was, nodes that have come since are counted."""
        cluster, settings = self._runtime.cluster, self._runtime.settings
        if wanted > cluster.gpu_count:
            await cluster.refresh()
        room = self._workflow.room()
        return Offer(room.present, room.on_gpus, most=settings.max_gpus, most_of_an_owner=settings.max_owner_gpus)
