"""The installed packages: names that collide with nothing, a client that stands alone, commands that exist."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ltxtrain_client.cli import app
from typer.main import get_command

ROOT = Path(__file__).parent.parent
CLIENT = sorted((ROOT / "clients/ltxtrain_client").rglob("*.py"))
WHOLE: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ALONE: dict[str, Any] = tomllib.loads((ROOT / "clients/pyproject.toml").read_text())
# What the client's distribution brings, by import name; tools of its extras are imported where they are used alone.
BROUGHT = {"aiohttp", "google", "grpc", "grpc_status", "ltxtrain", "ltxtrain_client", "rich", "typer"}
EXTRAS = {"av", "huggingface_hub", "mlflow", "tensorboard", "trackio", "wandb"}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def test_folders_of_common_names_disturb_nothing(tmp_path: Path) -> None:
    """A folder of the caller's that is called as one of our rooms once was."""
    for name in ("services", "trainer", "pocket", "runtime", "clients", "protos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    code = """
from typer.main import get_command
from ltxtrain_client.cli import app
import ltxtrain_pocket, ltxtrain_trainer.geometry
assert {"up", "demo", "submit"} <= get_command(app).commands.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wheel_puts_nothing_else_at_the_top() -> None:
    """`buf` holds what generated code imports for the rules of fields; a namespace, which others' packages share."""
    packages = WHOLE["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [name for name in (Path(item).name for item in packages) if not name.startswith("ltxtrain")] == ["buf"]
    assert not [*(ROOT / "protos/buf").rglob("__init__.py")]
    assert ALONE["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["../protos/buf"] == "buf"


def test_both_distributions_agree_about_the_client() -> None:
    whole, alone = WHOLE["project"], ALONE["project"]
    for name in ("version", "requires-python", "dependencies", "scripts", "license"):
        assert whole[name] == alone[name], name
    extras = alone["optional-dependencies"]
    assert extras == {name: whole["optional-dependencies"][name] for name in extras}
    assert WHOLE["build-system"] == ALONE["build-system"]


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Top name of each import, and whether it is at the module's top."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from ((name.partition(".")[0], node in tree.body) for name in names)


def test_the_client_needs_what_it_brings_alone() -> None:
    found = {pair for path in CLIENT for pair in imported(path) if pair[0] not in sys.stdlib_module_names}
    assert {name for name, at_top in found if at_top} <= BROUGHT
    assert {name for name, _ in found} <= BROUGHT | EXTRAS


@pytest.mark.parametrize("path", CLIENT, ids=lambda path: path.stem)
def test_the_client_is_python_3_11(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 11))


def test_messages_name_commands_that_exist() -> None:
    command: Any = get_command(app)
    sources = [path for room in ("clients", "ltxtrain_services", "docs") for path in (ROOT / room).rglob("*")]
    texts = [path for path in sources if path.suffix in (".py", ".md", ".html")] + [ROOT / "README.md"]
    named = {
        (word, str(path.relative_to(ROOT)))
        for path in texts
        if "node_modules" not in path.parts
        for word in re.findall(r"`ltxtrain ([a-z][a-z-]*)", path.read_text())
    }
    assert len(named) > 10
    assert [(word, path) for word, path in sorted(named) if word not in command.commands] == []


@pytest.mark.soak
@pytest.mark.parametrize("version", PYTHONS)
def test_the_client_alone_runs_on(version: str, tmp_path: Path) -> None:
    """Installed from its folder; versions that are not on this machine are skipped."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([python, "-m", "venv", tmp_path / "env"], check=True)
    bin_dir = tmp_path / "env/bin"
    subprocess.run([bin_dir / "pip", "install", "--quiet", ROOT / "clients"], check=True)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    commands: list[list[str | Path]] = [
        [bin_dir / "ltxtrain", "--version"],
        [bin_dir / "python", "-c", "import ltxtrain_client.sync, ltxtrain_client.trackers"],
    ]
    for command in commands:
        subprocess.run(command, check=True, cwd=tmp_path, env=environ)
    tops = {path.name for path in (tmp_path / "env/lib").glob("python*/site-packages/ltxtrain*")}
    assert not [name for name in tops if name.startswith(("ltxtrain_services", "ltxtrain_trainer", "ltxtrain_pocket"))]
