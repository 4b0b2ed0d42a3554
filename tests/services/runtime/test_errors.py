import ast
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.cluster import ClusterLost
from ltxtrain_services.runtime.database import Database, DatabaseUnavailable
from ltxtrain_services.runtime.errors import ApiError, Violation
from ltxtrain_services.runtime.interceptor import MAX_BYTES, _size, fit_status
from ltxtrain_services.runtime.object_types import ObjectStoreUnavailable
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.work import Retryable
from tests.services.runtime.front import Front, Stub, detail_of, info_of, serving, told

ROOT = Path(__file__).parents[3]
REASONS = {name.removeprefix("ERROR_REASON_"): value for name, value in ErrorReason.items() if value}
NOT_READY = ErrorReason.ERROR_REASON_RESOURCE_NOT_READY
UPSTREAM = errors.FailedPrecondition(ErrorReason.ERROR_REASON_NO_VIDEOS, "No videos.", metadata={"count": 0}).status()
# One of each class.
SAMPLES: list[ApiError] = [
    errors.InvalidSpec([Violation("spec.rank", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, "12 is not one of 8, 16.")]),
    errors.FailedPrecondition(
        ErrorReason.ERROR_REASON_IMAGE_NOT_ALLOWED, "Images.", subjects=[("a.png", "an image")], kind="IMAGE"
    ),
    errors.NotFound("jobs/1"),
    errors.RequestIdReused("jobs/1"),
    errors.NotReady("jobs/1 is not finished.", metadata={"name": "jobs/1"}),
    errors.PageTokenInvalid("page_size is negative.", metadata={"pageSize": -1}),
    errors.CursorOutOfRange(9, 1, 3),
    errors.QueueFull("Full.", metadata={"limit": 3}),
    errors.Unauthenticated("Who?"),
    errors.PermissionDenied("No."),
    errors.Draining(),
    errors.MessageMalformed(),
    errors.Unavailable(ErrorReason.ERROR_REASON_DOWNLOAD_FAILED, "Gone.", metadata={"url": "https://example.com/a"}),
    errors.Upstream(UPSTREAM),
]


@pytest.fixture
async def front(database: Database) -> AsyncIterator[Front]:
    async with serving(database, Settings()) as front:
        yield front


@pytest.fixture
def stub(front: Front) -> Stub:
    return front.stub()


async def refused(front: Front, stub: Stub, error: BaseException) -> grpc.aio.AioRpcError:
    """The caller's error when a handler raises `error`."""

    async def fail() -> None:
        raise error

    front.book.estimate = fail
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.estimate()
    return caught.value


def test_a_request_wrong_in_a_hundred_thousand_places_is_refused_at_once() -> None:
    """It has a megabyte at most; before, its status took minutes of the event loop."""
    reason = ErrorReason.ERROR_REASON_INVALID_SPEC
    violations = [Violation(f"spec.validation[{index}].prompt", reason, "Too long. " * 20) for index in range(100_000)]
    began = time.process_time()
    status = fit_status(errors.InvalidSpec(violations, {"field": "x"}).status())
    assert time.process_time() - began < 2.0
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(bad)
    assert bad.field_violations and len(bad.field_violations) + int(info.metadata["omitted"]) == 100_000
    assert status.message.startswith("100000 fields are wrong")


def test_the_samples_are_one_of_each_class() -> None:
    ours = {kind for kind in ApiError.__subclasses__() if kind.__module__ == errors.__name__}
    assert {type(error) for error in SAMPLES} == ours


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
async def test_every_class_reaches_the_caller_as_it_is(front: Front, stub: Stub, error: ApiError) -> None:
    got = await refused(front, stub, error)
    assert got.code() == error.code
    assert told(got) == error.status()
    assert got.details() == str(error)
    assert info_of(got).reason in REASONS
    assert set(info_of(got).metadata) <= set(table()[info_of(got).reason].keys)


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), ObjectStoreUnavailable("gone"), Retryable("gone")])
async def test_what_does_not_answer_is_unavailable(front: Front, stub: Stub, error: Exception) -> None:
    got = await refused(front, stub, error)
    assert (got.code(), info_of(got).reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert detail_of(got, error_details_pb2.RetryInfo).retry_delay.seconds == 1


async def test_a_process_that_will_end_says_so(front: Front, stub: Stub) -> None:
    assert info_of(await refused(front, stub, ClusterLost("gone"))).reason == "DRAINING"


async def test_a_bug_is_told_by_its_trace_id_and_logged_under_it(
    front: Front, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    got = await refused(front, stub, ZeroDivisionError("inner workings"))
    info = info_of(got)
    assert (got.code(), info.reason, list(info.metadata)) == (grpc.StatusCode.INTERNAL, "INTERNAL", ["traceId"])
    assert re.fullmatch(r"[0-9a-f]{32}", info.metadata["traceId"])
    assert "inner workings" not in str(told(got)) and "ZeroDivisionError" not in str(told(got))
    assert "inner workings" in caplog.text


def shortened(count: int) -> errors.FailedPrecondition:
    subjects = [(f"folder/clip number {index}.mp4", "61 frames, 89 needed " * 10) for index in range(count)]
    return errors.FailedPrecondition(
        ErrorReason.ERROR_REASON_ALL_CLIPS_TOO_SHORT, "Too short.", subjects=subjects, kind="LENGTH"
    )


async def test_lists_of_clips_are_capped_and_their_number_is_told(front: Front, stub: Stub) -> None:
    got = await refused(front, stub, shortened(3000))
    assert got.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert info_of(got).metadata["count"] == "3000"
    violations = detail_of(got, error_details_pb2.PreconditionFailure).violations
    assert 0 < len(violations) <= errors.MAX_SUBJECTS
    assert violations[0].subject == "folder/clip number 0.mp4"


async def test_every_wrong_field_of_a_request_arrives(front: Front, stub: Stub) -> None:
    text = (
        "0 is not in the range 9 to 121, which the number of frames of a clip must be in. Choose another one, please."
    )
    fields = [f"spec.a_parameter_with_a_long_name_{index}" for index in range(36)]
    reason = ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE
    got = await refused(front, stub, errors.InvalidSpec([Violation(field, reason, text) for field in fields]))
    assert got.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [item.field for item in detail_of(got, error_details_pb2.BadRequest).field_violations] == fields


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidSpec([Violation(f"videos.urls[{index}]", NOT_READY, "x" * 300) for index in range(1000)]),
        errors.NotReady("ü" * 20_000, metadata={"name": "ü" * 300}),
        errors.NotReady("車" * 20_000, metadata={"name": "車" * 300}),
        errors.InvalidSpec([Violation("🎬" * 40, NOT_READY, "🎬" * 300)] * 20),
        errors.NotReady("x", metadata={f"key{index}": "ü" * 300 for index in range(100)}),
        errors.FailedPrecondition(NOT_READY, "x", subjects=[("ü" * 300, "ü" * 300)] * 20),
        errors.Upstream(shortened(20).status()),
    ],
    ids=["fields", "text", "wide text", "wide fields", "metadata", "subjects", "upstream"],
)
async def test_no_error_is_lost_for_its_length(front: Front, stub: Stub, error: ApiError) -> None:
    # What is longer arrives at one time and is dropped at another.
    assert _size(fit_status(error.status())) <= MAX_BYTES
    got = await refused(front, stub, error)
    assert got.code() == error.code
    assert told(got).details


def test_what_was_cut_is_told() -> None:
    violations = [Violation(f"videos.urls[{index}]", NOT_READY, "x" * 100) for index in range(200)]
    status = fit_status(errors.InvalidSpec(violations).status())
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(bad)
    assert len(bad.field_violations) + int(info.metadata["omitted"]) == 200
    assert status.ByteSize() < MAX_BYTES


def test_a_short_status_is_left_alone() -> None:
    status = shortened(3).status()
    assert fit_status(status) is status
    assert fit_status(status_pb2.Status()) == status_pb2.Status()


class Row:
    def __init__(self, cells: list[str]) -> None:
        self.reason, self.code, self.http, keys, self.advice = cells
        self.keys = re.findall(r"`(\w+)`", keys)


def cells_of(heading: str) -> Iterator[list[str]]:
    """The cells of each row of the table below a heading of docs/errors.md."""
    text = (ROOT / "docs/errors.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("| ---", "| reason", "| code")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def table() -> dict[str, Row]:
    rows = [Row([cells[0].strip("`"), *cells[1:]]) for cells in cells_of("Reasons")]
    assert len({row.reason for row in rows}) == len(rows)
    return {row.reason: row for row in rows}


def codes_in_the_contract() -> dict[str, str]:
    """The code of each reason, which error.proto names at the head of each group."""
    codes = {code.name for code in grpc.StatusCode}
    found: dict[str, str] = {}
    group: list[str] = []
    for line in (ROOT / "protos/ltxtrain/v1/error.proto").read_text().splitlines():
        if named := re.match(r"\s*// ((?:[A-Z_]+(?:, )?)+)[.:;]", line):
            if set(words := named[1].split(", ")) <= codes:
                group = words
        elif (value := re.match(r"\s*ERROR_REASON_(\w+) = [1-9]", line)) is not None:
            found[value[1]] = value[1] if value[1] in group else group[0]
    return found


def test_every_reason_of_the_contract_is_documented_in_its_order() -> None:
    assert list(table()) == sorted(REASONS, key=REASONS.__getitem__)
    assert all(row.advice for row in table().values())


def test_the_documented_codes_are_those_of_the_contract() -> None:
    assert {reason: row.code for reason, row in table().items()} == codes_in_the_contract()


def test_every_code_has_its_http_status() -> None:
    assert {(row.code, row.http) for row in table().values()} == {(code, http) for code, http in cells_of("HTTP")}


def test_every_metadata_key_of_the_services_is_documented() -> None:
    documented = {key for row in table().values() for key in row.keys} | {"traceId"}
    undocumented = {
        (str(path.relative_to(ROOT)), key)
        for path in (ROOT / "ltxtrain_services").rglob("*.py")
        for key in metadata_keys(ast.parse(path.read_text()))
        if key not in documented
    }
    assert undocumented == set()


def metadata_keys(tree: ast.AST) -> Iterator[str]:
    """Keys of the dictionaries that errors take as metadata, directly or through a variable of their function."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = [
            keyword.value
            for call in ast.walk(function)
            if isinstance(call, ast.Call)
            and isinstance(called := call.func, ast.Name | ast.Attribute)
            and (called.id if isinstance(called, ast.Name) else called.attr)[0].isupper()
            for keyword in call.keywords
            if keyword.arg == "metadata"
        ]
        names = {value.id for value in given if isinstance(value, ast.Name)}
        given += [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and target.id in names
        ]
        for value in given:
            for node in ast.walk(value):
                if isinstance(node, ast.Dict):
                    yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))
