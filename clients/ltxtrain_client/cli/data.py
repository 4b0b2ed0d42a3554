"""Training data on the command line: local files, a URL, or a dataset that was ingested earlier."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec

from ltxtrain_client.cli.session import Exit, fail
from ltxtrain_client.local_data import DataInvalid, LocalData, check_video, open_local_data
from ltxtrain_client.sheet_files import SheetFiles

Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Training data: a zip, a folder, videos (may be repeated), a URL, or datasets/ID.", metavar="DATA"
    ),
]
Validation = Annotated[
    list[Path] | None,
    typer.Option(
        help="Upload this clip for the next validation entry; may be repeated.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
    ),
]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|upload:")


@dataclass(frozen=True)
class GivenData:
    """Training data and validation clips of a command."""

    files: SheetFiles
    url: str = ""
    dataset: str = ""

    def announce(self, spec: ExtendPrefixSpec) -> None:
        """Put the data, or placeholders for files, into a spec. Raises SheetInvalid when they contradict."""
        self.files.announce(spec)
        if self.url:
            spec.training_data_url = self.url
        if self.dataset:
            spec.dataset = self.dataset

    def local(self) -> LocalData | None:
        """The local training data, if there is any."""
        return self.files.data


def read_data(texts: Sequence[str], validation: Sequence[Path]) -> GivenData:
    """Look into the data of a command. Raises typer.Exit when it cannot be used; nothing has been sent then."""
    try:
        for path in validation:
            check_video(path)
        remote = [text for text in texts if _is_remote(text)]
        if not texts:
            return GivenData(SheetFiles(None, validation))
        if not remote:
            return GivenData(SheetFiles(open_local_data([Path(text).expanduser() for text in texts]), validation))
        if len(texts) > 1:
            raise DataInvalid(f"{remote[0]} is given alone: a job has one URL, or one dataset, or local files.")
        if remote[0].startswith("datasets/"):
            return GivenData(SheetFiles(None, validation), dataset=remote[0].rstrip("/"))
        return GivenData(SheetFiles(None, validation), url=remote[0])
    except DataInvalid as error:
        raise fail(Exit.INVALID, str(error)) from None
    except OSError as error:
        raise fail(Exit.INVALID, f"{error.filename} cannot be read: {error.strerror}") from None


def _is_remote(text: str) -> bool:
    return bool(_URL.match(text)) or (text.startswith("datasets/") and not Path(text).exists())
