"""What a service finds wrong with a sheet, told to somebody who has a command line."""

from collections.abc import Awaitable, Collection
from dataclasses import replace
from typing import TypeVar

from ltxtrain_client.errors import InvalidArgument, Problem, SheetInvalid, Violation, with_violations

T = TypeVar("T")

# What fills a required field, by the field's last name.
_HINTS = {"training_data_url": "--data FILE uploads one", "video_url": "--validation FILE uploads one"}


async def with_hints(call: Awaitable[T]) -> T:
    """The call's answer; what it refuses is raised with a hint at each missing file."""
    try:
        return await call
    except InvalidArgument as error:
        raise with_violations(error, [_hinted(violation) for violation in error.violations]) from None


async def without_faults_of(filled: Collection[str], call: Awaitable[object]) -> None:
    """`with_hints`, but faults of fields that are `filled` later are none.

    `filled`: fields as violations name them, e.g. "spec.validation[0].video_url".
    """
    try:
        await with_hints(call)
    except InvalidArgument as error:
        left = [violation for violation in error.violations if violation.field not in filled]
        if left or not error.violations:
            raise with_violations(error, left) from None


def joined(sheet: SheetInvalid, service: InvalidArgument) -> SheetInvalid:
    """Both lists as one. Left out is what only follows from a part that could not be sent."""
    broken = {problem.path for problem in sheet.problems}
    problems = list(sheet.problems)
    for violation in service.violations:
        path = violation.field.removeprefix("spec.")
        # These compare fields, any of which may be the broken one.
        compares = violation.reason == "PREFIX_COVERS_CLIP" or path == "options.gpu_count"
        follows = path in broken or any(path.startswith((f"{place}.", f"{place}[")) for place in broken)
        if not compares and not follows:
            problems.append(Problem(path, f"{violation.description} ({violation.reason})"))
    return SheetInvalid(problems, sheet.sheet)


def _hinted(violation: Violation) -> Violation:
    hint = _HINTS.get(violation.field.rpartition(".")[2])
    if hint is None or violation.reason != "FIELD_REQUIRED":
        return violation
    return replace(violation, description=f"{violation.description} ({hint})")
