"""Clients of Ingest and Preprocess, always acting for the owner of the job."""

from collections.abc import Awaitable

from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.preprocess import PreprocessClient

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.upstream import connect_service, passing_errors_on


class Upstream:
    """Clients of the two services; connections are made with the first call and shared by all jobs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: tuple[IngestClient, PreprocessClient] | None = None

    def ingest(self, owner: str) -> IngestClient:
        return self._both()[0].acting_for(owner)

    def preprocess(self, owner: str) -> PreprocessClient:
        return self._both()[1].acting_for(owner)

    async def dataset(self, name: str, owner: str) -> Dataset:
        """A dataset that the owner may use. Raises errors.Upstream (NOT_FOUND) and Retryable."""
        return await passing_errors_on(self.ingest(owner).get_dataset(name))

    async def has_dataset(self, name: str, owner: str) -> bool:
        """Whether a dataset is there and usable. Raises errors.Upstream but for NOT_FOUND, and Retryable."""
        return await _usable(self.ingest(owner).get_dataset(name))

    async def has_training_set(self, name: str, owner: str) -> bool:
        """As has_dataset, for a training set."""
        return await _usable(self.preprocess(owner).get_training_set(name))

    def _both(self) -> tuple[IngestClient, PreprocessClient]:
        if self._clients is None:
            self._clients = (
                IngestClient(connect_service(self._settings.ingest, self._settings)),
                PreprocessClient(connect_service(self._settings.preprocess, self._settings)),
            )
        return self._clients


async def _usable(call: Awaitable[Dataset | TrainingSet]) -> bool:
    try:
        return (await passing_errors_on(call)).lifecycle.state == State.STATE_SUCCEEDED
    except errors.Upstream as error:
        if error.code is not errors.NotFound.code:
            raise
        return False
