"""Every step's numbers as one Parquet table, so that curves can be drawn without the event log."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from trainer.pages.job_page import MeasuredPreview
from trainer.preview.metrics import PreviewMetrics
from trainer.training.loop import QUARTERS, Step

COLUMNS = tuple(field.name for field in fields(Step) if field.name != "quarter_losses")
QUARTER_COLUMNS = tuple(f"video_loss_quarter_{quarter}" for quarter in range(QUARTERS))


PREVIEWS_KEY = b"ltxtrain.previews"


class Records:
    """The steps of a training so far, in order, each once; and what was measured on its previews."""

    def __init__(self, rows: Iterable[dict[str, Any]] = (), previews: Iterable[MeasuredPreview] = ()) -> None:
        self.rows = list(rows)
        self.previews = list(previews)

    @classmethod
    def read(cls, path: Path, until_step: int) -> "Records":
        """The rows of a file up to a step: what a resumed training goes on from."""
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        previews = json.loads((table.schema.metadata or {}).get(PREVIEWS_KEY, b"[]"))
        return cls(
            (row for row in table.to_pylist() if row["step"] <= until_step),
            (MeasuredPreview(**item | {"metrics": PreviewMetrics(**item["metrics"])}) for item in previews),
        )

    def add(self, step: Step) -> None:
        row = {name: value for name, value in asdict(step).items() if name in COLUMNS}
        self.rows.append(row | dict(zip(QUARTER_COLUMNS, step.quarter_losses, strict=True)))

    def write(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        kinds = [(name, pyarrow.int32() if name == "step" else pyarrow.float64()) for name in COLUMNS]
        kinds += [(name, pyarrow.float64()) for name in QUARTER_COLUMNS]
        previews = json.dumps([asdict(preview) for preview in self.previews])
        schema = pyarrow.schema(kinds, metadata={PREVIEWS_KEY: previews.encode()})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows, schema), path)

    def add_preview(self, preview: MeasuredPreview) -> None:
        """Replaces what an earlier start measured on the same preview."""
        place = (preview.step, preview.validation_index, preview.base_model)
        kept = [item for item in self.previews if (item.step, item.validation_index, item.base_model) != place]
        self.previews = [*kept, preview]

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a column where it has one."""
        return [(row["step"], row[name]) for row in self.rows if row[name] is not None]
