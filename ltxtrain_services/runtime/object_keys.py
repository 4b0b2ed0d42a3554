"""Names of objects in the store: what every S3 store takes, and what each part of the suite may delete."""

import re
from urllib.parse import quote

MAX_SEGMENT_BYTES = 255
MAX_KEY_BYTES = 1024
JOB_PREFIX = re.compile(r"jobs/[^/]+/")


def content_key(service: str, sha256: str) -> str:
    """The key of a blob that is named by its bytes. Each service sweeps its own."""
    return f"{service}/sha256/{sha256}"


def attachment(filename: str) -> str:
    """The Content-Disposition with which browsers save a download under this name."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def checked_key(key: str) -> str:
    """The key itself. Raises ValueError for one that a store could refuse or confuse with another."""
    segments = key.split("/")
    if any(segment in {"", ".", ".."} or len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        raise ValueError(f"{key!r} has a part that is empty, dots, or longer than {MAX_SEGMENT_BYTES} bytes.")
    if len(key.encode()) > MAX_KEY_BYTES or not key.isprintable():
        raise ValueError(
            f"{key[:80]!r} is longer than {MAX_KEY_BYTES} bytes, or has characters that are not printable."
        )
    return key


def checked_job_prefix(prefix: str) -> str:
    """The prefix of what one job owns: the only one that is ever deleted whole. Raises ValueError for any other."""
    if not JOB_PREFIX.fullmatch(prefix) or prefix in {"jobs/./", "jobs/../"}:
        raise ValueError(f"Only jobs/{{job}}/ is deleted by prefix, not {prefix!r}.")
    return prefix
