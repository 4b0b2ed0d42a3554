"""Types of the object store: addresses, blobs, errors. `objects` offers all of it."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path


class ObjectStoreUnavailable(Exception):
    """The store does not answer, or refuses us; the text says which and what to do."""


class ObjectStoreFull(ObjectStoreUnavailable):
    """The store has no space left; it can still be read."""


class ObjectMissing(Exception):
    """There is no object of that key."""


class ObjectCorrupt(Exception):
    """The bytes of an object, or of a file on its way there, do not have their sha256."""


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """Where the store is. The public endpoint is what presigned URLs name; it may begin with https://."""

    endpoint: str
    public_endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str
    bucket: str
    secure: bool
    # PEM text of authorities that its certificate is trusted by beside the public ones: Ray's nodes have no file.
    tls_root: str = field(default="", repr=False)
    # Of its data, where it is on this machine: an embedded store does not say itself that its disk is full.
    folder: Path | None = None


@dataclass(frozen=True)
class StoredBlob:
    """An object; `sha256` is lowercase hex, or empty for one that a client has put by itself."""

    key: str
    size_bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True)
class ListedBlob:
    """An object as a listing shows it."""

    key: str
    size_bytes: int
    modified: datetime
