"""docs/conformance.md: every statement has one row, and every row a check that exists and runs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/conformance.md"
COUNTS = {"J": 5, "D": 15, "P": 26, "T": 7, "O": 4, "B": 2, "X": 15}
STATEMENTS = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
# Such tests are not run by `make test`, or not here.
LEFT_OUT = {"soak", "gpu", "skip"}


def read_rows() -> list[tuple[str, str, list[str]]]:
    """Id, statement and checks of every row."""
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.+?) \| (.*?) ?\|$", PAGE.read_text(), re.M)
    return [(name, statement, re.findall(r"`([^`]+)`", checks)) for name, statement, checks in rows]


ROWS = read_rows()


def marks(decorators: list[ast.expr]) -> set[str]:
    """Names of the pytest marks among decorators."""
    names = (ast.unparse(decorator).split("(")[0] for decorator in decorators)
    return {name.removeprefix("pytest.mark.") for name in names if name.startswith("pytest.mark.")}


def fault(check: str) -> str | None:
    """Why a check is none; None: it is one."""
    file, _, name = check.partition("::")
    path = ROOT / file
    if not path.is_file():
        return f"{file} does not exist"
    if not name:
        return None if file.startswith("bench/") else "names no test"
    if not (file.startswith("tests/") and path.name.startswith("test_") and name.startswith("test_")):
        return "is not collected by pytest"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return "is left out of make test" if marks(node.decorator_list) & LEFT_OUT else None
    return f"{file} has no such test"


def test_every_statement_has_one_row() -> None:
    assert [name for name, _, _ in ROWS] == STATEMENTS


@pytest.mark.parametrize(("name", "statement", "checks"), ROWS, ids=[name for name, _, _ in ROWS])
def test_a_row_has_checks_that_exist(name: str, statement: str, checks: list[str]) -> None:
    assert statement.strip()
    assert checks, f"nothing checks {name}"
    assert len(set(checks)) == len(checks)
    assert {check: found for check in checks if (found := fault(check)) is not None} == {}


def test_what_is_no_check_is_found() -> None:
    assert fault("tests/test_conformance.py::test_every_statement_has_one_row") is None
    assert fault("tests/test_conformance.py::test_that_never_was") is not None
    assert fault("tests/test_conformance.py::read_rows") is not None
    assert fault("tests/test_conformance.py") is not None
    assert fault("tests/nowhere.py::test_it") is not None
    assert fault("tests/suite/test_fuzz.py::test_random_requests") is None
    assert fault("tests/suite/test_fuzz.py::test_many_random_requests") == "is left out of make test"
