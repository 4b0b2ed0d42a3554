"""The output of `--help` and `--version`."""

from importlib import metadata

import pytest
import typer
from ltxtrain_client import cli
from ltxtrain_client.cli import app
from typer.testing import CliRunner

from ltxtrain_trainer.model.folder import DEFAULT_MODEL

COMMANDS = [(command.name or command.callback.__name__,) for command in app.registered_commands if command.callback]


def said(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, arguments)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("command", [(), *COMMANDS, ("model", "tiny")])
def test_flags_take_no_value_in_the_help(command: tuple[str, ...]) -> None:
    text = said(*command, "--help")
    assert "Show this message and exit." in text
    assert "<bool>" not in text and "bool" not in text.lower()


def test_defaults_are_in_the_help() -> None:
    for address in ("127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"):
        assert address in said("--help")
    assert DEFAULT_MODEL in said("up", "--help")


def test_the_version_is_that_of_the_distribution() -> None:
    assert said("--version") == f"ltxtrain {metadata.version('ltxtrain')}\n"


def test_commands_of_the_suite_come_by_entry_point() -> None:
    text = said("--help")
    assert all(f"{name} " in text for name in ("up", "demo", "model"))


def test_a_command_that_cannot_be_imported_does_not_break_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = metadata.EntryPoint("up", "ltxtrain_services.local.nothing:up", cli.COMMANDS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [broken])
    app = typer.Typer()
    cli._add_commands(app)
    assert app.registered_commands == [] and "ltxtrain_services.local.nothing" in caplog.text
