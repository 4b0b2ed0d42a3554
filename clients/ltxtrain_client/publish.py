"""A job's LoRA as a repository of the Hugging Face hub: files, model card, and nothing of the machines it came from."""

import asyncio
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_client.errors import LibraryMissing, LtxtrainError, NotFound, OutputMissing
from ltxtrain_client.outputs import LABELLED
from ltxtrain_client.train import TrainClient

LORA, VIDEO_ONLY, CONFIG, WORKFLOW, PREVIEW = (
    "lora.safetensors",
    "lora-video-only.safetensors",
    "config.json",
    "comfyui-workflow.json",
    "preview.mp4",
)
LICENSE_NAME = "ltx-2-community-license-agreement"
LICENSE_LINK = "https://huggingface.co/Lightricks/LTX-2/blob/main/LICENSE"
# The original of every copy in another layout.
BASE_MODEL = "Lightricks/LTX-2.3"
# Measurements that the card shows, by heading.
MEASURES = {
    "prefix_psnr_db": "Prefix (dB)",
    "join_colour_jump": "Colour at the join",
    "join_motion_break": "Motion at the join",
    "colour_drift": "Colour drift (levels/s)",
}
_LOCAL = re.compile(r"(?:[/~]|\.{1,2}/|[A-Za-z]:[\\/]|file:)")
# More of a header is no safetensors file.
MAX_HEADER_BYTES = 100 << 20


class PublishFailed(LtxtrainError):
    """The hub refused a repository; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A repository that holds a job's LoRA."""

    url: str
    """Address of its page."""

    files: Sequence[str]
    """Names of its files."""


async def collect(train: TrainClient, job: Job, folder: Path, *, license_name: str | None = None) -> list[str]:
    """Put all files of a repository for a job's LoRA into `folder`; returns their names.

    Raises OutputMissing when the job has no LoRA or no config.
    """
    if not job.output.lora_file or not job.output.config_file:
        raise OutputMissing(f"{job.name} has no LoRA and config to publish.")
    # Not what the folder holds: somebody's other files, or those of another job, may lie there.
    files = [CONFIG]
    for name, file in ((job.output.lora_file, LORA), (job.output.lora_video_only_file, VIDEO_ONLY)):
        if name:
            share_header(await train.download(name, folder / file))
            files.append(file)
    config = shared(json.loads((await train.download(job.output.config_file, folder / CONFIG)).read_text()))
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    found = [item async for item in train.list_artifacts(job.name)]
    for name, file in ((_workflow(found), WORKFLOW), (job.output.video or _last_preview(found), PREVIEW)):
        try:
            if name:
                await train.download(name, folder / file)
                files.append(file)
        except NotFound:  # it went with time; the LoRA is what is published
            continue
    (folder / "README.md").write_text(card(config, sorted(files), license_name=license_name))
    return sorted([*files, "README.md"])


async def push(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Create the repository if need be and commit the folder in one piece; returns the address of its page.

    HF_TOKEN and HF_ENDPOINT have their usual meaning. Raises PublishFailed when the hub refuses, LibraryMissing without
    huggingface_hub.
    """
    return await asyncio.to_thread(_push, folder, repository, private, message)


def _push(folder: Path, repository: str, private: bool, message: str) -> str:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        raise LibraryMissing(f"Publishing needs the package {error.name}: pip install 'ltxtrain-client[hub]'") from None
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        url = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message, ignore_patterns=[".*"])
    except HFValidationError as error:
        raise PublishFailed(f"{repository} is no name of a repository (owner/name): {error}") from None
    except (HfHubHTTPError, OSError) as error:
        raise PublishFailed(f"The hub did not take {repository}: {error}") from None
    return str(url)


def shared(document: Any, model: str = "") -> Any:
    """A config.json without what is nobody's business: paths of this machine, and URLs of the data.

    `model` is the base model's reference, whose folders go wherever it stands, code included.
    """
    if isinstance(document, dict):
        model = model or str(document.get("manifest", {}).get("model", {}).get("reference", ""))
        return {key: "" if key.endswith("_url") else shared(value, model) for key, value in document.items()}
    if isinstance(document, list):
        return [shared(value, model) for value in document]
    if not isinstance(document, str):
        return document
    for part in filter(None, model.split("#")):
        if _LOCAL.match(part):
            document = document.replace(part, _last(part))
    return _last(document) if _LOCAL.match(document) and "\n" not in document else document


def share_header(path: Path) -> None:
    """Take paths of this machine out of the header of a safetensors file; the weights' bytes stay."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        metadata = header.get("__metadata__", {})
        base = metadata.get("base_model", "")
        clean = {key: shared(value, base) for key, value in metadata.items()}
        if clean == metadata:
            return
        rest = file.read()
    text = json.dumps({**header, "__metadata__": clean}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def card(config: Mapping[str, Any], files: Iterable[str], *, license_name: str | None = None) -> str:
    """README.md of the repository, from a shared config.json and the names of the files beside it."""
    spec, recipe, manifest = config["spec"], config["inference"], config["manifest"]
    trigger, model = config["trigger_phrase"], manifest["model"]
    with_audio, names = bool(spec["with_audio"]), set(files)
    head = {
        "base_model": BASE_MODEL,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "video-to-video",
        "tags": ["lora", "ltx-2", "ltx-video", "video-continuation", "ltxtrain"],
        **({"instance_prompt": trigger} if trigger else {}),
        **(
            {"license": license_name}
            if license_name
            else {"license": "other", "license_name": LICENSE_NAME, "license_link": LICENSE_LINK}
        ),
        **({"widget": [{"text": recipe["prompt"], "output": {"url": PREVIEW}}]} if PREVIEW in names else {}),
    }
    data = manifest.get("preprocess_report") or {}
    settings = config["settings"]
    lines = [
        "---",
        # Every JSON value is a YAML value.
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()),
        "---",
        "",
        f"# {_inline(trigger) or 'A LoRA that continues video'}",
        "",
        f"Continues a clip of {recipe['conditioning_frames']} frames with LTX 2.3"
        + (", sound included." if with_audio else "."),
        *(
            ["", f'<video controls src="{PREVIEW}"></video>', "", "Base model and LoRA side by side."]
            if PREVIEW in names
            else []
        ),
        "",
        "## Use",
        "",
        f"- Prompt: `{_inline(recipe['prompt'])}`",
        f"- {recipe['width']}x{recipe['height']}, {recipe['number_of_frames']} frames at {recipe['frame_rate']:g} a "
        f"second, of which the first {recipe['conditioning_frames']} are given",
        *([f"- ComfyUI: `{LORA}` into `models/loras`, then load `{WORKFLOW}`"] if WORKFLOW in names else []),
        *([f"- Without sound: `{VIDEO_ONLY}`"] if VIDEO_ONLY in names else []),
        "- diffusers:",
        "",
        "```python",
        recipe["code"].rstrip(),
        "```",
        "",
        "## Training",
        "",
        "| | |",
        "| --- | --- |",
        *_rows(
            {
                "Base model": f"{model['reference']} at {model['revision'][:19]}",
                "Data": f"{data['clips']} clips, {data['samples']} samples" if data else "",
                "Shape": f"{spec['resolution']}, {spec['aspect_ratio']}, {spec['number_of_frames']} frames",
                "Steps": settings["steps"],
                "Rank": settings["rank"],
                "Learning rate": f"{settings['learning_rate']:g}, {settings['schedule']}",
                "Optimizer": settings["optimizer"],
                "Batch": settings["batch_size"],
                "Seed": settings["seed"],
                "Frozen weights": manifest["base_precision"],
                "Device": manifest["device"],
                "Ended as": config.get("state", ""),
            }
        ),
        *_measurements(config.get("previews", {}).get("measured", [])),
        "",
        f"Trained with ltxtrain; everything else is in `{CONFIG}`.",
    ]
    return "\n".join(lines) + "\n"


def _measurements(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Table of the last previews beside the base model's."""
    last = max((item["step"] for item in measured if not item["base_model"]), default=None)
    rows = [item for item in measured if item["base_model"] or item["step"] == last]
    if last is None:
        return []
    rows.sort(key=lambda item: (item["validation_index"], not item["base_model"]))
    lines = ["", "## Measured", "", f"| Clip | Model | {' | '.join(MEASURES.values())} |"]
    lines.append(f"| --- | --- |{' --- |' * len(MEASURES)}")
    for item in rows:
        numbers = " | ".join(f"{item['metrics'][name]:.2f}" for name in MEASURES)
        side = "base" if item["base_model"] else f"LoRA, step {item['step']}"
        lines.append(f"| {item['validation_index'] + 1} | {side} | {numbers} |")
    return [
        *lines,
        "",
        "At the join 1 is no more than the clip's own change from frame to frame; a drift of 0 is none.",
    ]


def _rows(values: Mapping[str, Any]) -> list[str]:
    return [f"| {name} | {_inline(str(value))} |" for name, value in values.items() if value not in ("", None)]


def _inline(text: str) -> str:
    """Text that ends no table cell, code span or heading."""
    return " ".join(text.replace("|", "&#124;").replace("`", "'").split())


def _last(path: str) -> str:
    text = path.removeprefix("file:").rstrip("/\\")
    return (PureWindowsPath(text) if "\\" in text else PurePosixPath(text)).name


def _workflow(found: Sequence[Artifact]) -> str:
    return next((item.name for item in found if item.kind == Artifact.KIND_COMFYUI_WORKFLOW), "")


def _last_preview(found: Sequence[Artifact]) -> str:
    previews = [item for item in found if item.kind == Artifact.KIND_VALIDATION_VIDEO]
    best = max(previews, key=lambda item: (item.step, item.name.endswith(LABELLED)), default=None)
    return best.name if best is not None else ""
