"""The bench for the day that a card is here, in its small form on the CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a card it takes minutes")
def test_every_row_is_kept_as_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--out", str(out)])
    gpu.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row.pop("name"): row for row in rows} == figures
    assert set(figures) == {"device", "bare", "exact", "fastest", "streamed", "repeats"}
    assert not [name for name, row in figures.items() if "failed" in row]
    assert figures["repeats"] == {"equal_runs": True, "equal_streamed": True}
    assert figures["streamed"]["loss"] == figures["exact"]["loss"]


def test_what_would_not_end_in_time_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--minutes", "-1", "--out", str(tmp_path / "rows.jsonl")])
    gpu.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {}
