"""Tables, pairs and documents on a terminal or in a pipe."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

# Wide enough that nothing wraps where there is no screen.
PIPE_WIDTH = 2000


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; as wide as needed when the output is not a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=PIPE_WIDTH)
    console.print(table, highlight=False)


def print_named(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`print_table`, whose second column holds display names; without it where there are none."""
    if not any(row[1] for row in rows):
        titles, rows = [*titles[:1], *titles[2:]], [[*row[:1], *row[2:]] for row in rows]
    print_table(titles, rows)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values; pairs without a value are left out."""
    width = max((len(name) for name, value in pairs if value), default=0)
    for name, value in pairs:
        if value:
            print(f"{name:<{width}}  {value}")


def indented(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False)


def time_text(time: Timestamp) -> str:
    """Local date and time; empty when unset."""
    if not time.seconds:
        return ""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
