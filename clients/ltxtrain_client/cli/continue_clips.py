"""`ltxtrain continue`: clips continued with a job's LoRA, on the suite's own workers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, Resolution
from ltxtrain.v1.train_pb2 import ContinueFrom, Job, JobOptions

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.continuing import Labels, RequestId, WebhookUrl, labels_of
from ltxtrain_client.cli.faults import with_hints, without_faults_of
from ltxtrain_client.cli.follow import PATIENCE_SECONDS, Patience, follow_to_end
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, fail, run, settings_of
from ltxtrain_client.enum_words import words
from ltxtrain_client.errors import CLIPS_PATH
from ltxtrain_client.local_data import DataInvalid, check_video
from ltxtrain_client.progress import make_view, print_json
from ltxtrain_client.sheet_files import PENDING_UPLOAD, upload_source
from ltxtrain_client.suite import open_suite
from ltxtrain_client.upload_source import FileSource
from ltxtrain_client.view import View

# A clip of a dataset as a person names it, and as the contract does.
CLIP = re.compile(r"(?:dataset:)?(datasets/[^/]+/clips/[^/]+)")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|upload:")


def continue_clips(
    context: typer.Context,
    job: Annotated[
        str,
        typer.Argument(
            help="The job whose LoRA is used: jobs/ID or the ID alone; or one LoRA of it: jobs/ID/artifacts/NAME.",
            autocompletion=job_names,
        ),
    ],
    openings: Annotated[
        list[str],
        typer.Argument(
            help="Clips whose first frames are continued: files, URLs, or clips of datasets (datasets/ID/clips/CLIP).",
            metavar="OPENING...",
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            help="What happens next, with the trigger phrase in front: one for all openings, or one for each in order. "
            "Needed.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of each video, the opening included.", show_default="the job's previews'")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Another seed, another continuation.", show_default="the job's")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", show_default="30")] = None,
    guidance: Annotated[float | None, typer.Option(help="Strength of the prompt.", show_default="3.0")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What is kept away from.", show_default="the job's")
    ] = None,
    resolution: Annotated[
        str | None, typer.Option(help=f"{', '.join(words(Resolution.DESCRIPTOR))}.", show_default="the job's previews'")
    ] = None,
    aspect_ratio: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(words(AspectRatio.DESCRIPTOR))}.", show_default="the job's previews'"),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Also without the LoRA, and both side by side.")] = False,
    name: Annotated[str, typer.Option(help="Name for people.")] = "",
    label: Labels = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the job ends.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Watch, then download the videos to this folder.", file_okay=False)
    ] = None,
    request_id: RequestId = None,
    webhook: WebhookUrl = "",
    patience: Patience = PATIENCE_SECONDS,
    json_lines: Json = False,
) -> None:
    """Continue clips with a finished job's LoRA, with sound where it has learned sound. It is a job of its own."""
    client, view = settings_of(context), make_view(json_lines=json_lines)
    spec = ContinueClipsSpec(
        number_of_frames=frames,
        sampling_steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative_prompt,
        resolution=_number(Resolution, "--resolution", resolution),
        aspect_ratio=_number(AspectRatio, "--aspect-ratio", aspect_ratio),
        base_model=base or None,
    )
    files = _add_openings(spec, openings, prompt or [])
    source, slash, artifact = job.partition("/artifacts/")
    start = {
        "options": JobOptions(seed=seed),
        "continue_from": ContinueFrom(source=job_name(source) + slash + artifact),
        "display_name": name,
        "labels": labels_of(label),
        "webhook_url": webhook,
    }
    made = run(_start(client, spec, files, start, request_id, view))
    if json_lines:
        print_json({"job": as_json(made)})
    else:
        print(made.name, flush=True)
    if watch or out is not None:
        raise typer.Exit(
            follow_to_end(client, made.name, view, out=out, json_lines=json_lines, patience_seconds=patience)
        )


def _number(enum: Any, option: str, text: str | None) -> Any:
    if text is None:
        return None
    if text not in (known := words(enum.DESCRIPTOR)):
        raise typer.BadParameter(f"{text} is none of {', '.join(known)}", param_hint=option)
    return known[text]


def _add_openings(spec: ContinueClipsSpec, openings: Sequence[str], prompts: Sequence[str]) -> dict[int, Path]:
    """Put the openings into a spec; the files among them by their index, which are not uploaded yet."""
    if not prompts:
        raise fail(Exit.INVALID, 'Say what happens next: --prompt "the trigger phrase, and then …"')
    if len(prompts) not in (1, len(openings)):
        raise fail(
            Exit.INVALID, f"{len(prompts)} prompts for {len(openings)} openings: give one for all, or one for each."
        )
    texts = list(prompts) * len(openings) if len(prompts) == 1 else prompts
    files: dict[int, Path] = {}
    for index, (opening, text) in enumerate(zip(openings, texts, strict=True)):
        clip = CLIP.fullmatch(opening)
        url = f"dataset:{clip[1]}" if clip else opening
        if not clip and not _REMOTE.match(opening):
            files[index], url = Path(opening).expanduser(), PENDING_UPLOAD
        spec.openings.add(prompt=text, video_url=url)
    try:
        for path in files.values():
            check_video(path)
    except DataInvalid as error:
        raise fail(Exit.INVALID, str(error)) from None
    except OSError as error:
        raise fail(Exit.INVALID, f"{error.filename} cannot be read: {error.strerror}") from None
    return files


async def _start(
    client: ClientSettings,
    spec: ContinueClipsSpec,
    files: dict[int, Path],
    start: dict[str, Any],
    request_id: str | None,
    view: View,
) -> Job:
    async with open_suite(client) as suite:
        if files:
            filled = {f"{CLIPS_PATH}openings[{index}].video_url" for index in files}
            await without_faults_of(filled, suite.train.validate(spec, **start))
            uploaded: dict[Path, str] = {}
            with view:
                for index, path in files.items():
                    if path not in uploaded:
                        uploaded[path] = await upload_source(suite.ingest, FileSource(path), view)
                    spec.openings[index].video_url = uploaded[path]
        return await with_hints(suite.train.submit(spec, request_id=request_id, **start))
