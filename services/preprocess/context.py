"""What every step of one attempt at one training set works with."""

from dataclasses import dataclass
from typing import Any

from ltxtrain.v1.preprocess_pb2 import PreprocessSettings, TrainingSet

from services.preprocess.actors import ClipFitter, Encoder, ModelSource
from services.preprocess.cache import Cache
from services.preprocess.progress import Journal
from services.runtime.service import Runtime
from services.runtime.telemetry import current_trace


@dataclass(frozen=True, kw_only=True)
class Context:
    """One start of the work on a training set."""

    runtime: Runtime
    cache: Cache
    journal: Journal
    training_set: TrainingSet
    # Of the model that encodes; empty with fit_only.
    model_revision: str

    @property
    def name(self) -> str:
        return self.training_set.name

    @property
    def settings(self) -> PreprocessSettings:
        return self.training_set.settings

    @property
    def encoder_count(self) -> int:
        """GPUs of the cluster, or as many processes on CPUs as the operator allows."""
        return self.runtime.cluster.gpu_count or self.runtime.settings.cpu_encoders

    def make_encoder(self) -> Any:
        settings = self.runtime.settings
        source = ModelSource(
            reference=settings.model, revision=self.model_revision, with_audio=self.settings.HasField("audio")
        )
        options = self.runtime.cluster.model_options()
        address = self.runtime.objects.objects.address
        arguments = address, source, settings.torch_threads, current_trace()
        return Encoder.options(**options).remote(*arguments)  # type: ignore[attr-defined]

    def make_fitter(self) -> Any:
        settings = self.runtime.settings
        address = self.runtime.objects.objects.address
        limits = settings.clip_seconds, settings.clip_memory_bytes
        return ClipFitter.remote(address, *limits, current_trace())  # type: ignore[attr-defined]
