"""From the trainer's errors to statuses of the contract; each error of the trainer is in one of the tables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.runtime.errors import ApiError, FailedPrecondition, internal
from ltxtrain_trainer import errors as trainer

REASONS: dict[type[trainer.TrainerError], "ErrorReason"] = {
    trainer.ModelUnavailable: ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
    trainer.ModelUnsupported: ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED,
    trainer.DeviceUnusable: ErrorReason.ERROR_REASON_GPU_UNUSABLE,
    trainer.PrecisionUnavailable: ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
    trainer.OptimizerUnavailable: ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
    trainer.PrefixCoversClip: ErrorReason.ERROR_REASON_PREFIX_COVERS_CLIP,
    trainer.CheckpointMismatch: ErrorReason.ERROR_REASON_RESOURCE_NOT_READY,
    trainer.SampleUnreadable: ErrorReason.ERROR_REASON_RESOURCE_NOT_READY,
    trainer.TrainingDiverged: ErrorReason.ERROR_REASON_TRAINING_DIVERGED,
    trainer.SamplingFailed: ErrorReason.ERROR_REASON_SAMPLING_FAILED,
}
AUDIT_REASONS = {
    "NON_FINITE": ErrorReason.ERROR_REASON_AUDIT_NON_FINITE,
    "ZERO": ErrorReason.ERROR_REASON_AUDIT_ZERO,
    "FOREIGN_KEYS": ErrorReason.ERROR_REASON_AUDIT_FOREIGN_KEYS,
    "NOT_LOADABLE": ErrorReason.ERROR_REASON_AUDIT_NOT_LOADABLE,
    "OUT_OF_BOUNDS": ErrorReason.ERROR_REASON_AUDIT_OUT_OF_BOUNDS,
}
# Faults of one clip end in a line of the report, a lost peer in a restart: none of them ends a job by itself, and one
# that does is a bug.
HANDLED = (trainer.ClipError, trainer.PeerLost)


class GpuOutOfMemory(ApiError):
    """The device has too little memory; the text names the next smaller setting."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_GPU_OUT_OF_MEMORY


def api_error(error: trainer.TrainerError, metadata: Mapping[str, object] | None = None) -> ApiError:
    """The status that work ends with because of an error of the trainer."""
    match error:
        case trainer.DeviceMemoryExhausted():
            return GpuOutOfMemory(str(error))
        case trainer.AuditFailed(reason=reason):
            return FailedPrecondition(AUDIT_REASONS[reason], str(error))
        case _ if type(error) in REASONS:
            return FailedPrecondition(REASONS[type(error)], str(error), metadata=dict(metadata or {}))
        case _:
            return internal()


@contextmanager
def translated() -> Iterator[None]:
    """Raise the trainer's errors of the block as statuses."""
    try:
        yield
    except trainer.TrainerError as error:
        raise api_error(error) from error
