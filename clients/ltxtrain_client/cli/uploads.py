"""Local files in place of the URLs of a sheet."""

from dataclasses import dataclass
from pathlib import Path

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec

from ltxtrain_client.cli.session import Suite
from ltxtrain_client.progress import View
from ltxtrain_client.sheet import Problem, SheetInvalid

# Placeholder for a file that is not uploaded yet, while the rest of the spec is checked.
PENDING_UPLOAD = "upload:uploads/" + "0" * 32


@dataclass(frozen=True)
class LocalFiles:
    """Files that a command uploads: the training data, and a clip for each validation entry in order."""

    data: Path | None = None
    validation: tuple[Path, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        """Fields that the files fill, as violations name them."""
        clips = {f"spec.validation[{index}].video_url" for index in range(len(self.validation))}
        return frozenset(clips | ({"spec.training_data_url"} if self.data is not None else set()))

    def announce(self, spec: ExtendPrefixSpec) -> None:
        """Put PENDING_UPLOAD wherever a file will be. Raises SheetInvalid when the spec names a dataset too."""
        if self.data is not None:
            if spec.dataset:
                raise SheetInvalid([Problem("dataset", "cannot be given together with --data")])
            spec.training_data_url = PENDING_UPLOAD
        for index, _ in enumerate(self.validation):
            if index == len(spec.validation):
                spec.validation.add()
            spec.validation[index].video_url = PENDING_UPLOAD

    async def upload(self, suite: Suite, spec: ExtendPrefixSpec, view: View) -> None:
        """Upload all files and put their references into the spec."""
        if self.data is not None:
            spec.training_data_url = await _upload(suite, self.data, view)
        for entry, path in zip(spec.validation, self.validation, strict=False):
            entry.video_url = await _upload(suite, path, view)


def stand_in(spec: ExtendPrefixSpec) -> None:
    """Put PENDING_UPLOAD wherever a URL is missing, for calls that do not read the files."""
    if not spec.dataset and not spec.training_data_url:
        spec.training_data_url = PENDING_UPLOAD
    for entry in spec.validation:
        entry.video_url = entry.video_url or PENDING_UPLOAD


async def _upload(suite: Suite, path: Path, view: View) -> str:
    upload = await suite.ingest.prepare_upload(path)
    async for step in upload.send():
        view.show_transfer(path.name, step)
    return upload.url
