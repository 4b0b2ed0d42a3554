"""Client of TrainService, the front door: from a parameter sheet to a LoRA."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import (
    CancelJobRequest,
    CheckpointJobRequest,
    ContinueFrom,
    CreateJobRequest,
    DeleteJobRequest,
    EstimateJobRequest,
    EstimateJobResponse,
    GetArtifactRequest,
    GetArtifactResponse,
    GetJobRequest,
    Job,
    JobOptions,
    ListArtifactsRequest,
    ListJobsRequest,
    ListWebhookKeysRequest,
    PreviewJobRequest,
    RetryJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
    WatchJobsResponse,
    WebhookKey,
)
from ltxtrain.v1.train_pb2_grpc import TrainServiceStub
from ltxtrain.v1.work_pb2 import Event, EventKind, ListOrder, State

from ltxtrain_client.calls import Client, new_request_id
from ltxtrain_client.channel import Channel
from ltxtrain_client.enum_words import number
from ltxtrain_client.errors import OutputMissing
from ltxtrain_client.transfer import FileDigest, Transfer
from ltxtrain_client.watch import STEADY, Pace, watch, watch_feed


class TrainClient(Client):
    """One method per RPC of TrainService, and `download` for artifacts.

    Every method raises CallError when the call fails.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._stub = TrainServiceStub(channel.aio)

    async def submit(
        self,
        spec: ExtendPrefixSpec | ContinueClipsSpec,
        options: JobOptions | None = None,
        *,
        continue_from: ContinueFrom | None = None,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        webhook_url: str = "",
        request_id: str | None = None,
    ) -> Job:
        """Start a job, which runs whether or not it is watched. The same `request_id` returns the same job.

        It is found by its display_name and its labels again; see list_jobs. `continue_from` names a job to go on from:
        exactly, or from the weights of its LoRA. What spec and options leave out is that job's then. With a
        ContinueClipsSpec nothing is trained: that job's LoRA continues the clips. A signed message is sent to
        `webhook_url` when the job has ended; Job.webhook tells how that fares.
        Raises InvalidArgument with every wrong field when the spec is invalid; nothing is started then.
        """
        request = CreateJobRequest(
            request_id=request_id or new_request_id(),
            spec=_task(spec),
            options=options,
            display_name=display_name,
            labels=labels,
            webhook_url=webhook_url,
            continue_from=continue_from,
        )
        return (await self._call(self._stub.CreateJob, request)).job

    async def validate(
        self,
        spec: ExtendPrefixSpec | ContinueClipsSpec,
        options: JobOptions | None = None,
        *,
        continue_from: ContinueFrom | None = None,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        webhook_url: str = "",
    ) -> Job:
        """The job that `submit` would start, without a name and with every default filled in. Raises like `submit`."""
        request = CreateJobRequest(
            request_id=new_request_id(),
            spec=_task(spec),
            options=options,
            validate_only=True,
            display_name=display_name,
            labels=labels,
            webhook_url=webhook_url,
            continue_from=continue_from,
        )
        return (await self._call(self._stub.CreateJob, request)).job

    async def estimate(self, spec: ExtendPrefixSpec, options: JobOptions | None = None) -> EstimateJobResponse:
        """Estimate the time, memory and price of a job."""
        request = EstimateJobRequest(spec=TaskSpec(extend_prefix=spec), options=options)
        return await self._call(self._stub.EstimateJob, request)

    async def webhook_keys(self) -> list[WebhookKey]:
        """Public keys of the signatures of webhooks."""
        return list((await self._call(self._stub.ListWebhookKeys, ListWebhookKeysRequest())).keys)

    async def get_job(self, name: str) -> Job:
        return (await self._call(self._stub.GetJob, GetJobRequest(name=name))).job

    def list_jobs(
        self,
        states: "Sequence[State | str]" = (),
        page_size: int = 0,
        *,
        labels: Sequence[str] = (),
        text: str = "",
        order: "ListOrder" = ListOrder.LIST_ORDER_NEWEST_FIRST,
    ) -> AsyncGenerator[Job, None]:
        """Your jobs in one of `states` (empty: all); pages are fetched as needed.

        A state is a value of the enum or its word ("failed"). `labels` are "key=value", or "key" with any value, all of
        which a job has; `text` is in its name or display_name.
        """
        wanted: Any = [number(State.DESCRIPTOR, state) for state in states]
        request = ListJobsRequest(
            states=wanted,
            page_size=page_size,
            labels=labels,
            text=text,
            order_by=order,
        )
        return self._pages(self._stub.ListJobs, request, lambda response: response.jobs)

    async def watch_cursor(self) -> int:
        """The present end of `watch_jobs`: from there on it misses nothing that a list begun after this call lacks."""
        return (await self._call(self._stub.ListJobs, ListJobsRequest(page_size=1))).watch_cursor

    async def cancel_job(self, name: str) -> Job:
        """Stop a job after the step that it is at; the LoRA of that step remains. One that has ended stays as it is."""
        return (await self._call(self._stub.CancelJob, CancelJobRequest(name=name))).job

    async def retry_job(self, name: str, *, request_id: str | None = None, webhook_url: str = "") -> Job:
        """Go on with a failed or cancelled job from its last checkpoint; returns the new job that does.

        Without a `request_id`, another call for the same job returns what the first one made. The old job's
        `webhook_url` is not known any more: see `submit`.
        """
        request = RetryJobRequest(name=name, request_id=request_id or "", webhook_url=webhook_url)
        return (await self._call(self._stub.RetryJob, request)).job

    async def checkpoint_job(self, name: str) -> Job:
        """Ask a training for a checkpoint after the step that it is at; its LoRA is an artifact soon after.

        Raises FailedPrecondition before the training has begun and once it has ended.
        """
        return (await self._call(self._stub.CheckpointJob, CheckpointJobRequest(name=name))).job

    async def preview_job(self, name: str) -> Job:
        """Ask a training for previews after the step that it is at. Raises as `checkpoint_job`."""
        return (await self._call(self._stub.PreviewJob, PreviewJobRequest(name=name))).job

    async def delete_job(self, name: str) -> None:
        """Delete a job with its artifacts. Raises FailedPrecondition when it has not ended yet."""
        await self._call(self._stub.DeleteJob, DeleteJobRequest(name=name))

    def watch_job(
        self, name: str, after_sequence: int = 0, pace: Pace = STEADY, *, kinds: "Sequence[EventKind]" = ()
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of a job until it ends, across reconnects; see watch.watch. Closing the iterator cancels nothing.

        Only those of these `kinds` and the last one; empty: all.
        """
        return watch(
            lambda cursor: self._stub.WatchJob(
                WatchJobRequest(name=name, after_sequence=cursor, kinds=kinds), metadata=self.channel.metadata
            ),
            after_sequence,
            pace,
        )

    def watch_jobs(
        self, after_cursor: int = 0, pace: Pace = STEADY, *, kinds: "Sequence[EventKind]" = ()
    ) -> AsyncGenerator[WatchJobsResponse, None]:
        """Events of all your jobs, those to come included, for ever and across reconnects; see watch.watch_feed.

        Only those of these `kinds`; empty: all. Store a message's cursor once it is handled, to resume there.
        """
        return watch_feed(
            lambda cursor: self._stub.WatchJobs(
                WatchJobsRequest(after_cursor=cursor, kinds=kinds), metadata=self.channel.metadata
            ),
            after_cursor,
            pace,
        )

    def list_artifacts(
        self, job: str, kinds: Sequence[Artifact.Kind] = (), page_size: int = 0
    ) -> AsyncGenerator[Artifact, None]:
        """Artifacts of a job so far, of these kinds (empty: all)."""
        request = ListArtifactsRequest(parent=job, kinds=kinds, page_size=page_size)
        return self._pages(self._stub.ListArtifacts, request, lambda response: response.artifacts)

    async def get_artifact(self, name: str) -> GetArtifactResponse:
        """Get one artifact with a URL that serves its bytes for 15 minutes.

        Raises OutputMissing when the name is empty: Job.output has an empty name for every output that was not made.
        """
        if not name:
            raise OutputMissing(
                "The job has no such output: it failed or was cancelled, still runs, or was not asked for it. "
                "Look at job.lifecycle (state and error)."
            )
        return await self._call(self._stub.GetArtifact, GetArtifactRequest(name=name))

    async def download(self, artifact: str, path: Path) -> Path:
        """Download an artifact to `path`, which appears whole and checked by sha256, or not at all.

        Called again after an interruption it resumes. Raises TransferFailed when the store does not serve the right
        bytes, OutputMissing when the name is empty.
        """
        async for _ in self.download_steps(artifact, path):
            pass
        return path

    async def download_steps(self, artifact: str, path: Path) -> AsyncGenerator[Transfer, None]:
        """`download`, yielding progress after each chunk."""
        # With aiohttp, which whoever fetches nothing is spared.
        from ltxtrain_client.presigned import get_file

        blob = (await self.get_artifact(artifact)).artifact.blob

        async def fresh_url() -> str:
            return (await self.get_artifact(artifact)).download_url

        digest = FileDigest(blob.size_bytes, blob.sha256)
        async for step in get_file(path, digest, fresh_url, self.channel.tls_root):
            yield step


def _task(spec: ExtendPrefixSpec | ContinueClipsSpec) -> TaskSpec:
    if isinstance(spec, ContinueClipsSpec):
        return TaskSpec(continue_clips=spec)
    return TaskSpec(extend_prefix=spec)
