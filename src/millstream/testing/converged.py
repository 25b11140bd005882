"""Whether what follows a table has come to say what the table says."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import date, datetime
from datetime import time as clock
from decimal import Decimal, InvalidOperation
from typing import Any

import polars as pl

from ..errors import MissingExtra, StreamNotFound, UsageError
from ..log import Log

Row = Mapping[str, Any]
Rows = str | Log | pl.DataFrame | Iterable[Row] | Callable[[], Iterable[Row]]
"""A database's URL (PostgreSQL or SQLite), a log with the captured table, a frame, rows, or what gives them."""


def assert_converged(source: Rows, sink: Rows, table: str, *, timeout: float = 10.0) -> None:
    """See that a sink has every row of the source, and no other, within a time.

    Values are compared for what they say, not for their types: a ``Decimal`` and its text, a ``datetime`` and its ISO
    form, true and 1 are the same, since databases differ in what they have. The order of rows and columns does not
    matter.

    Args:
        source, sink: Each a URL such as ``sqlite:///copy.sqlite``, a log, a frame, rows, or a function that gives rows.
        table: The table's name, in whatever of the two has tables.
        timeout: Seconds that the sink is given.

    Raises:
        AssertionError: They still differ, or one has no such table; names up to ten rows that only one of them has.

    Example:
        >>> from millstream.testing import assert_converged
        >>> assert_converged([{"id": 1, "paid": True}], [{"paid": 1, "id": "1"}], "orders")
    """
    deadline = time.monotonic() + timeout
    while True:
        here, there = _counted(source, table), _counted(sink, table)
        if here is not None and here == there:
            return
        fixed = not any(isinstance(each, str | Log) or callable(each) for each in (source, sink))
        if fixed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if here is None or there is None:
        raise AssertionError(f"the {'source' if here is None else 'sink'} has no table {table!r}")
    lines = [f"only the source has {dict(row)}" for row in (here - there).elements()]
    lines += [f"only the sink has {dict(row)}" for row in (there - here).elements()]
    more = f"\n… and {len(lines) - 10} more" if len(lines) > 10 else ""
    raise AssertionError(f"table {table!r} differs:\n" + "\n".join(lines[:10]) + more)


def _counted(place: Rows, table: str) -> Counter[Any] | None:
    """How often each row is there; None while there is no such table."""
    try:
        return Counter(map(_said, rows_of(place, table)))
    except (_NoTable, StreamNotFound):
        return None


class _NoTable(Exception):
    """A database has no such table, yet."""


def rows_of(place: Rows, table: str) -> list[dict[str, Any]]:
    """The rows of a table, wherever they are."""
    if isinstance(place, Log):
        from ..cdc import table as table_of

        return table_of(place, table).to_dicts()
    if isinstance(place, pl.DataFrame):
        return place.to_dicts()
    if isinstance(place, str):
        return _rows_at(place, table)
    return [dict(row) for row in (place() if callable(place) else place)]


def _rows_at(url: str, table: str) -> list[dict[str, Any]]:
    name = ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
            try:
                cursor = db.execute(f"select * from {name}")
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    raise _NoTable from error
                raise
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
    if url.startswith(("postgresql://", "postgres://")):
        try:
            import psycopg
            from psycopg.rows import dict_row
        except ImportError as error:
            raise MissingExtra("postgres", "psycopg") from error
        with psycopg.connect(url, row_factory=dict_row) as connection:
            try:
                return connection.execute(f"select * from {name}").fetchall()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
                raise _NoTable from error
    raise UsageError(
        f"rows at {url.partition(':')[0]!r} URLs cannot be read here", hint="Give a function that gives the rows"
    )


def _said(row: Row) -> tuple[tuple[str, str | None], ...]:
    return tuple(sorted((name, _text(value)) for name, value in row.items()))


def _text(value: Any) -> str | None:
    """What a value says, whatever its type."""
    match value:
        case None:
            return None
        case bool():
            return str(int(value))
        case bytes() | memoryview():
            return bytes(value).hex()
        case datetime() | date() | clock():
            return value.isoformat().removesuffix("+00:00").removesuffix("Z").replace(" ", "T")
    text = str(value)
    try:
        number = Decimal(text)
        return str(number.normalize() + 0) if number.is_finite() else text.lower()
    except InvalidOperation:
        pass
    try:
        return datetime.fromisoformat(text).isoformat().removesuffix("+00:00") if len(text) > 10 else text
    except ValueError:
        return text
