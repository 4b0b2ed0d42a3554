"""Memory of a training step of the real model on a card, beside the memory plan's figure. Needs no card.

    bench/memory.py [--quick]

The trainer's own step runs on the published model's sizes, on tensors without memory; everything that CUDA would keep
is counted (bench/common/meta_card.py). Two and three blocks are run, the rest follows from their difference; without
--quick one cell runs all 48 as well. A row is a resolution at 89 frames, with or without audio, in one number format:
tokens, weights, adapter with AdamW at rank 32, activations, and the plan's figure for the same; the last rows are of a
rank and a length, and of sizes with blocks that are kept rather than computed once more, which the plan's lines were
not drawn through. The last line is one JSON object:

    worst_plan_error     the largest relative difference between plan and simulation over all rows
    default_job_gib_24   what the default job (768x768x89, rank 32, no audio, a preview at 960x960) takes of 24 GB
    small_job_gib_16     what a small one (512x288x89, rank 16) takes of 16 GB
"""

import argparse
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.common.meta_card import REAL, on_a_card, parts, quantize
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.geometry import BUCKETS, Geometry
from ltxtrain_trainer.memory_plan import (
    ADAPTER_BYTES,
    GIB,
    HEADROOM_BYTES,
    PUBLISHED,
    Load,
    MemoryPlan,
    choose_plan,
    plan_for,
)
from ltxtrain_trainer.model.loading import hush_imports
from ltxtrain_trainer.model.precision import UNQUANTIZED
from ltxtrain_trainer.model.streaming import BUFFERS
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.training import lora
from ltxtrain_trainer.training.loop import prepare
from ltxtrain_trainer.training.losses import clip_loss, training_draw
from ltxtrain_trainer.training.settings import TrainSettings

RATE, FRAMES, PROMPT_TOKENS, PREFIX = 24.0, 89, 1024, 25
PRECISIONS = ("bf16", "int8", "fp8", "nf4")
SIZES = [size for size in dict.fromkeys(BUCKETS.values()) if size[0] >= size[1]]  # portrait has as many tokens
QUICK_SIZES = [(768, 768)]


@dataclass(frozen=True)
class Simulated:
    """Bytes of a training: activations of a step, the base's weights, of one block of them, and the adapter's."""

    activations: int
    weights: int
    block: int
    adapter: int

    def total(self, plan: MemoryPlan | None = None) -> int:
        """With the blocks that a plan streams left out, and its buffers put in."""
        streamed = plan.streamed_blocks if plan else 0
        away = (streamed - BUFFERS) * self.block if streamed else 0
        return self.weights - away + self.adapter + self.activations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one resolution, within a minute")
    arguments = parser.parse_args()
    hush_imports()
    error = 0.0
    print("width x height  audio  format   tokens  weights  adapter  activations    total   plan GiB   plan/simulated")
    for geometry, with_audio, precision, rank, kept in cells(QUICK_SIZES if arguments.quick else SIZES):
        tokens = geometry.video_tokens + (geometry.audio_tokens if with_audio else 0)
        load = Load(tokens=tokens, rank=rank, with_audio=with_audio)
        found = simulate(geometry, with_audio, precision, rank=rank, kept=kept)
        plan = plan_for(load, precision, kept_blocks=kept)
        ratio = (plan.total_bytes - HEADROOM_BYTES) / found.total()
        error = max(error, abs(ratio - 1))
        figures = (found.weights, found.adapter, found.activations, found.total(), plan.total_bytes - HEADROOM_BYTES)
        weights, adapter, activations, total, planned = (figure / GIB for figure in figures)
        print(
            f"{geometry.width:5d} x {geometry.height:<6d}  {'yes' if with_audio else 'no':5s}  {precision:6s} "
            f"{tokens:7d} {weights:8.1f} {adapter:8.1f} {activations:12.2f} {total:8.1f} {planned:10.1f} {ratio:12.3f}"
            + (f"   {kept} blocks kept" if kept else ""),
            flush=True,
        )
    if not arguments.quick:
        whole = simulate(_geometry(768, 768), False, "bf16", extrapolate=False).activations
        short = simulate(_geometry(768, 768), False, "bf16").activations
        print(f"All 48 blocks of 768x768 in bf16: {whole / GIB:.2f} GiB, extrapolated from three {short / GIB:.2f}")
    keys = {
        "worst_plan_error": error,
        "default_job_gib_24": on_card(_geometry(768, 768), 32, 23 * GIB, 10_800),
        "small_job_gib_16": on_card(_geometry(512, 288), 16, 15 * GIB, 0),
    }
    print(json.dumps({key: round(value, 4) for key, value in keys.items()}))


def cells(sizes: list[tuple[int, int]]) -> Iterator[tuple[Geometry, bool, str, int, int]]:
    for width, height in sizes:
        for with_audio in (False, True):
            for precision in PRECISIONS:
                yield _geometry(width, height), with_audio, precision, 32, 0
    yield Geometry(width=768, height=448, frame_count=121, frame_rate=RATE), True, "bf16", 128, 0
    yield _geometry(768, 448), False, "bf16", 16, 24
    yield _geometry(768, 768), True, "int8", 64, 8


def on_card(geometry: Geometry, rank: int, usable_bytes: int, preview_tokens: int) -> float:
    """GiB that a job without audio takes in simulation, held as the plan for a card and 32 GiB of host memory says."""
    load = Load(tokens=geometry.video_tokens, rank=rank, with_audio=False, preview_tokens=preview_tokens)
    choice = choose_plan(load, usable_bytes, 32 * GIB)
    assert choice.fits, choice.reason
    found = simulate(geometry, False, choice.plan.precision, rank=rank)
    total = found.total(choice.plan) + HEADROOM_BYTES
    if preview_tokens:
        forward = simulate_preview(_geometry(960, 960), choice.plan.precision)
        total += max(0, forward - found.activations)
    print(
        f"{geometry.width}x{geometry.height}x{FRAMES} at rank {rank}: {choice.reason}; simulated {total / GIB:.1f} GiB"
    )
    return total / GIB


def simulate(
    geometry: Geometry,
    with_audio: bool,
    precision: str,
    *,
    rank: int = 32,
    extrapolate: bool = True,
    kept: int = 0,
) -> Simulated:
    first_layers = 2 if extrapolate else PUBLISHED.layers
    peak, block, outer = _step(geometry, with_audio, precision, rank, first_layers)
    slope = _step(geometry, with_audio, precision, rank, first_layers + 1)[0] - peak if extrapolate else 0
    beyond = 0
    if kept:
        one, two = (_step(geometry, with_audio, precision, rank, 3, count)[0] for count in (1, 2))
        beyond = one - _step(geometry, with_audio, precision, rank, 3)[0] + (kept - 1) * (two - one)
    return Simulated(
        activations=peak + (PUBLISHED.layers - first_layers) * slope + beyond,
        weights=outer + PUBLISHED.layers * block,
        block=block,
        adapter=round(PUBLISHED.adapter_weights(rank, with_audio) * ADAPTER_BYTES["adamw"]),
    )


def simulate_preview(geometry: Geometry, precision: str) -> int:
    """Bytes of one forward pass of a preview without audio."""
    model = _model(False, precision, 32, 2)
    level = torch.empty(1, device="meta")
    tokens = geometry.video_tokens
    stream = Stream(
        torch.empty(1, tokens, 128, device="meta"),
        torch.empty(1, PROMPT_TOKENS, PUBLISHED.width, device="meta"),
        torch.empty(1, tokens, device="meta"),
        level,
    )
    with torch.no_grad(), on_a_card(model) as live:
        VelocityModel(model)(stream, None, frame_rate=RATE, latent_shape=geometry.latent_shape)
    return live.peak


def _step(
    geometry: Geometry, with_audio: bool, precision: str, rank: int, layers: int, kept: int = 0
) -> tuple[int, int, int]:
    """Bytes: peak of a step's activations; weights of a block, and around the blocks."""
    model = _model(with_audio, precision, rank, layers)
    prepare(
        model,
        TrainSettings(
            rank=rank, steps=1, learning_rate=0.0, conditioning_frames=PREFIX, with_audio=with_audio, kept_blocks=kept
        ),
    )
    for parameter in lora.adapter(model).values():
        parameter.grad = torch.zeros_like(parameter)
    clip = EncodedClip(
        video=torch.empty(128, *geometry.latent_shape, dtype=torch.bfloat16, device="meta"),
        audio=torch.empty(geometry.audio_tokens, 128, dtype=torch.bfloat16, device="meta") if with_audio else None,
        frame_rate=RATE,
        frame_count=geometry.frame_count,
    )
    prompt = PromptEmbedding(
        video=torch.empty(PROMPT_TOKENS, PUBLISHED.width, dtype=torch.bfloat16, device="meta"),
        audio=torch.empty(PROMPT_TOKENS, PUBLISHED.audio_width, dtype=torch.bfloat16, device="meta"),
        token_count=1,
        truncated=False,
    )
    draw = training_draw(clip, 0, 0, 0)
    gc.collect()
    with on_a_card(model) as live:
        clip_loss(VelocityModel(model), clip, prompt, draw, PREFIX).total.backward()
    base = {name: parameter for name, parameter in model.named_parameters() if "lora_" not in name}
    block = sum(_bytes(parameter) for name, parameter in base.items() if name.startswith("transformer_blocks.0."))
    return live.peak, block, sum(_bytes(parameter) for parameter in base.values()) - layers * block


def _bytes(parameter: Any) -> int:
    return sum(tensor.nbytes for tensor in parts(parameter))


def _model(with_audio: bool, precision: str, rank: int, layers: int) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    from ltxtrain_trainer.model.video_half import VideoTransformer

    kind: Any = LTX2VideoTransformer3DModel if with_audio else VideoTransformer
    with torch.device("meta"):
        model = kind.from_config({**REAL, "num_layers": layers}).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.requires_grad_(False)
    quantize(model, precision, lambda name: any(part in UNQUANTIZED for part in name.split(".")))
    drawn = lora._initial
    lora._initial = lambda name, shape, seed: torch.empty(shape, device="meta")
    try:
        lora.add_lora(model, rank=rank, with_audio=with_audio, seed=0)
    finally:
        lora._initial = drawn
    return model


def _geometry(width: int, height: int) -> Geometry:
    return Geometry(width=width, height=height, frame_count=FRAMES, frame_rate=RATE)


if __name__ == "__main__":
    main()
