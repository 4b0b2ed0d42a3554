import asyncio

from services.train.queue import GpuQueue


async def wait_in_line(
    queue: GpuQueue, job: str, created: int, units: int, log: list[str], leave: asyncio.Event
) -> None:
    async with queue.turn(job, created, units) as positions:
        async for ahead in positions:
            log.append(f"{job} behind {ahead}")
        log.append(f"{job} runs")
        await leave.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_jobs_run_in_the_order_of_their_creation() -> None:
    queue, log = GpuQueue(1), list[str]()
    leave = {job: asyncio.Event() for job in "abc"}
    tasks = []
    for job, created in (("a", 1), ("c", 3), ("b", 2)):
        tasks.append(asyncio.create_task(wait_in_line(queue, job, created, 1, log, leave[job])))
        await settle()
    assert log == ["a runs", "c behind 0", "b behind 0", "c behind 1"]
    for job in "abc":
        leave[job].set()
        await settle()
    await asyncio.gather(*tasks)
    assert [line for line in log if line.endswith("runs")] == ["a runs", "b runs", "c runs"]


async def test_nobody_overtakes_a_job_that_needs_more() -> None:
    queue, log = GpuQueue(2), list[str]()
    leave = {job: asyncio.Event() for job in "abc"}
    tasks = [
        asyncio.create_task(wait_in_line(queue, job, created, units, log, leave[job]))
        for job, created, units in (("a", 1, 1), ("b", 2, 2), ("c", 3, 1))
    ]
    await settle()
    assert [line for line in log if line.endswith("runs")] == ["a runs"]
    leave["a"].set()
    await settle()
    assert [line for line in log if line.endswith("runs")] == ["a runs", "b runs"]
    leave["b"].set()
    leave["c"].set()
    await asyncio.gather(*tasks)
    assert log[-1] == "c runs"


async def test_a_job_that_is_cancelled_leaves_the_line() -> None:
    queue, log = GpuQueue(1), list[str]()
    leave = {job: asyncio.Event() for job in "abc"}
    tasks = {
        job: asyncio.create_task(wait_in_line(queue, job, created, 1, log, leave[job]))
        for job, created in (("a", 1), ("b", 2), ("c", 3))
    }
    await settle()
    tasks["b"].cancel()
    await settle()
    assert log[-1] == "c behind 0"
    tasks["a"].cancel()
    await settle()
    assert log[-1] == "c runs"
    leave["c"].set()
    await tasks["c"]
