"""Statuses become classes with everything that they say."""

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain_client import CallError, InternalError, InvalidArgument, Subject, TrainClient, Violation, from_status
from ltxtrain_client.errors import _CLASSES

from tests.clients.far_side import FarSide, status, violations


def subclasses_of(kind: type[CallError]) -> set[type[CallError]]:
    return set(kind.__subclasses__())


async def raised_by(far: FarSide, train: TrainClient, sent: Status) -> CallError:
    far.fail("CreateJob", sent)
    with pytest.raises(CallError) as raised:
        await train.submit(ExtendPrefixSpec())
    return raised.value


@pytest.mark.parametrize("kind", sorted(subclasses_of(CallError), key=str))
async def test_each_code_has_its_class(far: FarSide, train: TrainClient, kind: type[CallError]) -> None:
    # A retried code is answered alike each time.
    sent = status(kind.code, "what happened", "QUEUE_FULL", limit="100")
    far.fail("CreateJob", *[sent] * 4)
    with pytest.raises(CallError) as raised:
        await train.submit(ExtendPrefixSpec())
    error = raised.value
    assert type(error) is kind
    assert (error.code, str(error), error.reason) == (kind.code, "what happened", "QUEUE_FULL")
    assert error.metadata == {"limit": "100"}
    assert error.status == sent


def test_no_class_is_forgotten() -> None:
    assert set(_CLASSES.values()) == subclasses_of(CallError)


async def test_a_wrong_spec_brings_every_violation(far: FarSide, train: TrainClient) -> None:
    wrong = violations(
        ("spec.extend_prefix.rank", "FIELD_NOT_ALLOWED", "rank is one of 8, 16, 32, 64, 128"),
        ("spec.extend_prefix.validation[1].video_url", "FIELD_REQUIRED", "a clip is needed"),
    )
    error = await raised_by(
        far,
        train,
        status(grpc.StatusCode.INVALID_ARGUMENT, "2 fields are wrong", "INVALID_SPEC", details=[wrong], minimum="8"),
    )
    assert isinstance(error, InvalidArgument)
    assert error.violations == (
        Violation("spec.extend_prefix.rank", "FIELD_NOT_ALLOWED", "rank is one of 8, 16, 32, 64, 128"),
        Violation("spec.extend_prefix.validation[1].video_url", "FIELD_REQUIRED", "a clip is needed"),
    )
    assert str(error).splitlines() == [
        "2 fields are wrong",
        "  rank: rank is one of 8, 16, 32, 64, 128 (FIELD_NOT_ALLOWED)",
        "  validation[1].video_url: a clip is needed (FIELD_REQUIRED)",
    ]
    assert error.message == "2 fields are wrong"


async def test_many_violations_fit_into_trailing_metadata(far: FarSide, train: TrainClient) -> None:
    wrong = violations(*((f"spec.field_{number}", "FIELD_OUT_OF_RANGE", "x" * 60) for number in range(60)))
    error = await raised_by(
        far, train, status(grpc.StatusCode.INVALID_ARGUMENT, "60 fields are wrong", "INVALID_SPEC", details=[wrong])
    )
    assert len(error.violations) == 60


async def test_subjects_and_the_time_to_wait(far: FarSide, train: TrainClient) -> None:
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(type="AUDIO", subject="a.mp4", description="silent")
        ]
    )
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    error = await raised_by(
        far,
        train,
        status(grpc.StatusCode.FAILED_PRECONDITION, "no audio", "AUDIO_TRACK_MISSING", details=[failure, retry]),
    )
    assert error.subjects == (Subject("AUDIO", "a.mp4", "silent"),)
    assert error.retry_after_seconds == 1.5


async def test_a_bare_status_has_no_reason(far: FarSide, train: TrainClient) -> None:
    error = await raised_by(far, train, status(grpc.StatusCode.PERMISSION_DENIED, "go away"))
    assert (error.reason, error.metadata, error.violations, error.subjects) == ("", {}, (), ())
    assert error.retry_after_seconds is None


async def test_a_reason_of_another_domain_is_not_ours(far: FarSide, train: TrainClient) -> None:
    info = error_details_pb2.ErrorInfo(reason="RATE_LIMIT", domain="proxy.example")
    error = await raised_by(far, train, status(grpc.StatusCode.ABORTED, "slow down", details=[info]))
    assert isinstance(error, InternalError)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "")


async def test_a_call_cancelled_by_the_other_side_is_an_error_of_the_call(far: FarSide, train: TrainClient) -> None:
    error = await raised_by(far, train, status(grpc.StatusCode.CANCELLED, "no"))
    assert error.code is grpc.StatusCode.CANCELLED


def test_the_error_of_finished_work_is_the_same_class() -> None:
    sent = status(grpc.StatusCode.INVALID_ARGUMENT, "wrong", "INVALID_SPEC")
    error = from_status(sent)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "INVALID_SPEC"


def test_errors_cross_processes() -> None:
    sent = status(grpc.StatusCode.NOT_FOUND, "gone", "RESOURCE_NOT_FOUND", name="jobs/1")
    copy = pickle.loads(pickle.dumps(from_status(sent)))
    assert (type(copy), copy.status, copy.reason) == (type(from_status(sent)), sent, "RESOURCE_NOT_FOUND")
