import asyncio
from contextlib import suppress

from ltxtrain_services.train.queue import GpuQueue, Room, Waiting


class Line:
    """Jobs in a queue, and what happens to them in the order in which it happens."""

    def __init__(
        self, present: int, patience_seconds: float = 60.0, *, most: int = 0, most_of_an_owner: int = 0
    ) -> None:
        self.room = Room(present, most)
        self.queue = GpuQueue(lambda: self.room, most_of_an_owner=most_of_an_owner, patience_seconds=patience_seconds)
        self.log: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.prepared: dict[str, asyncio.Event] = {}
        self.done: dict[str, asyncio.Event] = {}
        self.lost: dict[str, asyncio.Event] = {}
        self.waiting: dict[str, Waiting] = {}
        self.workers: dict[str, int] = {}

    async def add(self, job: str, created: int, units: int = 1, prepared: bool = True, owner: str = "ann") -> None:
        self.prepared[job], self.done[job], self.lost[job] = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if prepared:
            self.prepared[job].set()
        self.tasks[job] = asyncio.create_task(self._run(job, owner, created, units))
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

    async def resize(self, present: int, *, on_gpus: bool = True) -> None:
        self.room = Room(present, self.room.most, on_gpus)
        self.queue.settle()
        await settle()

    async def _run(self, job: str, owner: str, created: int, units: int) -> None:
        with self.queue.place(job, owner, created) as place:
            await self.prepared[job].wait()
            while True:
                # Of units 0: as many as there are.
                turn = place.turn(lambda there: units or there)
                async for waiting in turn.waiting():
                    self.waiting[job] = waiting
                    self.log.append(f"{job} behind {waiting.ahead}")
                self.log.append(f"{job} runs")
                self.workers[job] = turn.workers
                ends = [asyncio.ensure_future(event.wait()) for event in (self.done[job], self.lost[job])]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self.done[job].is_set():
                    return
                self.lost[job].clear()


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


async def test_owners_take_turns() -> None:
    line = Line(1)
    for number in range(3):
        await line.add(f"a{number}", number)
    for number in range(2):
        await line.add(f"b{number}", 10 + number, owner="bob")
    await line.add("c0", 20, owner="cem")
    assert [line.waiting[job].ahead for job in ("b0", "c0", "a1", "b1", "a2")] == [0, 1, 2, 3, 4]
    await line.end("a0", "b0", "c0", "a1", "b1", "a2")
    assert line.started == ["a0", "b0", "c0", "a1", "b1", "a2"]


async def test_whoever_has_the_fewest_workers_is_next() -> None:
    line = Line(4)
    await line.add("a0", 1, units=3)
    await line.add("b0", 2, owner="bob")
    await line.add("a1", 3)
    await line.add("b1", 4, owner="bob")
    await line.end("a0")
    assert line.started == ["a0", "b0", "a1", "b1"]
    await line.add("a2", 5, units=3)
    await line.add("b2", 6, units=2, owner="bob")
    await line.end("b0", "b1")
    assert line.started[-1] == "b2", "bob has nothing, ann one"
    await line.end("b2", "a1", "a2")


async def test_no_owner_has_more_than_the_limit_and_holds_nobody_up() -> None:
    line = Line(4, most_of_an_owner=2)
    for number in range(4):
        await line.add(f"a{number}", number)
    await line.add("b0", 10, owner="bob", units=0)
    assert line.started == ["a0", "a1", "b0"] and line.workers["b0"] == 2
    await line.end("a0")
    assert line.started[-1] == "a2"
    await line.end("a1", "b0", "a2", "a3")


async def test_nodes_that_come_are_used_and_those_that_go_are_not() -> None:
    line = Line(1)
    for job, created in (("a", 1), ("b", 2), ("c", 3)):
        await line.add(job, created)
    await line.resize(2)
    assert line.started == ["a", "b"]
    await line.resize(1)
    await line.end("a")
    assert line.started == ["a", "b"]
    await line.end("b")
    assert line.started == ["a", "b", "c"]
    await line.end("c")


async def test_a_job_takes_as_many_as_there_are_when_its_turn_comes() -> None:
    line = Line(2)
    await line.add("a", 1, units=2)
    await line.add("b", 2, units=0)
    assert line.waiting["b"] == Waiting(0, 2, 2)
    await line.resize(3)
    assert line.waiting["b"] == Waiting(0, 3, 3)
    await line.end("a")
    assert line.workers["b"] == 3
    await line.end("b")


async def test_one_that_needs_more_than_there_are_asks_for_it_and_holds_nobody_up() -> None:
    line = Line(2)
    await line.add("a", 1, units=4)
    await line.add("b", 2)
    await line.add("c", 3, units=2)
    # Its turn has come: it asks Ray for four, while others use the two.
    assert line.started == ["a", "b"]
    # Four have come, of which b has one: Ray keeps them for a, and nobody else begins.
    await line.resize(4)
    assert line.started == ["a", "b"]
    await line.end("b", "a", "c")
    assert line.started == ["a", "b", "c"]


async def test_of_a_cluster_that_grows_as_much_is_asked_for_as_there_can_be() -> None:
    line = Line(0, most=4)
    for number in range(5):
        await line.add(f"a{number}", number)
    assert line.started == ["a0", "a1", "a2", "a3"] and line.waiting["a4"] == Waiting(0, 1, 0)
    await line.end("a0")
    assert line.started[-1] == "a4"
    await line.end("a1", "a2", "a3", "a4")


async def test_gpus_that_are_not_there_are_never_replaced_by_cpus() -> None:
    line = Line(2)
    line.room = Room(1, on_gpus=False)
    await line.add("a", 1, units=4)
    await line.add("b", 2)
    assert line.started == ["b"] and line.waiting["a"] == Waiting(0, 4, 1)
    await line.resize(4)
    assert line.started == ["b", "a"], "what runs on a CPU takes no GPU"
    await line.end("b", "a")


async def test_one_that_lost_a_worker_goes_on_before_others_begin() -> None:
    line = Line(2)
    await line.add("a", 1, units=2)
    await line.add("b", 2, owner="bob")
    await line.resize(1)
    line.lost["a"].set()
    await settle()
    # Less is there than it needs: it asks again, and holds nobody up.
    assert line.started == ["a", "b", "a"]
    await line.resize(2)
    await line.add("c", 0, owner="cem")
    line.lost["a"].set()
    await settle()
    assert line.waiting["a"] == Waiting(0, 2, 2) and line.waiting["c"].ahead == 1, "it has run, and is before others"
    await line.end("b", "a", "c")
    assert line.started == ["a", "b", "a", "a", "c"]
