"""Workers of one node ask the object store for each file once, and what they train does not change by it."""

import asyncio
import dataclasses
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests import processes
from tests.services.train.running import running

GET = re.compile(rb"GET /[^/ ]+/([^? ]+)[^ ]* HTTP/1.1")


@asynccontextmanager
async def counted(store: StoreAddress) -> AsyncIterator[tuple[StoreAddress, Counter[str]]]:
    """The same store by another address, which counts the objects that are asked for there, by key."""
    asked = Counter[str]()
    host, _, port = store.endpoint.rpartition("//")[2].rpartition(":")
    served = set[asyncio.Task[None]]()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counting: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                if counting:
                    asked.update(key.decode() for key in GET.findall(data))
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        there, back = await asyncio.open_connection(host, int(port))
        with suppress(asyncio.CancelledError):
            await asyncio.gather(pass_on(reader, back, True), pass_on(there, writer, False))
        writer.close()
        back.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield dataclasses.replace(store, endpoint=endpoint), asked
    finally:
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


# Short form, without counting: tests/services/train/test_together.py trains by the same files with two workers.
@pytest.mark.soak
async def test_two_workers_of_a_node_ask_for_each_sample_once_and_train_the_same_bytes(
    tiny_model: Path, object_store: StoreAddress, ray_cluster: Cluster, tmp_path: Path
) -> None:
    options = {"batch_size": 2, "checkpoint_interval": 10}
    async with (
        counted(object_store) as (store, asked),
        running(tmp_path, tiny_model, store, ray_cluster, cpu_trainers=2) as trainer,
    ):
        samples = await trainer.samples(4)
        files = {blob.key for sample in samples for blob in (sample.latents, sample.prompt)}
        asked.clear()
        both = await trainer.start(samples, options | {"gpu_count": 2})
        await trainer.reached(both, 25)
        actors = processes.find(processes.TRAIN_ACTOR)
        assert len(actors) == 2
        assert {key: asked[key] for key in files} == dict.fromkeys(files, 1)
        # Those that go on need a checkpoint too.
        asked.clear()
        processes.kill(actors[1])
        ended = await trainer.ended(both)
        assert ended.lifecycle.state == State.STATE_SUCCEEDED, ended.lifecycle.error
        again = {key: times for key, times in asked.items() if key in files or "/checkpoint-" in key}
        assert len(again) == len(files) + 1 and set(again.values()) == {1}

        alone = await trainer.start(samples, options | {"gpu_count": 1})
        await trainer.ended(alone)
        assert await trainer.lora(alone) == await trainer.lora(both)
