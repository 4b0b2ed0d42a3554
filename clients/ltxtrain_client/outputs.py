"""What a job leaves behind, as files: which artifact goes by which name."""

from pathlib import PurePosixPath

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job

# Fields of JobOutput, each an artifact's name.
RESULTS = ("lora_file", "config_file", "video", "debug_dataset", "lora_video_only_file")
# Artifacts that go with the results.
PAGES = (Artifact.KIND_METRICS, Artifact.KIND_JOB_PAGE, Artifact.KIND_CONTACT_SHEET)


def _is_final(artifact: Artifact) -> bool:
    """Not one of those that a checkpoint keeps for going on."""
    return not (artifact.kind == Artifact.KIND_METRICS and artifact.HasField("step"))


def result_files(job: Job) -> dict[str, str]:
    """File name → artifact name of a job's results; empty before it has any."""
    names = (getattr(job.output, field) for field in RESULTS)
    return {_last_part(name): name for name in names if name}


def is_result(artifact: Artifact, job: Job) -> bool:
    """One of the results, or of the pages that go with them."""
    results = result_files(job).values()
    return artifact.name in results or (bool(results) and artifact.kind in PAGES and _is_final(artifact))


def file_name(artifact: Artifact) -> str:
    """The file name that an artifact's resource name ends in."""
    return _last_part(artifact.name)


def _last_part(resource_name: str) -> str:
    name = PurePosixPath(resource_name).name
    # The name is the server's; the folder that it is written to is ours.
    return name if name not in ("", ".", "..") else "artifact"
