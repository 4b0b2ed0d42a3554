"""What ended a training, in the words of the contract."""

from collections.abc import Sequence

import grpc
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason

from services.runtime import errors
from services.train.actors import Failed
from services.train.artifacts import latest_checkpoint


class GpuOutOfMemory(errors.ApiError):
    """The device has too little memory; the text names the next smaller setting."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_GPU_OUT_OF_MEMORY


REASONS = {
    "ModelUnavailable": ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
    "ModelUnsupported": ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED,
    "PrecisionUnavailable": ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
    "OptimizerUnavailable": ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
    "PrefixCoversClip": ErrorReason.ERROR_REASON_PREFIX_COVERS_CLIP,
    "CheckpointMismatch": ErrorReason.ERROR_REASON_RESOURCE_NOT_READY,
    "SampleUnreadable": ErrorReason.ERROR_REASON_RESOURCE_NOT_READY,
}

AUDIT_REASONS = {
    "NON_FINITE": ErrorReason.ERROR_REASON_AUDIT_NON_FINITE,
    "ZERO": ErrorReason.ERROR_REASON_AUDIT_ZERO,
    "FOREIGN_KEYS": ErrorReason.ERROR_REASON_AUDIT_FOREIGN_KEYS,
    "NOT_LOADABLE": ErrorReason.ERROR_REASON_AUDIT_NOT_LOADABLE,
    "OUT_OF_BOUNDS": ErrorReason.ERROR_REASON_AUDIT_OUT_OF_BOUNDS,
}


def trainer_failure(failure: Failed, found: Sequence[Artifact]) -> errors.ApiError:
    """The error that a job ends with."""
    values = failure.values
    match failure.error:
        case "DeviceMemoryExhausted":
            return GpuOutOfMemory(failure.text)
        case "TrainingDiverged":
            good = latest_checkpoint(found).get("LORA")
            metadata = {"step": values.get("step", 0), "checkpointStep": good.step if good else 0}
            if good is not None:
                metadata["lora"] = good.name
            return errors.FailedPrecondition(
                ErrorReason.ERROR_REASON_TRAINING_DIVERGED, failure.text, metadata=metadata
            )
        case "AuditFailed":
            return errors.FailedPrecondition(AUDIT_REASONS[values["reason"]], failure.text)
        case name if name in REASONS:
            return errors.FailedPrecondition(REASONS[name], failure.text)
        case _:
            return errors.internal()
