"""What `--help` and `--version` say."""

from importlib import metadata

import pytest
from ltxtrain_client.cli import app
from ltxtrain_client.cli.local import DEFAULT_MODEL
from typer.testing import CliRunner

from trainer.model import folder as model

COMMANDS = [(command.callback.__name__,) for command in app.registered_commands if command.callback]


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
    assert DEFAULT_MODEL == model.DEFAULT_MODEL


def test_the_version_is_that_of_the_distribution() -> None:
    assert said("--version") == f"ltxtrain {metadata.version('ltxtrain')}\n"
