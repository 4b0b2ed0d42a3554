"""sha256 of what passes by."""

import hashlib
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
