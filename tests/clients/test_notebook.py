"""The example notebook, cell by cell, as Jupyter runs it: a loop is running where the cells are."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.work_pb2 import Event, Lifecycle, State, TrainMetrics

from tests.clients.commands import JOB, clips_zip
from tests.clients.far_side import FarSide
from tests.clients.object_host import ObjectHost

NOTEBOOK = json.loads((Path(__file__).parent.parent.parent / "examples/notebook.ipynb").read_text())


async def test_every_cell_runs(
    far: FarSide, store: ObjectHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for service in ("TRAIN", "INGEST", "PREPROCESS"):
        monkeypatch.setenv(f"LTXTRAIN_{service}", far.address)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.zip").write_bytes(clips_zip())
    far.add_artifact(JOB, "lora.safetensors", b"weights", Artifact.KIND_LORA, hashlib.sha256(b"weights").hexdigest())
    store.objects[f"/{JOB}/lora.safetensors"] = b"weights"
    far.output.lora_file = f"{JOB}/artifacts/lora.safetensors"
    far.events = [
        Event(train_metrics=TrainMetrics(step=1, loss=0.5)),
        Event(lifecycle=Lifecycle(state=State.STATE_SUCCEEDED)),
    ]
    cells = [
        compile("".join(cell["source"]), cell["id"], "exec")
        for cell in NOTEBOOK["cells"]
        if cell["cell_type"] == "code"
    ]
    names: dict[str, Any] = {}

    def run() -> None:
        async def kernel() -> None:
            for cell in cells:
                exec(cell, names)

        asyncio.new_event_loop().run_until_complete(kernel())

    # The services answer on the loop of the test; the kernel's is another.
    await asyncio.to_thread(run)
    assert (tmp_path / "made/lora.safetensors").read_bytes() == b"weights"
    assert "last loss 0.5000" in capsys.readouterr().out
    assert far.requests("CreateJob")[0].spec.SerializeToString()


def test_nothing_of_a_run_is_in_it() -> None:
    assert not [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")]
