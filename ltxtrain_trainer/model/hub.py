"""Models of the Hugging Face hub, as folders on this machine named by their commit."""

from collections.abc import Collection
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
