"""Everything at once against a whole suite, for half an hour (ATTACK_SECONDS), with its cost in view.

Raw bytes to every port, the worst value of every field, random requests, names in every script, races, and a database
that goes away and comes back elsewhere. At the end the figures are printed and held against what is allowed.
"""

import asyncio
import json
import os
import random
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from ltxtrain_client import CallError, IngestClient, NotFound, connect
from ltxtrain_client.channel import Credentials

from ltxtrain_services.local.up import GATEWAY, SERVICES, Suite
from tests.attack.assaults import ASSAULTS
from tests.attack.http_requests import REQUESTS, answer
from tests.attack.target import handles, resident_bytes
from tests.attack.worst_values import SCRIPTS, WorstValues
from tests.services.runtime.postgres import Postgres
from tests.suite.random_requests import RandomRequests
from tests.suite.test_fuzz import REFUSALS, Fuzz, check_what_was_made

SECONDS = float(os.environ.get("ATTACK_SECONDS", "1800"))
# For how long the database is away, once a round.
AWAY_SECONDS = min(60.0, SECONDS / 60)
TOKEN = "ann-token"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
CREDENTIALS = Credentials(token=TOKEN)
TIMING = Path(__file__).parent / "timing"

LONGEST_CALLBACK_MS = 50.0
LOG_BYTES_PER_REFUSED_CALL = 300.0
# Of each service's memory, beyond what the first round brought; of its handles.
GROWTH_BYTES = 100 * 2**20
MORE_HANDLES = 40


@dataclass
class Figures:
    requests: int = 0
    wire_calls: int = 0
    http_requests: int = 0
    wire_log_bytes: int = 0
    files: int = 0
    races: int = 0
    outages: int = 0
    answers: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def running(folder: Path, model: Path, databases: dict[str, str]) -> AsyncIterator[Suite]:
    (folder / "times").mkdir()
    (folder / "tokens").write_text(f"ann {TOKEN}\n")
    environ = {
        "LTXTRAIN_TOKENS_FILE": str(folder / "tokens"),
        "LTXTRAIN_SERVICE_TOKEN": uuid.uuid4().hex,
        "LTXTRAIN_TORCH_THREADS": "1",
        "CALLBACK_TIMES": str(folder / "times"),
        "PYTHONPATH": os.pathsep.join([str(TIMING), os.environ.get("PYTHONPATH", "")]),
    }
    ports = dict.fromkeys((*SERVICES, GATEWAY), 0)
    async with Suite(
        folder / "suite", model=str(model), ports=ports, num_cpus=2, databases=databases, environ=environ
    ) as suite:
        (folder / "times/reset").touch()
        yield suite


class Soak:
    def __init__(self, suite: Suite, postgres: Postgres, folder: Path, seed: int) -> None:
        self.suite = suite
        self.figures = Figures()
        self._postgres = postgres
        self._folder = folder
        self._dice = random.Random(seed)
        self._sources = (WorstValues(seed), RandomRequests(seed))
        self._proxy: asyncio.Server | None = None

    def measure(self) -> dict[str, tuple[int, int]]:
        """Memory and handles of each service."""
        return {name: (resident_bytes(pid), handles(pid)) for name, pid in self.suite.pids.items()}

    def log_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.suite.state_dir / "logs").iterdir())

    def unforeseen(self) -> list[str]:
        lines = [line for path in (self.suite.state_dir / "logs").iterdir() for line in path.read_text().splitlines()]
        return [line[:2_000] for line in lines if '"level": "ERROR"' in line or '"level": "CRITICAL"' in line]

    async def round(self) -> None:
        await self._wire()
        await self._http()
        for source, count in zip(self._sources, (300, 100), strict=True):
            await self._fuzz(source, count)
        await self._names()
        await self._races()
        await self._outage()
        assert not self.unforeseen(), self.unforeseen()

    async def _wire(self) -> None:
        for address in (self.suite.train_address, self.suite.preprocess_address, self.suite.ingest_address):
            for assault in self._dice.sample(list(ASSAULTS.values()), 5):
                before = self.log_bytes()
                self.figures.wire_calls += await assault(address, random.Random(self._dice.random()))
                self.figures.wire_log_bytes += max(0, self.log_bytes() - before)

    async def _http(self) -> None:
        """Requests to the gateway that are none: each is answered, and none as a fault of its own."""
        address = self.suite.address(GATEWAY)
        for name, sent in self._dice.sample(list(REQUESTS.items()), len(REQUESTS)):
            before = self.log_bytes()
            got = await answer(address, sent)
            assert got.startswith(b"HTTP/1.") and b" 500 " not in got.partition(b"\r\n")[0], (name, got[:300])
            self.figures.http_requests += 1
            self.figures.wire_calls += 1
            self.figures.wire_log_bytes += max(0, self.log_bytes() - before)

    def longest_refusal(self) -> int:
        """Bytes of the longest line that a refused call has written, its newline included."""
        lines = [line for path in (self.suite.state_dir / "logs").iterdir() for line in path.read_bytes().splitlines()]
        return max((len(line) + 1 for line in lines if b'"message": "refused' in line), default=0)

    async def _fuzz(self, source: RandomRequests, count: int, allowed: frozenset[grpc.StatusCode] = REFUSALS) -> None:
        addresses = {
            "train": self.suite.train_address,
            "preprocess": self.suite.preprocess_address,
            "ingest": self.suite.ingest_address,
        }
        async with AsyncExitStack() as stack:
            channels = {
                name: await stack.enter_async_context(grpc.aio.insecure_channel(address))
                for name, address in addresses.items()
            }
            http = await stack.enter_async_context(aiohttp.ClientSession())
            fuzz = Fuzz(channels, http, source, METADATA, allowed)
            await fuzz.run(count)
        self.figures.requests += count
        self.figures.answers += Counter(answer.split(" ")[1] for answer in fuzz.answered.elements())

    async def _names(self) -> None:
        """An archive whose files have names in every script comes back with those names in its report."""
        path = self._folder / "names.zip"
        wanted = {f"{name or 'empty'} {index}.mp4" for index, name in enumerate(SCRIPTS)}
        with zipfile.ZipFile(path, "w") as archive:
            for name in wanted:
                archive.writestr(name, self._dice.randbytes(200))
        async with connect(self.suite.ingest_address, CREDENTIALS) as channel:
            client = IngestClient(channel)
            upload = await client.upload(path)
            dataset = await client.create_dataset(upload=upload.name)
            told = {
                event.report_line.path
                async for _, event in client.watch_dataset(dataset.name)
                if event.WhichOneof("detail") == "report_line"
            }
            assert len(told & wanted) >= len(wanted) - 5, wanted - told
            await client.delete_dataset(dataset.name)
        self.figures.files += len(wanted)

    async def _races(self) -> None:
        """Two starts of one request, a cancellation beside a deletion, a watch beside both: one of each kind wins."""
        async with connect(self.suite.ingest_address, CREDENTIALS) as channel:
            client = IngestClient(channel)
            upload = (await client.upload(self._folder / "names.zip")).name
            for _ in range(10):
                request_id = str(uuid.uuid4())
                starts = [client.create_dataset(upload=upload, request_id=request_id) for _ in range(4)]
                made = await asyncio.gather(*starts)
                (name,) = {dataset.name for dataset in made}
                ends = [client.cancel_dataset(name), client.delete_dataset(name)] * 2
                self._dice.shuffle(ends)
                said = await asyncio.gather(*ends, _watch(client, name), _watch(client, name), return_exceptions=True)
                strange = [each for each in said if isinstance(each, Exception) and not isinstance(each, CallError)]
                assert not strange, strange
                with suppress(NotFound):
                    await _watch(client, name)
                    await client.delete_dataset(name)
                self.figures.races += 3

    async def _outage(self) -> None:
        """The database is away, callers are told so, and it is back at another place behind the same address."""
        if self._proxy is not None:
            self._proxy.close()
        self._postgres.stop()
        began = time.monotonic()
        allowed = REFUSALS | {grpc.StatusCode.UNAVAILABLE}
        while time.monotonic() - began < AWAY_SECONDS:
            await self._fuzz(self._sources[1], 20, allowed)
            await asyncio.sleep(0.5)
        elsewhere = await asyncio.to_thread(self._postgres.start_elsewhere)
        self._proxy = await asyncio.start_unix_server(lambda *ends: _forward(elsewhere, *ends), self._postgres.socket)
        for name in SERVICES:
            await self.suite.wait_ready(name)
        self.figures.outages += 1

    def slow_callbacks(self) -> list[dict[str, Any]]:
        """The slowest of the three services' event loops, by their threads' CPU time."""
        found = [each for path in self._times() for each in json.loads(path.read_text())["slowest"]]
        return sorted(found, key=lambda each: -float(each["cpu_ms"]))

    def _times(self) -> list[Path]:
        return list((self._folder / "times").glob("*.json"))


async def _watch(client: IngestClient, name: str) -> None:
    async for _ in client.watch_dataset(name):
        pass


async def _forward(elsewhere: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        other_reader, other_writer = await asyncio.open_unix_connection(elsewhere)

        async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pipe(reader, other_writer), pipe(other_reader, writer))
    writer.close()


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
async def test_nothing_that_is_sent_costs_more_than_it_should(
    tmp_path: Path, tiny_model: Path, postgres: Postgres
) -> None:
    databases = {name: postgres.new_database() for name in SERVICES}
    async with running(tmp_path, tiny_model, databases) as suite:
        soak = Soak(suite, postgres, tmp_path, seed=int(os.environ.get("ATTACK_SEED", "20")))
        began = time.monotonic()
        await soak.round()
        pids, before, rounds = dict(suite.pids), soak.measure(), 1
        while time.monotonic() - began < SECONDS:
            await soak.round()
            rounds += 1
        for source in soak._sources:
            await check_what_was_made(suite, source, CREDENTIALS)
        await asyncio.sleep(2.0)
        after, slow, figures = soak.measure(), soak.slow_callbacks(), soak.figures
        longest = slow[0] if slow else {"cpu_ms": 0.0, "ms": 0.0}
        assert suite.pids == pids, "a service has ended and was started again"
        grown = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in after}
        log_bytes = figures.wire_log_bytes / max(1, figures.wire_calls)
        print(
            f"\n{time.monotonic() - began:.0f} s, {rounds} rounds: {figures.requests} requests,",
            f"{figures.wire_calls} raw calls, {figures.http_requests} of them HTTP,",
            f"{figures.files} files, {figures.races} races, {figures.outages} outages; INTERNAL 0, stops 0;",
            f"longest callback {longest['cpu_ms']:.1f} ms CPU ({longest['ms']:.1f} by the clock);",
            f"{log_bytes:.1f} log bytes per refused call, {soak.longest_refusal()} at most;",
            f"grown (bytes, handles) {grown} from {before}",
            f"\n{dict(figures.answers)}",
            *(
                f"\n{each['cpu_ms']:.1f} ms of CPU, {each['ms']:.1f} ms: {each['what']}\n{each['seen']}"
                for each in slow[:8]
            ),
        )
        assert float(longest["cpu_ms"]) <= LONGEST_CALLBACK_MS, longest
        assert max(log_bytes, soak.longest_refusal()) <= LOG_BYTES_PER_REFUSED_CALL
        assert all(memory <= GROWTH_BYTES and handles <= MORE_HANDLES for memory, handles in grown.values()), grown
