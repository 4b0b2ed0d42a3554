"""README and docs/: links, commands, settings and files that they name exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ltxtrain_client.cli import app
from typer.main import get_command

from tests.test_deployment import VARIABLES

ROOT = Path(__file__).parent.parent
CLIENT_PAGES = ROOT.glob("clients/*/*.md")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *CLIENT_PAGES, *ROOT.glob("ltxtrain_pocket/weights/*.md")]
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
# Variables of the command line, of `ltxtrain up` and of containers are read in these.
READERS = [*(ROOT / "clients").rglob("*.[pt][ys]"), *(ROOT / "ltxtrain_services/local").rglob("*.py")]
READERS += [ROOT / "compose.yaml"]
OURS = {name for path in READERS for name in re.findall(r"LTXTRAIN_[A-Z0-9_]*[A-Z0-9]", path.read_text())}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        if re.match(r"[a-z]+:", link):
            continue
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            found.append(link)
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Words of each ltxtrain command in blocks of code and between backticks."""
    lines = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`(ltxtrain [^`]+)`", FENCE.sub("", text))
    for line in [*lines, *(span.replace("\n", " ") for span in spans)]:
        if line.startswith("ltxtrain "):
            yield shlex.split(line.partition(" | ")[0], comments=True)[1:]


def unknown(words: list[str]) -> list[str]:
    """The words of a command that are no command and no option of it."""
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    known |= {"--install-completion", "--show-completion"}
    wrong = [word for word in given if word not in known]
    return words[:1] + wrong if hasattr(command, "commands") and words and not words[0].startswith("-") else wrong


@pages
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    found = {" ".join(words): unknown(words) for words in commands(page.read_text())}
    assert {words: wrong for words, wrong in found.items() if wrong} == {}


@pages
def test_settings_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/])LTXTRAIN_[A-Z0-9_]*[A-Z0-9]", page.read_text()))
    assert named - VARIABLES - OURS == set()


@pages
def test_files_exist(page: Path) -> None:
    """Those of the rooms, by their whole path."""
    named = re.findall(
        r"`((?:ltxtrain_\w+|clients|tests|bench|docs|protos)/[\w./-]+\.\w+)(?:::\w+)?`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


@pages
def test_python_imports_what_exists(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        nodes: list[ast.stmt] = [
            node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(body=nodes, type_ignores=[]), str(page), "exec"), {})


@pages
def test_rooms_are_called_by_their_names(page: Path) -> None:
    assert re.findall(r"(?<![\w./-])(?:trainer|services|pocket)/", page.read_text()) == []


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A & b\n[x](#a--b) [y](#c) [z](none.md) [page](page.md#a--b) [web](https://example.com)\n")
    assert broken_links(page) == ["#c", "none.md"]
    assert [unknown(words) for words in commands("`ltxtrain watch JOB --then` and `ltxtrain datasets lst`")] == [
        ["--then"],
        ["lst"],
    ]
    block = "```\nltxtrain submit a.json \\\n  --watch --wath  # --not\n```\n"
    assert [unknown(words) for words in commands(block)] == [["--wath"]]
