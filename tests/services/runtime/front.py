"""A real server on loopback whose jobs are records alone: the store, the event log and the watches of the services."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, State
from ltxtrain_client.channel import OWNER_KEY

from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.paging import request_digest
from ltxtrain_services.runtime.requests import Watches, new_name, visible_owner
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store

FULL_NAME = "ltxtrain.v1.TrainService"


class JobBook(train_pb2_grpc.TrainServiceServicer):
    """TrainService as far as records go; a test moves the jobs through their lives."""

    def __init__(self, database: Database, settings: Settings, heartbeat_seconds: float = 0.05) -> None:
        self.log = EventLog(database, heartbeat_seconds)
        self.jobs: Store[Job] = Store(database, self.log, "jobs", Job, fed=True)
        self._watches = Watches(self.log)
        # Streams that were opened, messages that they have handed to gRPC, and a bell for each that has ended.
        self.streams = 0
        self.sent = 0
        self.stream_ended = asyncio.Event()
        # What EstimateJob does.
        self.estimate: Callable[[], Awaitable[Any]] = self._no_estimate

    async def CreateJob(self, request: train_pb2.CreateJobRequest, context: Any) -> train_pb2.CreateJobResponse:
        job = Job(name=new_name("jobs"), spec=request.spec)
        digest = request_digest(request)
        made = await self.jobs.create(job, owner=caller.get(), request_id=request.request_id, digest=digest)
        return train_pb2.CreateJobResponse(job=made)

    async def GetJob(self, request: train_pb2.GetJobRequest, context: Any) -> train_pb2.GetJobResponse:
        return train_pb2.GetJobResponse(job=await self.jobs.get(request.name, visible_owner()))

    async def ListJobs(self, request: train_pb2.ListJobsRequest, context: Any) -> train_pb2.ListJobsResponse:
        jobs, token = await self.jobs.page(visible_owner(), request.page_size, request.page_token, request.states)
        return train_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def DeleteJob(self, request: train_pb2.DeleteJobRequest, context: Any) -> train_pb2.DeleteJobResponse:
        await self.jobs.delete(request.name, visible_owner())
        return train_pb2.DeleteJobResponse()

    async def EstimateJob(self, request: train_pb2.EstimateJobRequest, context: Any) -> train_pb2.EstimateJobResponse:
        await self.estimate()
        return train_pb2.EstimateJobResponse()

    async def WatchJob(
        self, request: train_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobResponse]:
        await self.jobs.get(request.name, visible_owner())
        kind = train_pb2.WatchJobResponse
        self.streams += 1
        try:
            watch = self._watches.responses(request.name, request.after_sequence, kind, request.kinds)
            async with aclosing(watch) as responses:
                async for response in responses:
                    yield response
                    self.sent += 1
        finally:
            self.stream_ended.set()

    async def WatchJobs(
        self, request: train_pb2.WatchJobsRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobsResponse]:
        async for response in self._watches.of_owner(caller.get(), request.after_cursor, request.kinds):
            yield response

    async def _no_estimate(self) -> None:
        return None

    # What a workflow would do.

    async def add(self, name: str, count: int = 1, text: str = "") -> None:
        """So many events in one transaction, each with a text of that size in it."""
        async with self.jobs.edit(name) as edit:
            for completed in range(count):
                event = Event(progress=Progress(completed=completed))
                edit.add_event(Event(warning=status_pb2.Status(message=text)) if text else event)

    async def finish(self, name: str) -> None:
        async with self.jobs.edit(name) as edit:
            edit.enter(State.STATE_SUCCEEDED)


@dataclass
class Front:
    """A running server, its servicer, and what a caller needs to reach it."""

    book: JobBook
    server: Server
    settings: Settings
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.server.address

    def stub(self, *, token: str = "", owner: str = "", options: Any = (), **secure: Any) -> "Stub":
        """A plain generated client, as any other language has."""
        if secure:
            credentials = grpc.ssl_channel_credentials(**secure)
            channel = grpc.aio.secure_channel(self.address, credentials, options=options)
        else:
            channel = grpc.aio.insecure_channel(self.address, options=options)
        self._channels.append(channel)
        return Stub(channel, token, owner)

    async def drain(self) -> None:
        async def before_close() -> None:
            self.book.log.drain()

        await self.server.stop(before_close)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.grpc.stop(None)


class Stub:
    """The generated stub with a caller's metadata."""

    def __init__(self, channel: grpc.aio.Channel, token: str, owner: str) -> None:
        self.channel = channel
        self._calls = train_pb2_grpc.TrainServiceStub(channel)
        bearer = [("authorization", f"Bearer {token}")] if token else []
        self.metadata = (*bearer, *([(OWNER_KEY, owner)] if owner else []))

    async def create(self, **fields: Any) -> Job:
        return (await self._calls.CreateJob(train_pb2.CreateJobRequest(**fields), metadata=self.metadata)).job

    async def get(self, name: str) -> Job:
        return (await self._calls.GetJob(train_pb2.GetJobRequest(name=name), metadata=self.metadata)).job

    async def list(self, **fields: Any) -> list[str]:
        response = await self._calls.ListJobs(train_pb2.ListJobsRequest(**fields), metadata=self.metadata)
        return [job.name for job in response.jobs]

    def watch_all(self, after: int = 0, **fields: Any) -> Any:
        request = train_pb2.WatchJobsRequest(after_cursor=after, **fields)
        return self._calls.WatchJobs(request, metadata=self.metadata)

    async def delete(self, name: str) -> None:
        await self._calls.DeleteJob(train_pb2.DeleteJobRequest(name=name), metadata=self.metadata)

    async def estimate(self) -> None:
        await self._calls.EstimateJob(train_pb2.EstimateJobRequest(), metadata=self.metadata)

    def watch(self, name: str, after: int = 0, **fields: Any) -> Any:  # a UnaryStreamCall, whose read() is an object
        request = train_pb2.WatchJobRequest(name=name, after_sequence=after, **fields)
        return self._calls.WatchJob(request, metadata=self.metadata)


@asynccontextmanager
async def serving(
    database: Database, settings: Settings, heartbeat_seconds: float = 0.05, **server: Any
) -> AsyncIterator[Front]:
    book = JobBook(database, settings, heartbeat_seconds)
    front = Front(book, Server(settings, [FULL_NAME], **server), settings)
    train_pb2_grpc.add_TrainServiceServicer_to_server(book, front.server.grpc)
    await front.server.start()
    await front.server.set_ready(True)
    try:
        yield front
    finally:
        await front.close()


def told(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    return status


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The first detail, which every error has."""
    info = error_details_pb2.ErrorInfo()
    assert told(error).details[0].Unpack(info)
    assert info.domain == "ltxtrain"
    return info


def detail_of(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    """The first detail of a kind."""
    for packed in told(error).details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"{kind.__name__} is not among the details of {error}")
