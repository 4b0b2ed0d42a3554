"""File names of a job's artifacts, and which of them are results."""

from pathlib import PurePosixPath

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job

# Fields of JobOutput; each holds an artifact's name.
RESULTS = ("lora_file", "config_file", "video", "debug_dataset", "lora_video_only_file")
# Those that hold several.
LISTED_RESULTS = ("continued_videos", "base_videos")
# Artifacts downloaded along with the results.
PAGES = (
    Artifact.KIND_METRICS,
    Artifact.KIND_JOB_PAGE,
    Artifact.KIND_CONTACT_SHEET,
    Artifact.KIND_COMFYUI_WORKFLOW,
)

# Ends the names of previews that show the base model's side too.
LABELLED = "-beside-base.mp4"


def _is_final(artifact: Artifact) -> bool:
    """False for metrics that belong to a checkpoint."""
    return not (artifact.kind == Artifact.KIND_METRICS and artifact.HasField("step"))


def result_files(job: Job) -> dict[str, str]:
    """Artifact name by file name of a job's results; empty before there are any."""
    names = [getattr(job.output, field) for field in RESULTS]
    names += [name for field in LISTED_RESULTS for name in getattr(job.output, field)]
    return {_last_part(name): name for name in names if name}


def is_result(artifact: Artifact, job: Job) -> bool:
    """Whether an artifact is a result, or a page that is downloaded along with them."""
    results = result_files(job).values()
    return artifact.name in results or (bool(results) and artifact.kind in PAGES and _is_final(artifact))


def file_name(artifact: Artifact) -> str:
    """Last part of an artifact's resource name."""
    return _last_part(artifact.name)


def _last_part(resource_name: str) -> str:
    name = PurePosixPath(resource_name).name
    # Never trust the server with a path: the folder is ours.
    return name if name not in ("", ".", "..") else "artifact"
