"""A training that is killed and goes on is the training that was not killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_trainer.errors import CheckpointMismatch
from ltxtrain_trainer.lora_file.export import lora_metadata, lora_tensors, write_lora
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.training.checkpoint import read_checkpoint, write_checkpoint
from ltxtrain_trainer.training.loop import CheckpointDue, PreviewDue, train
from ltxtrain_trainer.training.lora import adapter
from ltxtrain_trainer.training.settings import TrainSettings
from tests.trainer.golden import IDENTITY, golden_transformer, run, same, samples, settings, weights, with_lora

ROOT = Path(__file__).parents[3]
WANTED = settings(checkpoint_interval=1, preview_interval=4)

# Checkpoint files by step in a folder, losses by step, and the adapter at the end.
Stored = tuple[Path, dict[int, float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """An undisturbed training: its checkpoint files by step, its steps, and its adapter."""
    folder = tmp_path_factory.mktemp("checkpoints")
    transformer = with_lora(WANTED)
    losses = {}
    for report in train(transformer, samples(), WANTED, identity=IDENTITY):
        if isinstance(report, CheckpointDue):
            write_checkpoint(report.checkpoint, folder / str(report.step))
        elif isinstance(report, Step):
            losses[report.step] = report.loss
    return folder, losses, weights(transformer)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_training_goes_on_from_any_step_bit_for_bit(stored: Stored, step: int) -> None:
    folder, losses, trained = stored
    torch.manual_seed(step)
    reports, resumed = run(WANTED, resume=read_checkpoint(folder / str(step)))
    assert {report.step: report.loss for report in reports if isinstance(report, Step)} == {
        number: loss for number, loss in losses.items() if number > step
    }
    assert same(resumed, trained)


def test_a_preview_that_may_have_been_cut_is_due_again(stored: Stored) -> None:
    folder, _, _ = stored
    reports, _ = run(WANTED, resume=read_checkpoint(folder / "4"))
    assert reports[0] == PreviewDue(4)
    reports, _ = run(WANTED, resume=read_checkpoint(folder / "6"))
    assert reports == [PreviewDue(6)]


def test_eight_bit_moments_go_on_bit_for_bit(tmp_path: Path) -> None:
    wanted = settings(optimizer="adamw_8bit", checkpoint_interval=3)
    with torch.compiler.set_stance("force_eager"):
        transformer = with_lora(wanted)
        for report in train(transformer, samples(), wanted, identity=IDENTITY):
            if isinstance(report, CheckpointDue) and report.step == 3:
                write_checkpoint(report.checkpoint, tmp_path / "3")
        checkpoint = read_checkpoint(tmp_path / "3")
        assert checkpoint.optimizer["exp_avg.codes"].dtype == torch.uint8
        assert same(run(wanted, resume=checkpoint)[1], weights(transformer))


def test_a_checkpoint_is_the_state_of_its_step_and_nothing_else(stored: Stored) -> None:
    folder, _, trained = stored
    checkpoint = read_checkpoint(folder / "6")
    assert checkpoint.step == 6
    assert same(checkpoint.adapter, trained)
    assert set(checkpoint.optimizer) == {"step", "exp_avg", "exp_avg_sq"}
    assert checkpoint.fingerprint.items() >= IDENTITY.items()


def test_equal_checkpoints_have_equal_bytes(stored: Stored, tmp_path: Path) -> None:
    folder, _, _ = stored
    write_checkpoint(read_checkpoint(folder / "3"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (folder / "3").read_bytes()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"learning_rate": 5e-3}, "learning_rate is 0.01 in the checkpoint and 0.005 here"),
        ({"rank": 16}, "rank is 8 in the checkpoint and 16 here"),
        ({"with_audio": False}, "with_audio is True in the checkpoint and False here"),
        ({"steps": 7}, "steps is 6 in the checkpoint and 7 here"),
        ({"attention": "fastest"}, "attention is absent in the checkpoint and fastest here"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(
    stored: Stored, change: dict[str, Any], difference: str
) -> None:
    folder, _, _ = stored
    wanted = settings(**change)
    with pytest.raises(CheckpointMismatch, match=difference) as caught:
        run(wanted, resume=read_checkpoint(folder / "3"))
    assert str(caught.value).count(" here") == 1


def test_a_checkpoint_of_other_data_is_refused_by_name(stored: Stored) -> None:
    folder, _, _ = stored
    with pytest.raises(CheckpointMismatch) as caught:
        run(WANTED, data=samples(6), identity={"model": "another"}, resume=read_checkpoint(folder / "3"))
    text = str(caught.value)
    assert "model is golden in the checkpoint and another here" in text
    assert "samples is 5 in the checkpoint and 6 here" in text
    assert "training_set is made here in the checkpoint and absent here" in text


def test_when_it_reports_may_change(stored: Stored) -> None:
    folder, _, trained = stored
    wanted = settings(checkpoint_interval=5, preview_interval=0, evaluation_interval=1)
    assert same(run(wanted, resume=read_checkpoint(folder / "3"))[1], trained)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "checkpoint"
    file.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="not a checkpoint"):
        read_checkpoint(file)


def main(folder: Path, kill_at: int) -> None:
    """In a process of its own: trains with a checkpoint every second step, kills itself or leaves the LoRA file."""
    wanted = settings(checkpoint_interval=2)
    transformer = with_lora(wanted)
    newest = max(folder.glob("checkpoint-*"), default=None)
    resume = read_checkpoint(newest) if newest else None
    for report in train(transformer, samples(), wanted, identity=IDENTITY, resume=resume):
        if isinstance(report, CheckpointDue):
            write_checkpoint(report.checkpoint, folder / f"checkpoint-{report.step}")
        elif isinstance(report, Step) and report.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    write(transformer, wanted, folder / "lora.safetensors")


def write(transformer: Any, wanted: TrainSettings, path: Path) -> None:
    metadata = lora_metadata(base_model="golden", revision="1", trigger_phrase="", settings=wanted, step=wanted.steps)
    write_lora(lora_tensors(adapter(transformer)), metadata, path)


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    ends = [
        subprocess.run(
            [sys.executable, "-m", "tests.trainer.training.test_checkpoint", str(tmp_path), str(kill_at)],
            cwd=ROOT,
            check=False,
            capture_output=True,
        ).returncode
        for kill_at in (3, 0)
    ]
    assert ends == [-signal.SIGKILL, 0]
    transformer = with_lora(settings())
    run(settings(checkpoint_interval=2), transformer=transformer)
    write(transformer, settings(checkpoint_interval=2), tmp_path / "undisturbed")
    assert (tmp_path / "undisturbed").read_bytes() == (tmp_path / "lora.safetensors").read_bytes()


def test_a_transformer_of_another_adapter_is_not_filled(stored: Stored) -> None:
    folder, _, _ = stored
    with pytest.raises(ValueError, match="add_lora"):
        next(
            iter(
                train(golden_transformer(), samples(), WANTED, identity=IDENTITY, resume=read_checkpoint(folder / "3"))
            )
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
