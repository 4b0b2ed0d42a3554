"""Client of TrainService, the front door: from a parameter sheet to a LoRA."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import (
    CancelJobRequest,
    CreateJobRequest,
    CreateJobResponse,
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
    WatchJobRequest,
    WebhookKey,
)
from ltxtrain.v1.train_pb2_grpc import TrainServiceStub
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_client.calls import Client, new_request_id
from ltxtrain_client.channel import Channel
from ltxtrain_client.errors import OutputMissing
from ltxtrain_client.transfer import FileDigest, Transfer, get_file
from ltxtrain_client.watch import STEADY, Pace, watch


class TrainClient(Client):
    """One method per RPC of TrainService, and `download` for artifacts.

    Every method raises CallError when the call fails.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._stub = TrainServiceStub(channel.aio)

    async def submit(
        self,
        spec: ExtendPrefixSpec,
        options: JobOptions | None = None,
        *,
        request_id: str | None = None,
        webhook_url: str = "",
    ) -> Job:
        """Start a job, which runs whether or not it is watched. The same `request_id` returns the same job.

        A signed message is sent to `webhook_url` when the job has ended; Job.webhook tells how that fares.
        Raises InvalidArgument with every wrong field when the request is invalid; nothing is started then.
        """
        request = CreateJobRequest(
            request_id=request_id or new_request_id(), spec=spec, options=options, webhook_url=webhook_url
        )
        return (await self._call(self._stub.CreateJob, request)).job

    async def resolve(
        self, spec: ExtendPrefixSpec, options: JobOptions | None = None, *, webhook_url: str = ""
    ) -> CreateJobResponse:
        """The job that `submit` would start, without a name and with every default, and the settings of its data.

        With `fit_only` set, the settings make create_training_set a check of the data without a GPU; see check_data.
        Raises like `submit`.
        """
        request = CreateJobRequest(
            request_id=new_request_id(), spec=spec, options=options, webhook_url=webhook_url, validate_only=True
        )
        return await self._call(self._stub.CreateJob, request)

    async def validate(self, spec: ExtendPrefixSpec, options: JobOptions | None = None) -> Job:
        """The job that `submit` would start, without a name and with every default filled in. Raises like `submit`."""
        return (await self.resolve(spec, options)).job

    async def estimate(self, spec: ExtendPrefixSpec, options: JobOptions | None = None) -> EstimateJobResponse:
        """Estimate the time, memory and price of a job."""
        return await self._call(self._stub.EstimateJob, EstimateJobRequest(spec=spec, options=options))

    async def webhook_keys(self) -> list[WebhookKey]:
        """Public keys of the signatures of webhooks."""
        return list((await self._call(self._stub.ListWebhookKeys, ListWebhookKeysRequest())).keys)

    async def get_job(self, name: str) -> Job:
        return (await self._call(self._stub.GetJob, GetJobRequest(name=name))).job

    def list_jobs(self, states: "Sequence[State | str]" = (), page_size: int = 0) -> AsyncGenerator[Job, None]:
        """Your jobs in one of `states` (empty: all), newest first; pages are fetched as needed."""
        request = ListJobsRequest(states=states, page_size=page_size)
        return self._pages(self._stub.ListJobs, request, lambda response: response.jobs)

    async def cancel_job(self, name: str) -> Job:
        """Stop a job; the LoRA of its last checkpoint remains. A job that has ended is returned unchanged."""
        return (await self._call(self._stub.CancelJob, CancelJobRequest(name=name))).job

    async def delete_job(self, name: str) -> None:
        """Delete a job with its artifacts. Raises FailedPrecondition when it has not ended yet."""
        await self._call(self._stub.DeleteJob, DeleteJobRequest(name=name))

    def watch_job(
        self, name: str, after_sequence: int = 0, pace: Pace = STEADY
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of a job until it ends, across reconnects; see watch.watch. Closing the iterator cancels nothing."""
        return watch(
            lambda cursor: self._stub.WatchJob(
                WatchJobRequest(name=name, after_sequence=cursor), metadata=self.channel.metadata
            ),
            after_sequence,
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
        blob = (await self.get_artifact(artifact)).artifact.blob

        async def fresh_url() -> str:
            return (await self.get_artifact(artifact)).download_url

        async for step in get_file(path, FileDigest(blob.size_bytes, blob.sha256), fresh_url):
            yield step
