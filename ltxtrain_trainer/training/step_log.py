"""Every step's numbers as one Parquet table, so that curves can be drawn without the event log."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ltxtrain_trainer.reports import QUARTERS, Step

COLUMNS = tuple(field.name for field in fields(Step) if field.name != "quarter_losses")
QUARTER_COLUMNS = tuple(f"video_loss_quarter_{quarter}" for quarter in range(QUARTERS))


class StepLog:
    """The steps of a training so far, in order, each once."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.rows = list(rows)

    @classmethod
    def read(cls, path: Path, until_step: int | None = None) -> "StepLog":
        """The rows of a file, up to a step for a training that resumes there."""
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
        return cls(row for row in rows if until_step is None or row["step"] <= until_step)

    def copy(self) -> "StepLog":
        """The steps so far, to which later ones are not added."""
        return StepLog(self.rows)

    def add(self, step: Step) -> None:
        row = {name: value for name, value in asdict(step).items() if name in COLUMNS}
        self.rows.append(row | dict(zip(QUARTER_COLUMNS, step.quarter_losses, strict=True)))

    def write(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        kinds = [(name, pyarrow.int32() if name == "step" else pyarrow.float64()) for name in COLUMNS]
        kinds += [(name, pyarrow.float64()) for name in QUARTER_COLUMNS]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows, pyarrow.schema(kinds)), path)

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a column where it has one."""
        return [(row["step"], row[name]) for row in self.rows if row[name] is not None]
