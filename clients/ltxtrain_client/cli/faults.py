"""Violations that a service found in a sheet, adapted to the command line."""

from collections.abc import Awaitable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from google.rpc import error_details_pb2, status_pb2

from ltxtrain_client.errors import InvalidArgument, Violation
from ltxtrain_client.sheet import Problem, SheetInvalid

T = TypeVar("T")

# Option that fills a required field, by the last part of the field's path.
_HINTS = {"training_data_url": "--data FILE uploads one", "video_url": "--validation FILE uploads one"}


async def with_hints(call: Awaitable[T]) -> T:
    """Await a call. Raises InvalidArgument with a hint beside each missing file."""
    try:
        return await call
    except InvalidArgument as error:
        raise _about(error, [_hinted(violation) for violation in error.violations]) from None


async def without_faults_of(filled: Collection[str], call: Awaitable[object]) -> None:
    """`with_hints`, but ignoring violations of fields that are `filled` later.

    `filled` has fields as violations name them, e.g. "spec.extend_prefix.validation[0].video_url".
    """
    try:
        await with_hints(call)
    except InvalidArgument as error:
        left = [violation for violation in error.violations if violation.field not in filled]
        if left or not error.violations:
            raise _about(error, left) from None


def joined(sheet: SheetInvalid, service: InvalidArgument) -> SheetInvalid:
    """Merge the client's and the service's problems, without those that only follow from a part that was not sent."""
    broken = {problem.path for problem in sheet.problems}
    problems = list(sheet.problems)
    for violation in service.violations:
        path = violation.sheet_path
        # Comparisons between fields, any of which may be the broken one.
        compares = violation.reason == "PREFIX_COVERS_CLIP" or path in ("options.gpu_count", "options.compile_blocks")
        follows = path in broken or any(path.startswith((f"{place}.", f"{place}[")) for place in broken)
        if not compares and not follows:
            problems.append(Problem(path, violation.description, violation.reason))
    return SheetInvalid(problems, sheet.sheet)


def _about(error: InvalidArgument, violations: Sequence[Violation]) -> InvalidArgument:
    """The same error with these violations only."""
    status = status_pb2.Status()
    status.CopyFrom(error.status)
    if violations:
        status.message = f"{len(violations)} field{'s are' if len(violations) > 1 else ' is'} wrong."
    others = [detail for detail in status.details if not detail.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
    listing = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=item.field, reason=item.reason, description=item.description
            )
            for item in violations
        ]
    )
    del status.details[:]
    status.details.extend(others)
    status.details.add().Pack(listing)
    return InvalidArgument(status)


def _hinted(violation: Violation) -> Violation:
    hint = _HINTS.get(violation.field.rpartition(".")[2])
    if hint is None or violation.reason != "FIELD_REQUIRED":
        return violation
    return replace(violation, description=f"{violation.description} ({hint})")
