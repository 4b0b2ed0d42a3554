"""Look into an installation, and say what to do."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ltxtrain_client.checks import Finding, Verdict, check_installation
from ltxtrain_client.cli.session import Exit, Json, run, settings_of
from ltxtrain_client.progress import print_json

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAILED: "red"}


def doctor(
    context: typer.Context,
    state_dir: Annotated[Path, typer.Option(help="Where `up` keeps its state.", envvar="LTXTRAIN_STATE_DIR")] = Path(
        ".ltxtrain"
    ),
    json_lines: Json = False,
) -> None:
    """Check this installation and the services it speaks to, and say what to do. Ends with 1 when one is wrong."""

    async def work() -> bool:
        failed = False
        async for finding in check_installation(settings_of(context), state_dir):
            _show(finding, json_lines)
            failed |= finding.verdict is Verdict.FAILED
        return failed

    raise typer.Exit(Exit.FAILED if run(work()) else Exit.SUCCEEDED)


def _show(finding: Finding, json_lines: bool) -> None:
    if json_lines:
        print_json(vars(finding))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{finding.verdict:<7}", style=_STYLES[finding.verdict], end="")
    console.print(f"{finding.subject}: {finding.detail}")
    if finding.advice:
        console.print(f"       → {finding.advice}")
