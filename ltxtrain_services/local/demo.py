"""`ltxtrain demo`: a complete job with a small dataset and the pocket model, by the public command line."""

import asyncio
import json
import os
import sysconfig
from pathlib import Path
from typing import Any

from ltxtrain.v1.work_pb2 import Outcome
from ltxtrain_client.channel import connect
from ltxtrain_client.event_text import describe_report_line
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.preprocess import PreprocessClient
from ltxtrain_client.quantities import size_text
from ltxtrain_client.report_summary import training_summary, worst_first
from ltxtrain_client.train import TrainClient

from ltxtrain_pocket.scenes import FRAMES, PREFIX_FRAMES, STYLE_RANK, STYLE_RATE, STYLE_STEPS, TRIGGER
from ltxtrain_services.local.demo_data import make_demo_clips, make_validation_clip, opening_caption
from ltxtrain_services.local.model import POCKET, WAY_TO_TRY
from ltxtrain_services.local.ports import HOST
from ltxtrain_services.local.up import GATEWAY, GATEWAY_PORT, SERVICES, Suite, run_to_end

SHEET: dict[str, Any] = {
    "trigger_phrase": TRIGGER,
    "rank": STYLE_RANK,
    "number_of_steps": STYLE_STEPS,
    "learning_rate": STYLE_RATE,
    "conditioning_frames": PREFIX_FRAMES,
    "number_of_frames": FRAMES,
    "resolution": "low",
    "aspect_ratio": "16:9",
    "validation": [{"prompt": f"{TRIGGER} {opening_caption()}"}],
    "validation_number_of_frames": FRAMES,
    "validation_resolution": "low",
    "validation_aspect_ratio": "16:9",
    # Skip guidance leaves out the attention of one block, which of the pocket model's four is too many.
    "stg_scale": 0.0,
    "options": {"preview_interval": STYLE_STEPS // 2},
}
RESULTS = ("lora.safetensors", "config.json", "reel.mp4")


def run(out: Path, state_dir: Path) -> int:
    """Returns the exit status: 0 when the job succeeded and its results lie in `out`."""
    return run_to_end(_run(out.resolve(), state_dir.resolve()))


async def _run(out: Path, state_dir: Path) -> int:
    made = state_dir / "demo"
    made.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _say("A small dataset, made when absent: clips of moving shapes over which night falls …")
    clips, opening = make_demo_clips(made), make_validation_clip(made)
    sheet = made / "job.json"
    sheet.write_text(json.dumps(SHEET, indent=2) + "\n")
    _say("The suite with the pocket model: object store, Ray, Ingest, Preprocess, Train …")
    async with Suite(state_dir, model=POCKET, ports=dict.fromkeys((*SERVICES, GATEWAY), 0)) as suite:
        _say(f"Jobs in a browser, for as long as the suite is up: {suite.gateway_url}/jobs")
        try:
            status, job = await _one_job(suite, sheet, clips, opening, out)
        finally:
            _say("The suite goes down …")
    missing = [name for name in RESULTS if not (out / name).exists()]
    if status == 0 and missing:
        _say(f"Missing: {', '.join(missing)}")
        return 1
    if status == 0:
        _say(f"Your own jobs on the pocket model: {WAY_TO_TRY}")
        _say(f"The page of this job, as it was live, is then at\n  http://{HOST}:{GATEWAY_PORT}/{job}")
    return status


async def _one_job(suite: Suite, sheet: Path, clips: Path, opening: Path, out: Path) -> tuple[int, str]:
    """The exit status of the command, and the name of the job that has succeeded."""
    command = [str(Path(sysconfig.get_path("scripts")) / "ltxtrain"), "submit", str(sheet)]
    command += ["--data", str(clips), "--validation", str(opening), "--watch", "--out", str(out)]
    _say(f"One job, as a person starts it:\n  ltxtrain {' '.join(command[1:])}")
    status = await _command(command, suite)
    return (status, await _summarize(suite, out)) if status == 0 else (status, "")


async def _command(command: list[str], suite: Suite) -> int:
    environ = os.environ | {
        "LTXTRAIN_TRAIN": suite.train_address,
        "LTXTRAIN_INGEST": suite.ingest_address,
        "LTXTRAIN_PREPROCESS": suite.preprocess_address,
    }
    process = await asyncio.create_subprocess_exec(*command, env=environ)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def _summarize(suite: Suite, out: Path) -> str:
    """Print the outcome of the files, the cached share of the work, and the results; the name of the job."""
    async with (
        connect(suite.train_address) as train_channel,
        connect(suite.ingest_address) as ingest_channel,
        connect(suite.preprocess_address) as preprocess_channel,
    ):
        train, ingest = TrainClient(train_channel), IngestClient(ingest_channel)
        preprocess = PreprocessClient(preprocess_channel)
        job = await anext(aiter(train.list_jobs()))
        found = [line async for line in ingest.list_dataset_report(job.dataset)]
        fitted = [line async for line in preprocess.list_training_set_report(job.training_set)]
        dataset = await ingest.get_dataset(job.dataset)
        report = (await preprocess.get_training_set(job.training_set)).report
    _say(f"What became of the files: {training_summary(found, fitted)}.")
    for line in worst_first([*found, *fitted]):
        if line.outcome in (Outcome.OUTCOME_SKIPPED, Outcome.OUTCOME_IGNORED):
            print(f"  {describe_report_line(line)}")
    if dataset.reused_count == dataset.clip_count and report.cache_misses == 0:
        _say(
            f"Nothing was done again: all {dataset.reused_count} clips were stored and probed before, "
            f"all {report.cache_hits} samples and prompts were encoded before."
        )
    else:
        _say(f"Probed {dataset.clip_count - dataset.reused_count} clips, knew {dataset.reused_count} before.")
        _say(f"Encoded {report.cache_misses} samples and prompts, found {report.cache_hits} in the cache.")
    _say(f"Made, in {out}:")
    for path in sorted(out.iterdir()):
        print(f"  {path.name}  {size_text(path.stat().st_size)}")
    return job.name


def _say(text: str) -> None:
    print(f"\n▸ {text}", flush=True)
