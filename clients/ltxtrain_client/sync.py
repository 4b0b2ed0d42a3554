"""The clients without `await`, for scripts and for cells of a notebook, in which an event loop runs already.

with connect("127.0.0.1:7003") as channel:
    train = TrainClient(channel)
    for sequence, event in train.watch_job("jobs/1"):
        print(sequence, event)

Every method is made from the asynchronous client's of the same name, so that arguments, results, errors and types are
the same; all of them run on one event loop in a thread of its own.
"""

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec

from ltxtrain_client import channel, check, ingest, preprocess, sheet_files, suite, train
from ltxtrain_client.channel import ClientSettings, Credentials
from ltxtrain_client.sheet import Sheet
from ltxtrain_client.sheet_files import NO_FILES, SheetFiles
from ltxtrain_client.transfer import Transfer
from ltxtrain_client.upload_source import Source
from ltxtrain_client.view import SilentView, View

NO_CREDENTIALS = Credentials()

P = ParamSpec("P")
R = TypeVar("R")


class _Background:
    """An event loop in a thread, started by the first call and stopped when the interpreter ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id: int | None = None

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Wait for the result of a coroutine; Ctrl-C cancels it.

        Raises RuntimeError in that thread itself, as from a View's methods, where it would wait for ever.
        """
        if self._loop is not None and threading.get_ident() == self._thread_id:
            work.close()
            raise RuntimeError("A callback of this client calls it: use the asynchronous client there.")
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_exception_handler(_log_but_for_polls)
                thread = threading.Thread(target=self._loop.run_forever, name="ltxtrain-client", daemon=True)
                thread.start()
                self._thread_id = thread.ident
                atexit.register(self._stop, self._loop, thread)
            return self._loop

    def _stop(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await loop.shutdown_asyncgens()

        asyncio.run_coroutine_threadsafe(cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _log_but_for_polls(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # grpc.aio wakes the loops of all threads for an event of any; those that come late find its socket empty.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


_background = _Background()


def _waiting(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """The method that waits for the result of an asynchronous one."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _background.run(method(self.aio, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Any, P], Generator[R, None, None]]:
    """The generator of an asynchronous one's items; closing it ends the call behind it."""

    @wraps(method)
    def items(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        async def begun() -> AsyncGenerator[R, None]:
            return method(self.aio, *args, **kwargs)

        found = _background.run(begun())
        try:
            while True:
                try:
                    item = _background.run(_next(found))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _background.run(found.aclose())

    return items


async def _next(items: AsyncGenerator[R, None]) -> R:
    return await anext(items)


class Channel:
    """A connection to one service, shared by any number of clients and threads. Close it, or use `with`."""

    def __init__(self, aio: channel.Channel) -> None:
        self.aio = aio

    def acting_for(self, owner: str) -> "Channel":
        """See the asynchronous Channel."""
        return Channel(self.aio.acting_for(owner))

    close = _waiting(channel.Channel.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    address: str,
    credentials: Credentials = NO_CREDENTIALS,
    *,
    deadline_seconds: float = channel.UNARY_DEADLINE_SECONDS,
    use_proxy: bool = True,
) -> Channel:
    """Open a channel; see ltxtrain_client.connect. Nothing is dialled before the first call."""

    async def connected() -> channel.Channel:
        return channel.connect(address, credentials, deadline_seconds=deadline_seconds, use_proxy=use_proxy)

    return Channel(_background.run(connected()))


class _Client:
    """Client of one service. Cheap to create: the connection belongs to the channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def acting_for(self, owner: str) -> Self:
        """A client on the same connection that acts for `owner`. Only a service's token may do so."""
        return type(self)(self.channel.acting_for(owner))


class TrainClient(_Client):
    """One method per RPC of TrainService, and `download` for artifacts; see ltxtrain_client.TrainClient."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.aio = train.TrainClient(channel.aio)

    submit = _waiting(train.TrainClient.submit)
    validate = _waiting(train.TrainClient.validate)
    estimate = _waiting(train.TrainClient.estimate)
    webhook_keys = _waiting(train.TrainClient.webhook_keys)
    get_job = _waiting(train.TrainClient.get_job)
    list_jobs = _iterating(train.TrainClient.list_jobs)
    watch_cursor = _waiting(train.TrainClient.watch_cursor)
    cancel_job = _waiting(train.TrainClient.cancel_job)
    retry_job = _waiting(train.TrainClient.retry_job)
    checkpoint_job = _waiting(train.TrainClient.checkpoint_job)
    preview_job = _waiting(train.TrainClient.preview_job)
    delete_job = _waiting(train.TrainClient.delete_job)
    watch_job = _iterating(train.TrainClient.watch_job)
    watch_jobs = _iterating(train.TrainClient.watch_jobs)
    list_artifacts = _iterating(train.TrainClient.list_artifacts)
    get_artifact = _waiting(train.TrainClient.get_artifact)
    download = _waiting(train.TrainClient.download)
    download_steps = _iterating(train.TrainClient.download_steps)


class Upload:
    """A file that the object store expects; see ltxtrain_client.Upload."""

    def __init__(self, aio: ingest.Upload) -> None:
        self.aio = aio
        self.name = aio.name
        self.url = aio.url
        self.complete = aio.complete

    send = _iterating(ingest.Upload.send)


class IngestClient(_Client):
    """One method per RPC of IngestService, and `upload` for files; see ltxtrain_client.IngestClient."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.aio = ingest.IngestClient(channel.aio)

    def prepare_upload(self, source: Path | Source, show_hashing: Callable[[Transfer], None] | None = None) -> Upload:
        """Hash a file or source and announce it to the store. Raises OSError when it cannot be read."""
        return Upload(_background.run(self.aio.prepare_upload(source, show_hashing)))

    def upload(self, source: Path | Source) -> Upload:
        """Upload a file or source; what an earlier upload of it has stored is not sent again.

        Raises TransferFailed when the store does not take it, OSError when a file cannot be read.
        """
        return Upload(_background.run(self.aio.upload(source)))

    create_upload = _waiting(ingest.IngestClient.create_upload)
    list_upload_parts = _waiting(ingest.IngestClient.list_upload_parts)
    complete_upload = _waiting(ingest.IngestClient.complete_upload)
    create_dataset = _waiting(ingest.IngestClient.create_dataset)
    get_dataset = _waiting(ingest.IngestClient.get_dataset)
    list_datasets = _iterating(ingest.IngestClient.list_datasets)
    cancel_dataset = _waiting(ingest.IngestClient.cancel_dataset)
    delete_dataset = _waiting(ingest.IngestClient.delete_dataset)
    list_clips = _iterating(ingest.IngestClient.list_clips)
    get_clip = _waiting(ingest.IngestClient.get_clip)
    list_dataset_report = _iterating(ingest.IngestClient.list_dataset_report)
    watch_dataset = _iterating(ingest.IngestClient.watch_dataset)


class PreprocessClient(_Client):
    """One method per RPC of PreprocessService; see ltxtrain_client.PreprocessClient."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.aio = preprocess.PreprocessClient(channel.aio)

    create_training_set = _waiting(preprocess.PreprocessClient.create_training_set)
    get_training_set = _waiting(preprocess.PreprocessClient.get_training_set)
    list_training_sets = _iterating(preprocess.PreprocessClient.list_training_sets)
    cancel_training_set = _waiting(preprocess.PreprocessClient.cancel_training_set)
    delete_training_set = _waiting(preprocess.PreprocessClient.delete_training_set)
    list_samples = _iterating(preprocess.PreprocessClient.list_samples)
    list_training_set_report = _iterating(preprocess.PreprocessClient.list_training_set_report)
    get_training_set_file = _waiting(preprocess.PreprocessClient.get_training_set_file)
    watch_training_set = _iterating(preprocess.PreprocessClient.watch_training_set)


class Suite:
    """Clients of the three services; see ltxtrain_client.Suite."""

    def __init__(self, train: TrainClient, ingest: IngestClient, preprocess: PreprocessClient) -> None:
        self.train = train
        self.ingest = ingest
        self.preprocess = preprocess
        self.aio = suite.Suite(train.aio, ingest.aio, preprocess.aio)

    remote_file = _waiting(suite.Suite.remote_file)
    download_steps = _iterating(suite.Suite.download_steps)


@contextmanager
def open_suite(settings: ClientSettings) -> Iterator[Suite]:
    """Clients for the addresses in `settings`; nothing is dialled before the first call."""
    stack = AsyncExitStack()
    opened = _background.run(stack.enter_async_context(suite.open_suite(settings)))
    try:
        yield Suite(
            TrainClient(Channel(opened.train.channel)),
            IngestClient(Channel(opened.ingest.channel)),
            PreprocessClient(Channel(opened.preprocess.channel)),
        )
    finally:
        _background.run(stack.aclose())


def check_data(suite: Suite, sheet: Sheet, files: SheetFiles = NO_FILES, view: View | None = None) -> check.DataCheck:
    """Check the training data and validation clips of a sheet; see ltxtrain_client.check_data."""
    return _background.run(check.check_data(suite.aio, sheet, files, view))


def upload_files(files: SheetFiles, ingest: IngestClient, spec: ExtendPrefixSpec, view: View | None = None) -> None:
    """Upload all files of a sheet and put their references into the spec; see ltxtrain_client.SheetFiles.upload."""
    _background.run(sheet_files.SheetFiles.upload(files, ingest.aio, spec, view or SilentView()))
