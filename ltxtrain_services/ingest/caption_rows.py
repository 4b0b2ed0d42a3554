"""Rows of metadata.jsonl and metadata.csv in the Hugging Face form: a file name and its caption."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ltxtrain_services.ingest.caption_text import NotText, json_kind, parse_json, plain_caption
from ltxtrain_services.ingest.table_text import MAX_LINE_BYTES, LineUnreadable, Pieces, text_lines
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES

FILE_NAME = "file_name"
# Columns of the caption; the first that has one counts.
CAPTION_COLUMNS = ("text", "caption")
DELIMITERS = ",;\t"
MAX_KEYS_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row with a caption."""

    # From 1: the line that it begins in.
    line: int
    # As written.
    file_name: str
    # In one line; empty: none.
    caption: str
    # It has another caption in its other column.
    ambiguous: bool = False


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    line: int
    why: str


def read_rows(pieces: Pieces, *, comma_separated: bool) -> tuple[Iterator[Row | BadRow], str]:
    """The rows of a table one by one, and how its form was repaired (empty when it was as documented).

    `pieces` starts a new reading at each call. Raises NotText, also while the rows are read.
    """
    lines, repair = text_lines(pieces)
    if not comma_separated:
        return _json_rows(lines), repair
    feed = _Feed(lines)
    delimiter, columns = _header(feed)
    dialect = "" if delimiter == "," else f"its columns are separated by {_DELIMITER_NAMES[delimiter]}"
    return _csv_rows(feed, delimiter, columns), "; ".join(filter(None, (repair, dialect)))


def _json_rows(lines: Iterator[str | LineUnreadable]) -> Iterator[Row | BadRow]:
    for number, line in enumerate(lines, 1):
        if isinstance(line, LineUnreadable):
            yield BadRow(number, str(line))
        elif line.strip():
            try:
                value = parse_json(line)
                if not isinstance(value, dict):
                    raise NotText(f"{json_kind(value)}, not an object")
                yield _row(number, {_key(key): found for key, found in value.items()})
            except NotText as error:
                yield BadRow(number, str(error))


def _csv_rows(feed: "_Feed", delimiter: str, columns: Sequence[str]) -> Iterator[Row | BadRow]:
    reader = csv.reader(feed, delimiter=delimiter)
    while True:
        feed.begin_row()
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) > len(columns):
                raise NotText(f"{len(cells)} cells under {len(columns)} columns: quote texts with {delimiter!r}")
            yield _row(feed.row_line, dict(zip(columns, cells, strict=False)))
        except (NotText, LineUnreadable, csv.Error) as error:
            yield BadRow(feed.row_line, str(error))


def _header(feed: "_Feed") -> tuple[str, list[str]]:
    """Delimiter and column names. Raises NotText when no column is named file_name, or none is a caption's."""
    while True:
        feed.begin_row()
        try:
            if (line := next(feed, None)) is None:
                break
        except LineUnreadable as error:
            raise NotText(f"its first row cannot be read: {error}") from None
        named = line.strip().casefold()
        if not named or named.startswith("sep="):  # written by spreadsheets
            continue
        rows = [(delimiter, next(csv.reader([line], delimiter=delimiter))) for delimiter in DELIMITERS]
        found = [(delimiter, [_key(cell) for cell in cells]) for delimiter, cells in rows]
        for delimiter, columns in found:
            if FILE_NAME in columns and not set(CAPTION_COLUMNS).isdisjoint(columns):
                return delimiter, columns
        break
    raise NotText("its first row does not name the columns file_name and text or caption")


def _row(line: int, cells: Mapping[str, object]) -> Row:
    """Raises NotText for a row that names no file, or whose caption is none."""
    name = cells.get(FILE_NAME)
    if name is None:
        keys = ", ".join(str(key)[:40] for key in list(cells)[:MAX_KEYS_NAMED])
        raise NotText(f"no file_name{f', only {keys}' if keys else ''}")
    if not isinstance(name, str):
        raise NotText(f"its file_name is {json_kind(name)}, not text")
    texts = [_text(column, cells[column]) for column in CAPTION_COLUMNS if cells.get(column) is not None]
    captions = [text for text in texts if text]
    ambiguous = len(set(captions)) > 1
    return Row(line=line, file_name=name.strip(), caption=next(iter(captions), ""), ambiguous=ambiguous)


def _text(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise NotText(f"its {column} is {json_kind(value)}, not text")
    text = plain_caption(value)
    if (size := len(text.encode())) > MAX_TEXT_BYTES:
        raise NotText(f"its {column} has {size} bytes; a text has {MAX_TEXT_BYTES} at most")
    return text


def _key(name: str) -> str:
    return name.strip().casefold()


class _Feed(Iterator[str]):
    """Lines for the csv module, which joins those of a cell in quotes: at most as many as a row may be long.

    Raises LineUnreadable in place of a line. The module goes on with the next row then.
    """

    def __init__(self, lines: Iterator[str | LineUnreadable]) -> None:
        self._lines = lines
        self._line = 0
        self._row_chars = 0
        self.row_line = 1

    def begin_row(self) -> None:
        self._row_chars, self.row_line = 0, self._line + 1

    def __next__(self) -> str:
        line = next(self._lines)
        self._line += 1
        if isinstance(line, LineUnreadable):
            raise line
        self._row_chars += len(line)
        if self._row_chars > MAX_LINE_BYTES:
            raise LineUnreadable("its quotes are not closed")
        return line


_DELIMITER_NAMES = {";": "semicolons", "\t": "tabs"}
