"""The two sides of the comparison as processes: the product's loop, and the least that a loop can do."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common.worker import Block, Shape
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding, dump_clip, dump_prompt
from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.model.loading import load_transformer
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.plan import SampleFiles
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.seeds import sample_at
from ltxtrain_trainer.training.loop import prepare, train
from ltxtrain_trainer.training.lora import adapter, add_lora
from ltxtrain_trainer.training.losses import training_draw
from ltxtrain_trainer.training.objective import pack_video, video_prefix_tokens
from ltxtrain_trainer.training.optim import BETAS, EPSILON, WEIGHT_DECAY, learning_rate
from ltxtrain_trainer.training.settings import TrainSettings

FRAME_RATE = 24.0
PROMPT_TOKENS = 128
SAMPLES = 3
# More than any measurement asks for.
STEPS = 10_000


def serve(blocks: Callable[[int], Block]) -> None:
    """Does as many steps as each line says; at the end, says how much memory it took."""
    for line in sys.stdin:
        print(json.dumps(vars(blocks(int(line)))), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def product(model: Path, shape: Shape) -> Callable[[int], Block]:
    transformer, settings = _transformer(model, shape), settings_of(shape)
    reports = train(transformer, samples_of(shape), settings, identity={})

    def block(count: int) -> Block:
        started = time.perf_counter()
        for _ in range(count):
            report = next(reports)
            assert isinstance(report, Step)
            loss = report.loss
        return Block((time.perf_counter() - started) / count, loss)

    return block


def bare(model: Path, shape: Shape) -> Callable[[int], Block]:
    transformer, settings = _transformer(model, shape), settings_of(shape)
    prepare(transformer, settings)
    parameters = list(adapter(transformer).values())
    optimizer = torch.optim.AdamW(parameters, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True)
    gates = _Gates(transformer)
    batches = _batches(transformer, shape, settings)
    step = 0

    def block(count: int) -> Block:
        nonlocal step
        prepared = [next(batches) for _ in range(count)]
        rates = [learning_rate(settings, step + number + 1) for number in range(count)]
        step += count
        started = time.perf_counter()
        for batch, rate in zip(prepared, rates, strict=True):
            total = 0.0
            for inputs, target in batch:
                gates.level = inputs["sigma"]
                velocity, _ = transformer(**inputs)
                loss = (velocity[:, -target.shape[1] :] - target).square().mean()
                (loss / shape.batch).backward()
                total += loss.item()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return Block((time.perf_counter() - started) / count, total / shape.batch)

    return block


class _Gates:
    """The gate inputs between modalities as the published model computes them, set once instead of for each call."""

    def __init__(self, transformer: Any) -> None:
        self.level = torch.zeros(1)
        for gate in (transformer.av_cross_attn_video_a2v_gate, transformer.av_cross_attn_audio_v2a_gate):
            gate.register_forward_pre_hook(lambda module, inputs: (self.level, *inputs[1:]))


def _batches(transformer: Any, shape: Shape, settings: TrainSettings) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """The transformer's inputs and what it should say of the tokens that are not prefix, of every clip of each step."""
    model, samples = VelocityModel(transformer), samples_of(shape)
    prefix = video_prefix_tokens(settings.conditioning_frames, shape.latents)
    for step in range(1, settings.steps + 1):
        batch = []
        for index in range(shape.batch):
            position = (step - 1) * shape.batch + index
            clip, prompt = samples[sample_at(settings.seed, position, SAMPLES)]
            draw = training_draw(clip, settings.seed, step, index).video
            clean = pack_video(clip.video).float()[None]
            level = draw.level.clone()
            noised = (1 - level) * clean + level * draw.noise
            noised[:, :prefix] = clean[:, :prefix]
            timesteps = level.expand(1, clean.shape[1]).clone()
            timesteps[:, :prefix] = 0
            inputs = {
                "hidden_states": noised,
                "audio_hidden_states": torch.zeros(1, 1, transformer.config.audio_in_channels),
                "encoder_hidden_states": prompt.video.float()[None],
                "audio_encoder_hidden_states": torch.zeros(1, 1, transformer.config.audio_cross_attention_dim),
                "timestep": timesteps * 1000,
                "audio_timestep": level[:, None] * 1000,
                "sigma": level * 1000,
                "audio_sigma": level * 1000,
                "video_coords": model.video_positions(shape.latents, FRAME_RATE, 1),
                "audio_coords": model.audio_positions(1, 1),
                "isolate_modalities": True,
                "use_cross_timestep": False,
                "return_dict": False,
            }
            batch.append((inputs, (draw.noise - clean)[:, prefix:]))
        yield batch


def _transformer(model: Path, shape: Shape) -> Any:
    torch.set_num_threads(1)
    settings = settings_of(shape)
    transformer = load_transformer(resolve_model(str(model)), torch.device("cpu"), Precision.FP32)
    add_lora(transformer, rank=settings.rank, with_audio=False, seed=settings.seed)
    return transformer


def settings_of(shape: Shape) -> TrainSettings:
    return TrainSettings(
        rank=32,
        steps=STEPS,
        learning_rate=2e-4,
        conditioning_frames=9,
        with_audio=False,
        batch_size=shape.batch,
        checkpoint_interval=STEPS,
    )


def sample_files(folder: Path, shape: Shape) -> tuple[SampleFiles, ...]:
    """The same samples as files in a folder."""
    made = []
    for number, (clip, prompt) in enumerate(samples_of(shape)):
        files = SampleFiles(latents=folder / f"clip-{number}", prompt=folder / f"prompt-{number}")
        files.latents.write_bytes(dump_clip(clip))
        files.prompt.write_bytes(dump_prompt(prompt))
        made.append(files)
    return tuple(made)


def samples_of(shape: Shape) -> list[tuple[EncodedClip, PromptEmbedding]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (
            EncodedClip(
                video=torch.randn(128, *shape.latents, generator=draw).bfloat16(),
                audio=None,
                frame_rate=FRAME_RATE,
                frame_count=8 * shape.latents[0] - 7,
            ),
            PromptEmbedding(
                video=torch.randn(PROMPT_TOKENS, 64, generator=draw).bfloat16(),
                audio=torch.randn(PROMPT_TOKENS, 32, generator=draw).bfloat16(),
                token_count=3,
                truncated=False,
            ),
        )
        for _ in range(SAMPLES)
    ]
