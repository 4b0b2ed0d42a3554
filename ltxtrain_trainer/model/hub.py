"""Models of the Hugging Face hub, as folders on this machine named by their commit."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ltxtrain_trainer.errors import ModelUnavailable


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The local cache's snapshot of a repo, perhaps in part; the hub is not asked."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None
    except errors.HFValidationError as error:
        raise ModelUnavailable(
            f"{repo} is neither a folder here nor the name of a model on the hub. Set LTXTRAIN_MODEL to one of them."
        ) from error


def download_snapshot(repo: str, revision: str | None, patterns: Collection[str]) -> Path:
    """The files of a repo that match the patterns; those already here are not fetched again.

    HF_HUB_OFFLINE, HF_TOKEN, HF_HOME and HF_ENDPOINT have their usual meaning. Raises ModelUnavailable with the reason.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=sorted(patterns)))
    except errors.GatedRepoError as error:
        raise ModelUnavailable(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo} and set HF_TOKEN to a token that has."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"The hub has no model {repo}, or it is private: check LTXTRAIN_MODEL, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelUnavailable(f"{repo} has no revision {revision} on the hub.") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelUnavailable(
            f"{repo} is not whole in the local cache, and the hub cannot be reached. "
            "Allow the network once, or set LTXTRAIN_MODEL to a folder that holds the model."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{repo} could not be downloaded: {error}. Or set LTXTRAIN_MODEL to a folder that holds the model."
        ) from error


@dataclass(frozen=True)
class Download:
    """The download of a snapshot as seen beside it, by the bytes that the cache holds; others may share it."""

    total_bytes: int
    _blobs: Path
    _others: int  # bytes of the cache that are not the snapshot's

    def completed_bytes(self) -> int:
        """Bytes of the snapshot that are here; reads a folder."""
        return max(0, min(_size(self._blobs) - self._others, self.total_bytes))


def pending_download(repo: str, revision: str | None, patterns: Collection[str]) -> Download:
    """The size of the files of a repo that match the patterns, and how much of them is here. Raises ModelUnavailable.

    Of the files themselves nothing is fetched.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    try:
        files = snapshot_download(repo, revision=revision, allow_patterns=sorted(patterns), dry_run=True)
    except (errors.HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(f"The size of {repo} cannot be asked for: {error}") from error
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    sizes = [(file.file_size or 0, file.will_download) for file in files]
    here = sum(size for size, lacks in sizes if not lacks) + _size(blobs, "*.incomplete")
    return Download(sum(size for size, _ in sizes), blobs, _size(blobs) - here)


def _size(folder: Path, pattern: str = "*") -> int:
    size = 0
    for file in folder.glob(pattern):
        try:
            size += file.stat().st_size
        except FileNotFoundError:  # renamed as it became whole: the next look sees it
            continue
    return size
