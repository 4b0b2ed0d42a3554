"""Opaque page tokens, and digests that tell a repeated request from another."""

import base64
import hashlib

from google.protobuf.message import Message

from ltxtrain_services.runtime.errors import PageTokenInvalid

DEFAULT_PAGE = 50
MAX_PAGE = 500
# What a column holds.
MAX_NUMBER = 2**63 - 1
# Twice the longest that is made.
MAX_TOKEN_CHARS = 4_096
# Of the resources of a page, when they are more than one. Clients take messages of 4 MiB.
MAX_PAGE_BYTES = 2**20 * 3 // 4


def page_size(size: int) -> int:
    """The page size to use: the default for 0, at most MAX_PAGE. Raises PageTokenInvalid for a negative one."""
    if size < 0:
        raise PageTokenInvalid("page_size is negative.", metadata={"pageSize": size})
    return min(size or DEFAULT_PAGE, MAX_PAGE)


def request_digest(request: Message) -> bytes:
    """Digest of a request without its id, to tell a repeat from another request."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).digest()


def make_token(arguments: str, number: int, name: str = "") -> str:
    """An opaque token of the page after a row, that only the same arguments accept."""
    digest = hashlib.sha256(arguments.encode()).hexdigest()[:16]
    return base64.urlsafe_b64encode(f"{digest}|{number}|{name}".encode()).decode()


def read_token(arguments: str, token: str) -> tuple[int, str]:
    """Number and name of the row that make_token was given. Raises PageTokenInvalid."""
    try:
        if len(token) > MAX_TOKEN_CHARS:
            raise ValueError(token)
        digest, digits, name = base64.urlsafe_b64decode(token.encode()).decode().split("|", 2)
        number = int(digits)
    except ValueError:
        number = -1
    if not 0 <= number <= MAX_NUMBER:
        raise PageTokenInvalid("page_token is not one that this server gave.")
    if digest != hashlib.sha256(arguments.encode()).hexdigest()[:16]:
        raise PageTokenInvalid("page_token belongs to a call with other arguments.")
    return number, name
