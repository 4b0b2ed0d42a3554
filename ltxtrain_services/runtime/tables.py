"""The tables of a service's database."""

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    inspect,
)
from sqlalchemy.engine import Dialect

from ltxtrain_services.runtime.settings import SettingsError

metadata = MetaData()


class Text(TypeDecorator[str]):
    """Text as callers send it, but for NUL, which PostgreSQL cannot hold: a name with one is never known."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


# Bodies are serialized protos: the evolution of the contract is the evolution of the schema.
resource = Table(
    "resource",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),  # nanoseconds since 1970
    # Counts the starts of the resource's work; a write of an older attempt is refused.
    Column("attempt", Integer, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    # Case-folded, to sort and to search by.
    Column("display_name", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("resource_by_age", "created", "name"),
    # A caller's own, however many others have.
    Index("resource_by_owner", "owner", "created", "name"),
)
label = Table(
    "label",
    metadata,
    Column("resource", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index("label_by_value", "key", "value"),
)
request = Table(
    "request",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("resource", Text, nullable=False),
)
events = Table(
    "event",
    metadata,
    Column("resource", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)
# The events of all resources of an owner, in the order in which they became durable.
feed = Table(
    "feed",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("resource", Text, nullable=False),
    # 0: the resource was deleted.
    Column("sequence", BigInteger, nullable=False),
    # EventKind; 0 without an event.
    Column("kind", Integer, nullable=False),
    Index("feed_by_resource", "resource"),
)
# Clips, samples, artifacts and report lines: parent is the collection, e.g. datasets/1/clips.
child = Table(
    "child",
    metadata,
    Column("parent", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("parent", "name"),
)
cursor = Table(
    "cursor",
    metadata,
    Column("resource", Text, primary_key=True),
    Column("upstream", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
)
blob = Table(
    "blob",
    metadata,
    Column("key", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    # Nanoseconds since 1970 when it was last referred to, or made.
    Column("used", BigInteger, nullable=False),
    # What a cache keeps beside the key: a serialized proto that describes the content.
    Column("body", LargeBinary, nullable=False),
)
blob_ref = Table(
    "blob_ref",
    metadata,
    Column("key", Text, primary_key=True),
    Column("resource", Text, primary_key=True),
    Index("blob_ref_by_resource", "resource"),
)


def create_tables(connection: Connection) -> None:
    """Create what is absent. Raises SettingsError for tables of another version of the suite."""
    found = inspect(connection)
    for table in metadata.sorted_tables:
        if not found.has_table(table.name):
            continue
        there = {column["name"] for column in found.get_columns(table.name)}
        if lacking := {column.name for column in table.columns} - there:
            raise SettingsError(
                f"The database was made by an earlier version of ltxtrain: its table {table.name} lacks "
                f"{', '.join(sorted(lacking))}. Set LTXTRAIN_STATE_DIR (or LTXTRAIN_DATABASE_URL) to a new place, or "
                "delete the old one."
            )
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        for index in table.indexes:
            # Of a table that an earlier version has made.
            index.create(connection, checkfirst=True)
