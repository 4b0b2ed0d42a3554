import asyncio
from contextlib import suppress

from ltxtrain_services.train.queue import GpuQueue


class Line:
    """Jobs in a queue, and what happens to them in the order in which it happens."""

    def __init__(self, capacity: int, patience_seconds: float = 60.0) -> None:
        self.queue = GpuQueue(capacity, patience_seconds)
        self.log: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.prepared: dict[str, asyncio.Event] = {}
        self.done: dict[str, asyncio.Event] = {}

    async def add(self, job: str, created: int, units: int = 1, prepared: bool = True) -> None:
        self.prepared[job], self.done[job] = asyncio.Event(), asyncio.Event()
        if prepared:
            self.prepared[job].set()
        self.tasks[job] = asyncio.create_task(self._run(job, created, units))
        await settle()

    async def end(self, *jobs: str) -> None:
        for job in jobs:
            self.done[job].set()
            await settle()
        for job in jobs:
            await self.tasks[job]

    async def cancel(self, job: str) -> None:
        self.tasks[job].cancel()
        with suppress(asyncio.CancelledError):
            await self.tasks[job]
        await settle()

    @property
    def started(self) -> list[str]:
        return [line.removesuffix(" runs") for line in self.log if line.endswith(" runs")]

    async def _run(self, job: str, created: int, units: int) -> None:
        with self.queue.place(job, created) as place:
            await self.prepared[job].wait()
            async with place.turn(units) as positions:
                async for ahead in positions:
                    self.log.append(f"{job} behind {ahead}")
                self.log.append(f"{job} runs")
                await self.done[job].wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_jobs_run_in_the_order_of_their_creation() -> None:
    line = Line(1)
    for job, created in (("a", 1), ("c", 3), ("b", 2)):
        await line.add(job, created)
    assert line.log == ["a runs", "c behind 0", "b behind 0", "c behind 1"]
    await line.end("a", "b", "c")
    assert line.started == ["a", "b", "c"]


async def test_nobody_overtakes_a_job_that_needs_more() -> None:
    line = Line(2)
    for job, created, units in (("a", 1, 1), ("b", 2, 2), ("c", 3, 1)):
        await line.add(job, created, units)
    assert line.started == ["a"]
    await line.end("a")
    assert line.started == ["a", "b"]
    await line.end("b", "c")
    assert line.started == ["a", "b", "c"]


async def test_a_job_that_is_cancelled_leaves_the_line() -> None:
    line = Line(1)
    for job, created in (("a", 1), ("b", 2), ("c", 3)):
        await line.add(job, created)
    await line.cancel("b")
    assert line.log[-1] == "c behind 0"
    await line.cancel("a")
    assert line.log[-1] == "c runs"
    await line.end("c")


async def test_a_job_that_is_being_prepared_keeps_its_place() -> None:
    line = Line(1)
    await line.add("a", 1, prepared=False)
    await line.add("b", 2)
    assert line.log == ["b behind 1"]
    line.prepared["a"].set()
    await settle()
    assert line.started == ["a"]
    await line.end("a", "b")
    assert line.started == ["a", "b"]


async def test_one_whose_preparation_fails_leaves_the_line() -> None:
    line = Line(1)
    await line.add("a", 1, prepared=False)
    await line.add("b", 2)
    await line.cancel("a")
    assert line.started == ["b"]
    await line.end("b")


async def test_one_that_is_prepared_for_long_is_overtaken() -> None:
    line = Line(1, patience_seconds=0.01)
    await line.add("a", 1, prepared=False)
    await line.add("b", 2)
    line.done["b"].set()
    await line.tasks["b"]
    assert line.started == ["b"]
    line.prepared["a"].set()
    await line.end("a")
    assert line.started == ["b", "a"]
