"""TrainService: the RPCs. What a job does is in `workflow`."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import Job, JobOptions

from ltxtrain_services.runtime.addresses import check_url
from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.errors import InvalidSpec, NotFound, Violation
from ltxtrain_services.runtime.paging import request_digest
from ltxtrain_services.runtime.requests import (
    MAX_FILTERS,
    Watches,
    beside,
    check_count,
    check_request_id,
    new_name,
    sign_download,
    visible_owner,
)
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import WorkRunner
from ltxtrain_services.train.estimate import Estimator
from ltxtrain_services.train.prepare import preprocess_settings
from ltxtrain_services.train.spec import resolve, resolve_options
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_services.train.webhooks import Webhooks, origin, webhook_refusal
from ltxtrain_services.train.workflow import TrainWorkflow


class TrainService(train_pb2_grpc.TrainServiceServicer):
    """The front door."""

    full_name = "ltxtrain.v1.TrainService"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._jobs: Store[Job] = Store(runtime.database, runtime.log, "jobs", Job)
        self._watches = Watches(runtime.log)
        upstream = Upstream(runtime.settings)
        self._upstream = upstream
        self._estimator = Estimator(runtime, upstream)
        self.webhooks = Webhooks(self._jobs, runtime.objects, runtime.settings)
        self.work = WorkRunner(self._jobs, TrainWorkflow(runtime, upstream, self._estimator), self.webhooks)

    def register(self, server: grpc.aio.Server) -> None:
        train_pb2_grpc.add_TrainServiceServicer_to_server(self, server)

    async def tidy(self) -> None:
        """A job's own blobs go with the job; nothing is shared here."""

    async def CreateJob(self, request: train_pb2.CreateJobRequest, context: Any) -> train_pb2.CreateJobResponse:
        check_request_id(request.request_id)
        job = await self._resolved(request.spec, request.options, request.webhook_url)
        await self._check_gpu_count(job)
        if job.spec.dataset:
            await self._upstream.dataset(job.spec.dataset, caller.get())
        settings = preprocess_settings(job, "")
        if request.validate_only:
            return train_pb2.CreateJobResponse(job=job, settings=settings)
        job.name = new_name("jobs")
        made = await self._jobs.create(
            job,
            owner=caller.get(),
            request_id=request.request_id,
            digest=request_digest(request),
            limit=self._runtime.settings.max_queued_jobs,
            owner_limit=self._runtime.settings.max_owner_jobs,
            outgoing=StringValue(value=request.webhook_url) if request.webhook_url else None,
        )
        self.work.start(made.name)
        return train_pb2.CreateJobResponse(job=made, settings=settings)

    async def GetJob(self, request: train_pb2.GetJobRequest, context: Any) -> train_pb2.GetJobResponse:
        return train_pb2.GetJobResponse(job=await self._jobs.get(request.name, visible_owner()))

    async def ListJobs(self, request: train_pb2.ListJobsRequest, context: Any) -> train_pb2.ListJobsResponse:
        check_count("states", request.states, MAX_FILTERS)
        jobs, token = await self._jobs.page(visible_owner(), request.page_size, request.page_token, request.states)
        return train_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def CancelJob(self, request: train_pb2.CancelJobRequest, context: Any) -> train_pb2.CancelJobResponse:
        return train_pb2.CancelJobResponse(job=await self.work.cancel(request.name, visible_owner()))

    async def EstimateJob(self, request: train_pb2.EstimateJobRequest, context: Any) -> train_pb2.EstimateJobResponse:
        job = await self._resolved(request.spec, request.options)
        return await self._estimator.estimate(job.effective_spec, job.options, caller.get())

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
        async for response in self._watches.responses(request.name, request.after_sequence, train_pb2.WatchJobResponse):
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

    async def _check_gpu_count(self, job: Job) -> None:
        """Raises InvalidSpec for more GPUs than the cluster has, or may come to have, or one caller may have."""
        cluster, settings, wanted = self._runtime.cluster, self._runtime.settings, job.options.gpu_count
        if wanted > cluster.gpu_count:
            await cluster.refresh()
        present = cluster.gpu_count if cluster.uses_gpus else settings.cpu_trainers
        if wanted > max(present, settings.max_gpus):
            text = f"{wanted} GPUs are more than this cluster can have: it has {cluster.gpu_count}"
            text += f", and {settings.max_gpus} at most." if settings.max_gpus else "."
        elif settings.max_owner_gpus and wanted > settings.max_owner_gpus:
            most = settings.max_owner_gpus
            text = f"{wanted} GPUs are more than the {most} that the jobs of one caller may have together."
        else:
            return
        raise InvalidSpec([Violation("options.gpu_count", ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)])

    async def _resolved(self, given: ExtendPrefixSpec, wanted: JobOptions, webhook_url: str = "") -> Job:
        """The job that a request would become, nameless. Raises InvalidSpec with every violation."""

        def resolved() -> Job:
            allow, buckets = self._runtime.settings.fetch_allow, self._runtime.settings.source_buckets
            spec, violations = resolve(given, lambda url: check_url(url, allow, buckets))
            options, wrong_options = resolve_options(wanted, spec.number_of_steps)
            violations += wrong_options
            if webhook_url and (refusal := webhook_refusal(webhook_url, allow)) is not None:
                violations.append(Violation("webhook_url", ErrorReason.ERROR_REASON_URL_NOT_ALLOWED, refusal))
            if violations:
                raise InvalidSpec(violations)
            job = Job(spec=given, effective_spec=spec, options=options)
            if webhook_url:
                job.webhook.origin = origin(webhook_url)
            return job

        return await beside(given.ByteSize(), resolved)
