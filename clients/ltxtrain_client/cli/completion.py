"""Shell completion of job names, which asks the service."""

import asyncio

import typer

from ltxtrain_client.channel import connect, read_settings
from ltxtrain_client.errors import LtxtrainError
from ltxtrain_client.train import TrainClient

# A person is waiting at a prompt.
WAIT_SECONDS = 1.0
MAX_NAMES = 50


def job_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the newest jobs, or bare ids when one was begun; none when the service does not answer in time."""
    try:
        names = asyncio.run(asyncio.wait_for(_newest(context.find_root().params.get("train")), WAIT_SECONDS))
    except (LtxtrainError, TimeoutError, OSError):
        return []
    if not "jobs/".startswith(incomplete[:5]):
        names = [name.removeprefix("jobs/") for name in names]
    return [name for name in names if name.startswith(incomplete)]


async def _newest(address: str | None) -> list[str]:
    settings = read_settings()
    names: list[str] = []
    async with connect(address or settings.train, settings.credentials) as channel:
        async for job in TrainClient(channel).list_jobs(page_size=MAX_NAMES):
            names.append(job.name)
            if len(names) == MAX_NAMES:
                break
    return names
