"""One command for the day that a card is here: is it right, does it fit as planned, and how fast is it?

    bench/gpu.py [--minutes 12] [--out gpu.jsonl]

On a card: its driver and the formats it has, the tests that need one, and then training steps of the real widths, on
random weights and as many blocks as fit, extrapolated to 48: seconds a step, the peak of memory beside the plan's, and
the share of determinism, of each format, of compiled and of streamed blocks, with a bare loop beside them. Every row is
written to --out as it is done, so that a run that is cut loses nothing; a row that would not end in time is left out.
Without a card the same rows run on small widths on the CPU, so that the script itself is tested: their figures mean
nothing. The last line is one JSON object of the rows' figures by name.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bench.common.random_model import Widths, random_samples, random_transformer
from ltxtrain_trainer.memory_plan import GIB, HEADROOM_BYTES, PUBLISHED, Load, plan_for
from ltxtrain_trainer.model.device import device_of, is_out_of_memory
from ltxtrain_trainer.model.loading import block_stream, hush_imports
from ltxtrain_trainer.model.precision import Precision, is_available
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.training import loop
from ltxtrain_trainer.training.lora import adapter, add_lora
from ltxtrain_trainer.training.settings import TrainSettings

RANK = 32
TEST_SECONDS = 240


@dataclass(frozen=True)
class Scale:
    """Sizes of a run: widths, latents of a clip, prompt tokens, two depths, and steps that warm up and that count."""

    widths: Widths
    latents: tuple[int, int, int]
    prompt_tokens: int
    depths: tuple[int, int]
    warm: int
    counted: int

    @property
    def tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width


ON_CARD = Scale(Widths(), (12, 24, 24), 1024, (4, 8), 2, 4)
ON_CPU = Scale(Widths(heads=2, head=16, audio_head=8), (3, 4, 4), 16, (2, 4), 1, 1)


@dataclass(frozen=True)
class Case:
    """One way to train: number format, how attention adds up, compiled, streamed or kept blocks (half of them)."""

    name: str
    precision: Precision
    attention: Literal["exact", "fastest"] = "exact"
    compiled: bool = False
    streamed: bool = False
    kept: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="how long it may take in all")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="where each row goes as it is done")
    parser.add_argument("--quick", action="store_true", help="without the tests, and fewer rows")
    arguments = parser.parse_args()
    ends = time.monotonic() + 60 * arguments.minutes
    hush_imports()
    device = device_of(gpu_expected=torch.cuda.is_available())
    scale = ON_CARD if device.type == "cuda" else ON_CPU
    figures: dict[str, Any] = {}
    with arguments.out.open("w") as out:
        longest = 0.0
        for name, measure in rows(device, scale, quick=arguments.quick):
            started = time.monotonic()
            if started + longest > ends:
                print(f"{name:24s} left out: the time is up", flush=True)
                continue
            try:
                found = measure()
            except RuntimeError as error:
                found = {"failed": "out of memory" if is_out_of_memory(error) else str(error).splitlines()[0][:200]}
            if device.type == "cuda":
                torch.cuda.empty_cache()
            longest = max(longest, time.monotonic() - started)
            figures[name] = found
            out.write(json.dumps({"name": name, **found}) + "\n")
            out.flush()
            print(f"{name:24s} {'  '.join(f'{key} {value}' for key, value in found.items())}", flush=True)
    print(json.dumps(figures))


def rows(device: torch.device, scale: Scale, *, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and measurements, the most important first."""
    full = Precision.BF16 if device.type == "cuda" else Precision.FP32
    yield "device", lambda: facts(device)
    yield "bare", lambda: bare(device, scale, full)
    cases = [
        Case("exact", full),
        Case("fastest", full, attention="fastest"),
        Case("streamed", full, streamed=True),
        Case("kept", full, kept=True),
        Case("compiled", full, compiled=True),
        *(Case(kind.value, kind) for kind in (Precision.INT8, Precision.FP8, Precision.NF4) if is_available(kind)),
    ]
    if device.type != "cuda":
        cases = [case for case in cases if not case.compiled][: 3 if quick else None]
    for case in cases:
        yield case.name, lambda case=case: trained(device, scale, case)  # type: ignore[misc]
    yield "repeats", lambda: repeats(device, scale, full)
    if not quick:
        yield "tests", lambda: tests(device)


def facts(device: torch.device) -> dict[str, Any]:
    formats = ",".join(kind.value for kind in Precision if is_available(kind))
    found: dict[str, Any] = {"torch": torch.__version__, "formats": formats}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "card": torch.cuda.get_device_name(device),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "free_gib": round(free / GIB, 1),
            "total_gib": round(total / GIB, 1),
            "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count,
        }
    return found


def trained(device: torch.device, scale: Scale, case: Case) -> dict[str, Any]:
    """Seconds a step at two depths and of 48 blocks by their difference; the peak beside the plan's."""
    short, long = (_steps(device, scale, case, depth) for depth in scale.depths)
    per_block = (long.seconds - short.seconds) / (scale.depths[1] - scale.depths[0])
    found: dict[str, Any] = {
        "seconds": round(long.seconds, 4),
        "seconds_48": round(long.seconds + (PUBLISHED.layers - scale.depths[1]) * per_block, 3),
        "loss": round(long.loss, 6),
    }
    if device.type == "cuda":
        depth, size = scale.depths[1], scale.widths.size(scale.depths[1])
        load = Load(tokens=scale.tokens, rank=RANK, with_audio=False)
        kept_blocks = depth // 2 if case.kept else 0
        plan = plan_for(load, case.precision, depth if case.streamed else 0, size, kept_blocks)
        # The plan's line is that of 48 blocks, each of which keeps its input.
        kept = (PUBLISHED.layers - depth) * scale.tokens * size.width * 2
        planned = plan.total_bytes - HEADROOM_BYTES - kept
        found |= {
            "peak_gib": round(long.peak / GIB, 2),
            "planned_gib": round(planned / GIB, 2),
            "peak_over_plan": round(long.peak / planned, 3),
        }
    return found


@dataclass(frozen=True)
class Run:
    seconds: float
    loss: float
    peak: int


def _steps(device: torch.device, scale: Scale, case: Case, depth: int) -> Run:
    settings = replace(
        _settings(scale, case.compiled), kept_blocks=depth // 2 if case.kept else 0, attention=case.attention
    )
    transformer = _transformer(device, scale, case.precision, depth, streamed=case.streamed)
    samples = random_samples(scale.latents, scale.prompt_tokens, scale.widths)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reports = [report for report in loop.train(transformer, samples, settings, identity={}) if isinstance(report, Step)]
    if (stream := block_stream(transformer)) is not None:
        stream.close()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Run(statistics.median(report.seconds for report in reports[scale.warm :]), reports[-1].loss, peak)


def bare(device: torch.device, scale: Scale, precision: Precision) -> dict[str, Any]:
    """The least that a loop can do: forward and backward pass and AdamW over one batch that is there."""
    settings = _settings(scale, False)
    transformer = _transformer(device, scale, precision, scale.depths[1])
    loop.prepare(transformer, settings)
    parameters = list(adapter(transformer).values())
    optimizer = torch.optim.AdamW(parameters, fused=True)
    width = scale.widths.heads * scale.widths.head
    tokens = torch.randn(1, scale.tokens, 128, device=device, dtype=precision.dtype)
    context = torch.randn(1, scale.prompt_tokens, width, device=device, dtype=precision.dtype)
    level = torch.full((1,), 500.0, device=device)
    positions = transformer.rope.prepare_video_coords(1, *scale.latents, device, fps=24.0)
    seconds = []
    for _ in range(scale.warm + scale.counted):
        started = time.perf_counter()
        velocity = transformer(tokens, context, level.expand(1, scale.tokens), level, positions)
        velocity.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return {"seconds": round(statistics.median(seconds[scale.warm :]), 4)}


def repeats(device: torch.device, scale: Scale, precision: Precision) -> dict[str, Any]:
    """Whether two equal runs, and one with streamed blocks, end with the same bytes."""
    case = Case("repeats", precision)

    def weights(streamed: bool) -> dict[str, torch.Tensor]:
        transformer = _transformer(device, scale, case.precision, scale.depths[0], streamed=streamed)
        samples = random_samples(scale.latents, scale.prompt_tokens, scale.widths)
        for _ in loop.train(transformer, samples, _settings(scale, False), identity={}):
            pass
        return {name: parameter.detach().cpu() for name, parameter in adapter(transformer).items()}

    first, second, streamed = weights(False), weights(False), weights(True)
    return {
        "equal_runs": all(torch.equal(first[name], second[name]) for name in first),
        "equal_streamed": all(torch.equal(first[name], streamed[name]) for name in first),
    }


def tests(device: torch.device) -> dict[str, Any]:
    """The tests that need a card; without one they are only collected."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/trainer"]
    if device.type != "cuda":
        command.append("--collect-only")
    root = Path(__file__).parent.parent
    try:
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {TEST_SECONDS} s"}
    return {"status": ended.returncode, "summary": (ended.stdout.strip().splitlines() or [""])[-1]}


def _transformer(device: torch.device, scale: Scale, precision: Precision, depth: int, streamed: bool = False) -> Any:
    transformer = random_transformer(scale.widths, depth, device, precision, streamed=streamed)
    add_lora(transformer, rank=RANK, with_audio=False, seed=0)
    return transformer


def _settings(scale: Scale, compiled: bool) -> TrainSettings:
    return TrainSettings(
        rank=RANK,
        steps=scale.warm + scale.counted,
        learning_rate=2e-4,
        conditioning_frames=9,
        with_audio=False,
        compile_blocks=compiled,
    )


if __name__ == "__main__":
    main()
