"""Settings of a training; defaults are those of the contract's JobOptions. No tensors."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

# Name of the task in the LoRA's metadata and in config.json.
TRAINING_TYPE = "extend-prefix"
# When a training reports, and how often it computes the same, does not change what it computes.
WITHOUT_EFFECT = ("checkpoint_interval", "preview_interval", "evaluation_interval", "kept_blocks")
# Workers that may share the tokens of one clip: divisors of the published model's 32 heads.
TEAM_SIZES = (2, 4, 8)


def workers_per_clip(workers: int, batch_size: int) -> int:
    """Workers that share the tokens of each clip: 1, unless there are more workers than clips in a step."""
    return workers // batch_size if workers > batch_size else 1


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides what a training computes, and when it reports.

    rank: also alpha. steps: optimizer steps. conditioning_frames: pixel frames of the clean prefix, 1 modulo 8.
    batch_size: clips a step over all workers. Intervals are steps; a checkpoint, a preview and an evaluation also stand
    at the end. preview_interval 0: only there. holdout_fraction: share of the clips that is measured, not trained on.
    steps decide no number of a step but through a linear schedule. kept_blocks: the last blocks, whose activations
    gradient checkpointing leaves in memory. attention: see loop.exact.
    """

    rank: int
    steps: int
    learning_rate: float
    conditioning_frames: int
    with_audio: bool
    seed: int = 42
    batch_size: int = 1
    schedule: Literal["linear", "constant"] = "linear"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    holdout_fraction: float = 0.0
    gradient_checkpointing: bool = True
    kept_blocks: int = 0
    compile_blocks: bool = False
    attention: Literal["exact", "fastest"] = "exact"
    checkpoint_interval: int = 250
    preview_interval: int = 0
    evaluation_interval: int = 100

    def is_due(self, interval: int, step: int) -> bool:
        """Whether what happens every interval steps, and at the end, happens after this step (from 1)."""
        return step == self.steps or (interval > 0 and step % interval == 0)

    def is_preview_due(self, step: int) -> bool:
        """Whether previews are made after this step: at the interval and at the end, but not twice within a moment."""
        return self.is_due(self.preview_interval, step) and step != self.preview_left_out

    @property
    def preview_left_out(self) -> int | None:
        """The step of the interval that the last step follows within half an interval, if there is one."""
        if not self.preview_interval:
            return None
        last = (self.steps - 1) // self.preview_interval * self.preview_interval
        return last if last and 2 * (self.steps - last) < self.preview_interval else None

    def computed_with(self) -> dict[str, Any]:
        """The settings that decide the numbers, by name: all but those without effect."""
        decides = {name: value for name, value in asdict(self).items() if name not in WITHOUT_EFFECT}
        # Checkpoints of before there was a choice do not have it.
        if self.attention == "exact":
            del decides["attention"]
        return decides
