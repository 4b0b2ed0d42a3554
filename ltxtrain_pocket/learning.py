"""Measure what the pocket model has learned, and what a LoRA learns on it, through the trainer's own functions.

Openings are scenes that no training has seen. What comes after them is held against the truth of the world: where the
shape should be, what colour it has, whether the ground has a style.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltxtrain_pocket.detect import clicks, dusk_level, see
from ltxtrain_pocket.drawing import Frames, render
from ltxtrain_pocket.scenes import (
    FRAMES,
    PREFIX_FRAMES,
    STYLE_CLIPS,
    STYLE_RANK,
    STYLE_RATE,
    TRIGGER,
    opening,
    sounding_opening,
    style_scene,
)
from ltxtrain_pocket.world import FRAME_RATE, Scene, Style, sound, styled
from ltxtrain_trainer.data.encode import ClipEncoder, PromptEncoder
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.data.mel import SAMPLE_RATE
from ltxtrain_trainer.data.prompt_text import NEGATIVE_PROMPT, with_trigger
from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.model.loading import load_transformer, load_vocoder
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.preview.metrics import Preview, measure
from ltxtrain_trainer.preview.previewer import AUDIO_RATE, decode_audio, decode_video
from ltxtrain_trainer.preview.sampler import Sampled, SamplerSettings, continue_clip
from ltxtrain_trainer.training.distributed import Worker
from ltxtrain_trainer.training.loop import train
from ltxtrain_trainer.training.lora import add_lora, base_model
from ltxtrain_trainer.training.losses import held_out_loss
from ltxtrain_trainer.training.settings import TrainSettings

POSITION_PIXELS, COLOUR_LEVELS, STYLE_LEVEL = 12.0, 20.0, 0.5
# Of a click from its bounce: after VAE and vocoder alone, and in a continuation.
HEARD_SECONDS, SYNC_SECONDS = 0.02, 0.08


# Least and most of each figure.
AIMS: dict[str, tuple[float, float]] = {
    "vae_psnr_db": (28.0, math.inf),
    "prefix_psnr_db": (27.0, math.inf),
    "base_position_ok": (0.8, 1.0),
    "base_colour_ok": (0.9, 1.0),
    "base_join_jump": (0.0, 1.6),
    "style_with_lora": (0.8, 1.0),
    "style_with_base": (0.0, 0.1),
    "clicks_heard": (0.95, 1.0),
    "clicks_in_sync": (0.7, 1.0),
    "held_out_loss_ratio": (0.0, 0.8),
    "lora_position_ok": (0.8, 1.0),
    "lora_colour_ok": (0.9, 1.0),
}


def missed(figures: Mapping[str, float]) -> list[str]:
    """Names of the figures that are outside of their aims; those that were not measured are left out."""
    return [name for name, (least, most) in AIMS.items() if name in figures and not least <= figures[name] <= most]


@dataclass(frozen=True)
class Verdict:
    """One continuation held against its opening's truth: pixels off, levels off, how far dusk has come, join jumps."""

    position: float
    colour: float
    dusk: float
    prefix_psnr_db: float
    join: float
    motion: float


class Pocket:
    """The pocket model, loaded once: encodes scenes, trains a LoRA, continues openings."""

    def __init__(self, folder: Path) -> None:
        self.folder = resolve_model(str(folder))
        self._silent, self._sounding = (
            ClipEncoder(self.folder, "cpu", with_audio=with_audio, dtype=torch.float32) for with_audio in (False, True)
        )
        self.vae = self._silent.vae
        self._vocoder = load_vocoder(self.folder, "cpu", torch.float32)
        self._prompts = PromptEncoder(self.folder, "cpu")
        self._known: dict[str, PromptEmbedding] = {}
        self.transformer = self.fresh_transformer()

    def fresh_transformer(self) -> Any:
        return load_transformer(self.folder, "cpu", Precision.FP32)

    def prompt(self, text: str) -> PromptEmbedding:
        if text not in self._known:
            self._known[text] = self._prompts.encode([text])[0]
        return self._known[text]

    def clip(self, frames: Frames) -> EncodedClip:
        return self._silent.encode(frames, FRAME_RATE)

    def sounding_clip(self, scene: Scene, frame_count: int) -> EncodedClip:
        audio = sound(scene, frame_count, SAMPLE_RATE)
        return self._sounding.encode(render(scene, frame_count), FRAME_RATE, audio)

    def wave_of(self, clip: EncodedClip) -> NDArray[np.float32]:
        """The sound of a clip as it is heard, [2, S] at AUDIO_RATE."""
        assert clip.audio is not None
        return decode_audio(self._sounding.audio_vae, self._vocoder, clip.audio)

    def sample_of(self, scene: Scene, frame_count: int = FRAMES) -> tuple[EncodedClip, PromptEmbedding]:
        return self.clip(render(scene, frame_count)), self.prompt(with_trigger(scene.caption, TRIGGER))

    def vae_psnr_db(self, scenes: Sequence[Scene]) -> float:
        """10 log10(255^2 / MSE) over whole clips that went through encoder and decoder."""
        squares = []
        for scene in scenes:
            frames = render(scene, FRAMES)
            decoded = decode_video(self.vae, self.clip(frames).video)
            squares.append(float(np.square(decoded.astype(np.float64) - frames).mean()))
        return float(10 * np.log10(255.0**2 / np.mean(squares)))

    def train_style(self, steps: int) -> list[float]:
        """Add a LoRA to the transformer and train it on the style's clips; the losses of the steps."""
        samples = [self.sample_of(style_scene(index)) for index in range(STYLE_CLIPS)]
        add_lora(self.transformer, rank=STYLE_RANK, with_audio=False, seed=42)
        settings = _settings(steps)
        reports = train(self.transformer, samples, settings, identity={})
        return [report.loss for report in reports if hasattr(report, "loss")]

    def held_out_loss_ratio(self, indices: Sequence[int]) -> float:
        """Held-out loss of the LoRA over that of the base model, on styled clips that were not trained on."""
        samples = [self.sample_of(styled(opening(index), Style.DUSK, PREFIX_FRAMES - 1)) for index in indices]
        model, settings = VelocityModel(self.transformer), _settings(1)
        places = range(len(samples))
        with_lora = held_out_loss(model, samples, places, settings, Worker())
        with base_model(self.transformer):
            return with_lora / held_out_loss(model, samples, places, settings, Worker())

    def clicks_heard(self, scenes: Sequence[Scene]) -> float:
        """Share of the bounces whose click is at its place in the scenes' own sound, after VAE and vocoder."""
        found = []
        for scene in scenes:
            heard = clicks(self.wave_of(self.sounding_clip(scene, FRAMES)), AUDIO_RATE)
            bounces = [frame / FRAME_RATE for frame in scene.bounces(FRAMES - 1)]
            found += [any(abs(click - bounce) <= HEARD_SECONDS for click in heard) for bounce in bounces]
        return _share(found)

    def is_in_sync(self, index: int, steps: int) -> bool:
        """Whether the sounding opening of that index goes on with a click at each bounce, and with no other."""
        scene = sounding_opening(index)
        sampled = self._sampled(scene, self.sounding_clip(scene, PREFIX_FRAMES), index, steps, 0.0)
        begin = PREFIX_FRAMES / FRAME_RATE
        continued = EncodedClip(video=sampled.video, audio=sampled.audio, frame_rate=FRAME_RATE, frame_count=FRAMES)
        heard = [click for click in clicks(self.wave_of(continued), AUDIO_RATE) if click >= begin]
        bounces = [frame / FRAME_RATE for frame in scene.bounces(FRAMES)]
        to_come = [time for time in bounces if begin <= time < (FRAMES - 1) / FRAME_RATE]
        return _covered(to_come, heard) and _covered(heard, bounces)

    def continued(self, index: int, steps: int, stg_scale: float = 0.0) -> Frames:
        """The opening of that index, continued to FRAMES frames; of 4 blocks none is skipped unless asked for."""
        scene = opening(index)
        sampled = self._sampled(scene, self.clip(render(scene, PREFIX_FRAMES)), index, steps, stg_scale)
        return decode_video(self.vae, sampled.video)

    def _sampled(self, scene: Scene, prefix: EncodedClip, index: int, steps: int, stg_scale: float) -> Sampled:
        settings = SamplerSettings(frame_count=FRAMES, seed=42, index=index, stg_scale=stg_scale, step_count=steps)
        reports = continue_clip(
            VelocityModel(self.transformer),
            self.folder.config("scheduler"),
            prefix,
            self.prompt(with_trigger(scene.caption, TRIGGER)),
            self.prompt(NEGATIVE_PROMPT),
            settings,
        )
        return next(report for report in reports if isinstance(report, Sampled))


def judge(index: int, frames: Frames) -> Verdict:
    """How near a continuation of an opening comes to the truth; what cannot be seen is infinitely far."""
    scene = opening(index)
    source = render(scene, PREFIX_FRAMES)
    first, last = see(source[0]), see(frames[-1])
    assert first is not None
    metrics = measure(Preview(frames=frames, source_prefix=source, frame_rate=FRAME_RATE))
    truth = scene.state(len(frames) - 1)
    if last is None:
        position = colour = float("inf")
        dusk = 0.0
    else:
        position = float(np.hypot(last.x - truth.x, last.y - truth.y))
        colour = max(abs(a - b) for a, b in zip(last.colour, first.colour, strict=True))
        dusk = dusk_level(first.ground, last.ground)
    return Verdict(
        position=position,
        colour=colour,
        dusk=dusk,
        prefix_psnr_db=metrics.prefix_psnr_db,
        join=max(metrics.join_colour_jump, metrics.join_contrast_jump, metrics.join_luminance_jump),
        motion=metrics.join_motion_break,
    )


@dataclass(frozen=True)
class Extent:
    """The openings are continued in sampling_steps; the LoRA is trained for training_steps."""

    openings: int
    sampling_steps: int
    training_steps: int


@dataclass(frozen=True)
class Measured:
    """Figures by name, and what they were taken from: frames of each opening, continued by base model and LoRA."""

    figures: dict[str, float]
    losses: list[float]
    with_base: list[Frames]
    with_lora: list[Frames]


def measure_learning(pocket: Pocket, extent: Extent) -> Measured:
    """The figures of pictures, on the first openings; the pocket model has a LoRA afterwards."""
    openings = range(extent.openings)
    figures = {"vae_psnr_db": pocket.vae_psnr_db([opening(index) for index in openings])}
    losses = pocket.train_style(extent.training_steps)
    figures["held_out_loss_ratio"] = pocket.held_out_loss_ratio(openings)
    with_lora = [pocket.continued(index, extent.sampling_steps) for index in openings]
    with base_model(pocket.transformer):
        with_base = [pocket.continued(index, extent.sampling_steps) for index in openings]
    figures |= base_figures([judge(index, frames) for index, frames in enumerate(with_base)])
    figures |= lora_figures([judge(index, frames) for index, frames in enumerate(with_lora)])
    return Measured(figures, losses, with_base, with_lora)


def measure_sound(pocket: Pocket, extent: Extent) -> dict[str, float]:
    """The figures of sound, on the first sounding openings, by the model as it is."""
    openings = range(extent.openings)
    return {
        "clicks_heard": pocket.clicks_heard([sounding_opening(index) for index in openings]),
        "clicks_in_sync": _share(pocket.is_in_sync(index, extent.sampling_steps) for index in openings),
    }


def base_figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    return {
        "prefix_psnr_db": statistics.mean(verdict.prefix_psnr_db for verdict in verdicts),
        "base_position_ok": _share(verdict.position <= POSITION_PIXELS for verdict in verdicts),
        "base_colour_ok": _share(verdict.colour <= COLOUR_LEVELS for verdict in verdicts),
        "base_join_jump": statistics.median(verdict.join for verdict in verdicts),
        "style_with_base": _share(verdict.dusk >= STYLE_LEVEL for verdict in verdicts),
    }


def lora_figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The continuation still follows its own opening: half as far off again as the base may be."""
    return {
        "style_with_lora": _share(verdict.dusk >= STYLE_LEVEL for verdict in verdicts),
        "lora_position_ok": _share(verdict.position <= 1.5 * POSITION_PIXELS for verdict in verdicts),
        "lora_colour_ok": _share(verdict.colour <= 1.5 * COLOUR_LEVELS for verdict in verdicts),
    }


def _share(holds: Iterable[bool]) -> float:
    found = list(holds)
    return sum(found) / len(found)


def _covered(times: Sequence[float], by: Sequence[float]) -> bool:
    return all(any(abs(time - other) <= SYNC_SECONDS for other in by) for time in times)


def _settings(steps: int) -> TrainSettings:
    return TrainSettings(
        rank=STYLE_RANK,
        steps=steps,
        learning_rate=STYLE_RATE,
        conditioning_frames=PREFIX_FRAMES,
        with_audio=False,
        gradient_checkpointing=False,
        checkpoint_interval=0,
    )
