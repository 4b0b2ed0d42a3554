"""sha256 of what passes by."""

import hashlib
from pathlib import Path
from typing import IO


class HashingReader:
    """A file to read from once; hashes what goes through."""

    def __init__(self, data: IO[bytes]) -> None:
        self._data = data
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._data.read(size)
        self.digest.update(data)
        return data


def file_sha256(path: Path) -> str:
    """Lowercase hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
