"""Answers: rows and single records, as a table, NDJSON, JSON or CSV.

NDJSON and CSV are written as they come and keep nothing; a table is for looking at, and limits itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from io import StringIO
from itertools import islice
from typing import IO, Any, Protocol, cast

import msgspec

from ..personal import plain_text

TABLE_ROWS = 50
"""The most rows of a table, when no limit is given."""

_BATCH = 1_000
_encode = msgspec.json.Encoder(enc_hook=plain_text).encode


class Output(StrEnum):
    """How to answer."""

    TABLE = "table"
    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"


def chosen(output: Output | None) -> Output:
    """The output that was asked for; else a table on a terminal, and NDJSON in a pipe or a file."""
    return output or (Output.TABLE if sys.stdout.isatty() else Output.NDJSON)


def write_rows(
    rows: Iterable[Any], names: Sequence[str], output: Output, *, limit: int | None = None, more: str = ""
) -> None:
    """Write rows.

    Args:
        rows: Dicts or structs.
        names: Their fields, in order: the columns of a table or of CSV.
        output: How.
        limit: At most so many; None: all of them, but no more than fit a look in a table.
        more: How to see the rest of a table that was cut, for those who asked for no limit.
    """
    if limit is not None:
        limit = min(limit, sys.maxsize)
    if output is Output.TABLE:
        _write_table(iter(rows), names, limit, more)
        return
    if limit is not None:
        rows = islice(rows, limit)
    writer(output, names).write_all(rows)


def write_record(record: Mapping[str, Any], output: Output) -> None:
    """Write one record: in a table, a line for each of its fields."""
    if output is Output.TABLE:
        from .tables import print_record

        print_record(record)
    elif output is Output.JSON:
        _stdout().write(msgspec.json.format(_encode(record), indent=2) + b"\n")
        flush()
    else:
        write_rows([record], list(record), output)


class Writer(Protocol):
    """Writes rows in one form."""

    def write_all(self, rows: Iterable[Any]) -> None:
        """All of them, and what stands before and after."""

    def write(self, rows: Iterable[Any]) -> None:
        """More of them."""


def writer(output: Output, names: Sequence[str]) -> Writer:
    """A writer of rows in a form that streams."""
    made: dict[Output, type[_Ndjson | _Json | _Csv]] = {
        Output.NDJSON: _Ndjson,
        Output.JSON: _Json,
        Output.CSV: _Csv,
    }
    return made[output](names)


class _Ndjson:
    def __init__(self, names: Sequence[str]) -> None:
        self._out = _stdout()

    def write(self, rows: Iterable[Any]) -> None:
        for row in rows:
            self._out.write(_encode(row) + b"\n")

    def write_all(self, rows: Iterable[Any]) -> None:
        self.write(rows)
        flush()


class _Json:
    def __init__(self, names: Sequence[str]) -> None:
        self._out = _stdout()
        self._before = b"["

    def write(self, rows: Iterable[Any]) -> None:
        for row in rows:
            self._out.write(self._before + b"\n" + _encode(row))
            self._before = b","

    def write_all(self, rows: Iterable[Any]) -> None:
        self.write(rows)
        self._out.write(b"[]\n" if self._before == b"[" else b"\n]\n")
        flush()


class _Csv:
    def __init__(self, names: Sequence[str]) -> None:
        import csv

        self._names = names
        self._out = _stdout()
        self._text = StringIO()
        self._lines = csv.writer(self._text, lineterminator="\n")
        self._lines.writerow(names)
        self._hand_on()

    def write(self, rows: Iterable[Any]) -> None:
        rows = iter(rows)
        while batch := list(islice(rows, _BATCH)):
            self._lines.writerows([plain(value) for value in values(row, self._names)] for row in batch)
            self._hand_on()

    def _hand_on(self) -> None:
        self._out.write(self._text.getvalue().encode("utf-8", "backslashreplace"))
        self._text.seek(0)
        self._text.truncate()

    def write_all(self, rows: Iterable[Any]) -> None:
        self.write(rows)
        flush()


def plain(value: Any) -> Any:
    """A value as CSV has it: text and whole numbers as they are, nothing for null, the rest as in a cell."""
    if value is None or type(value) in (str, int):
        return value
    return bytes(value).decode() if type(value) is msgspec.Raw else cell(value)


def values(row: Any, names: Sequence[str]) -> Iterator[Any]:
    """A row's values in the order of some names; None where it has none."""
    if isinstance(row, Mapping):
        return (row.get(name) for name in names)
    return (getattr(row, name) for name in names)


def cell(value: Any) -> str:
    """A value as the text of one cell: text as it is, what has parts as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) and not value:
        return ""
    text = _encode(value).decode()
    return cast(str, msgspec.json.decode(text)) if text.startswith('"') else text


def note(text: str) -> None:
    """A remark on stderr, beside the answer."""
    flush()
    print(text, file=sys.stderr, flush=True)


def flush() -> None:
    """Hand on what was written."""
    _stdout().flush()


def _stdout() -> IO[bytes]:
    return sys.stdout.buffer


def _write_table(rows: Iterator[Any], names: Sequence[str], limit: int | None, more: str) -> None:
    from .tables import print_table

    shown = list(islice(rows, TABLE_ROWS if limit is None else limit))
    print_table(shown, names)
    if limit is None and len(shown) == TABLE_ROWS and next(rows, None) is not None:
        note(f"The first {TABLE_ROWS}; there are more. {more}".rstrip())
