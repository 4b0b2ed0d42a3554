"""Jobs, datasets and training sets by name, for commands that accept any of them."""

from collections.abc import AsyncGenerator

import typer
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event

from ltxtrain_client.suite import Suite
from ltxtrain_client.watch import Pace

Resource = Job | Dataset | TrainingSet

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
