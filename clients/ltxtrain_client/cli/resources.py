"""Jobs, datasets and training sets by name, for commands that accept any of them."""

from collections.abc import AsyncGenerator

import typer
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_client.enum_words import words
from ltxtrain_client.errors import DOMAIN, FailedPrecondition
from ltxtrain_client.event_text import title
from ltxtrain_client.sheet import continues_clips
from ltxtrain_client.suite import Suite
from ltxtrain_client.watch import TERMINAL, Pace

Resource = Job | Dataset | TrainingSet

UNFINISHED = tuple(text for text, state in words(State.DESCRIPTOR).items() if state not in TERMINAL)
_COLLECTIONS = ("jobs", "datasets", "trainingSets")


def resource_name(text: str) -> str:
    """Full resource name; a bare id is a job's. Raises BadParameter when it is another kind of name."""
    collection, slash, rest = text.strip("/").partition("/")
    if not slash:
        return f"jobs/{collection}"
    if collection not in _COLLECTIONS or not rest or "/" in rest:
        raise typer.BadParameter(f"{text} is not jobs/ID, datasets/ID or trainingSets/ID")
    return text


def job_name(text: str) -> str:
    """Full name of a job. Raises BadParameter when it is another kind of name."""
    name = resource_name(text)
    if not name.startswith("jobs/"):
        raise typer.BadParameter(f"{text} is not a job")
    return name


async def get_resource(suite: Suite, name: str) -> Resource:
    if name.startswith("datasets/"):
        return await suite.ingest.get_dataset(name)
    if name.startswith("trainingSets/"):
        return await suite.preprocess.get_training_set(name)
    return await suite.train.get_job(name)


async def cancel_resource(suite: Suite, name: str) -> Resource:
    if name.startswith("datasets/"):
        return await suite.ingest.cancel_dataset(name)
    if name.startswith("trainingSets/"):
        return await suite.preprocess.cancel_training_set(name)
    return await suite.train.cancel_job(name)


async def check_unused(suite: Suite, name: str) -> None:
    """Raises FailedPrecondition with the work that reads a resource and would end without it.

    Services know nothing of those that read from them: who asks all three knows it.
    """
    users: list[Job | TrainingSet] = [job async for job in suite.train.list_jobs(UNFINISHED)]
    users += [made async for made in suite.preprocess.list_training_sets(states=UNFINISHED)]
    for user in users:
        if name not in _used(user):
            continue
        text = f"{title(user.name, user.display_name)} has not ended and uses {name}. Cancel it, or wait for its end: "
        text += f"ltxtrain cancel {user.name}"
        info = ErrorInfo(reason="RESOURCE_IN_USE", domain=DOMAIN, metadata={"name": user.name})
        status = Status(code=FailedPrecondition.code.value[0], message=text)
        status.details.add().Pack(info)
        raise FailedPrecondition(status)


def _used(item: Job | TrainingSet) -> set[str]:
    """Names of the resources that unfinished work reads, or reads again after a restart."""
    if isinstance(item, TrainingSet):
        return {item.dataset, item.validation_dataset}
    used = {item.dataset, item.validation_dataset, item.training_set, item.spec.extend_prefix.dataset}
    # One that trains on copies what it needs when it begins.
    return used | {item.continue_from.source.partition("/artifacts/")[0]} if continues_clips(item) else used


async def delete_resource(suite: Suite, name: str) -> None:
    if name.startswith("datasets/"):
        await suite.ingest.delete_dataset(name)
    elif name.startswith("trainingSets/"):
        await suite.preprocess.delete_training_set(name)
    else:
        await suite.train.delete_job(name)


def watch_resource(suite: Suite, name: str, after_sequence: int, pace: Pace) -> AsyncGenerator[tuple[int, Event], None]:
    if name.startswith("datasets/"):
        return suite.ingest.watch_dataset(name, after_sequence, pace)
    if name.startswith("trainingSets/"):
        return suite.preprocess.watch_training_set(name, after_sequence, pace)
    return suite.train.watch_job(name, after_sequence, pace)
