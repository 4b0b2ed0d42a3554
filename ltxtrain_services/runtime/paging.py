"""Filters, orders and opaque page tokens of lists, and digests that tell a repeated request from another."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from ltxtrain.v1.work_pb2 import ListOrder
from sqlalchemy import ColumnElement, and_, false, or_, select

from ltxtrain_services.runtime import tables
from ltxtrain_services.runtime.errors import PageTokenInvalid

DEFAULT_PAGE = 50
MAX_PAGE = 500
MAX_WORDS = 256
# What a column holds.
MAX_NUMBER = 2**63 - 1
# Twice the longest that is made.
MAX_TOKEN_CHARS = 4_096
# Of the resources of a page, when they are more than one. Clients take messages of 4 MiB.
MAX_PAGE_BYTES = 2**20 * 3 // 4


def page_size(size: int, default: int = DEFAULT_PAGE, most: int = MAX_PAGE) -> int:
    """The page size to use: the default for 0, at most `most`. Raises PageTokenInvalid for a negative one."""
    if size < 0:
        raise PageTokenInvalid("page_size is negative.", metadata={"pageSize": size})
    return min(size or default, most)


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


def matching(labels: Sequence[str], words: str) -> list[ColumnElement[bool]]:
    """Conditions of resources that have all labels ("key=value", or "key") and these words in one of their names."""
    row, labelled = tables.resource.c, tables.label.c
    conditions: list[ColumnElement[bool]] = []
    for key, equals, value in (wanted.partition("=") for wanted in sorted(set(labels))):
        having = select(labelled.resource).where(labelled.key == key)
        conditions.append(row.name.in_(having.where(labelled.value == value) if equals else having))
    if len(words) > MAX_WORDS:  # longer than any name; databases refuse patterns of tens of kilobytes
        conditions.append(false())
    elif folded := words.casefold():
        names = (row.display_name, row.name)
        conditions.append(or_(*(name.contains(folded, autoescape=True) for name in names)))
    return conditions


def ordered(order: "ListOrder") -> list[ColumnElement[Any]]:
    """Columns that resources are sorted by."""
    row = tables.resource.c
    newest_first: list[ColumnElement[Any]] = [row.created.desc(), row.name.desc()]
    if order == ListOrder.LIST_ORDER_OLDEST_FIRST:
        return [row.created.asc(), row.name.asc()]
    if order == ListOrder.LIST_ORDER_DISPLAY_NAME:
        return [row.display_name == "", row.display_name, *newest_first]
    return newest_first


def after(order: "ListOrder", created: int, name: str, display_name: str) -> ColumnElement[bool]:
    """The condition of resources that come after one in this order."""
    row = tables.resource.c
    if order == ListOrder.LIST_ORDER_OLDEST_FIRST:
        return or_(row.created > created, and_(row.created == created, row.name > name))
    older = or_(row.created < created, and_(row.created == created, row.name < name))
    if order != ListOrder.LIST_ORDER_DISPLAY_NAME:
        return older
    same = and_(row.display_name == display_name, older)
    return or_(row.display_name > display_name, row.display_name == "", same) if display_name else same
