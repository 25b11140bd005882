"""Pages: how rows are fetched from a source, a bounded number and about so many bytes at a time."""

from __future__ import annotations

import sqlite3
from typing import Any

from ..values import decode_any, text_of
from .schema import Table, quote

PAGE_BYTES = 8 << 20
"""About the most bytes of text and blobs in a page."""


def fetch_page(db: sqlite3.Connection, sql: str, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Rows of a query, up to about the page's bytes."""
    try:
        db.text_factory = str
        return _rows(db, sql, params)
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    # Some text is no UTF-8. The slower reader is only taken for pages that need it.
    db.text_factory = text_of
    try:
        return _rows(db, sql, params)
    finally:
        db.text_factory = str


def _rows(db: sqlite3.Connection, sql: str, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    size, many, cursor = 0, 64, db.execute(sql, params)
    while size < PAGE_BYTES and (some := cursor.fetchmany(many)):
        rows += some
        # The length of every eighth row stands for all: to look at each costs as much as to read it.
        size += 8 * sum([len(v) for row in some[::8] for v in row if v.__class__ is str or v.__class__ is bytes])
        many = 1_000 if size < 200 * len(rows) else 64
    return rows


def rows_after(table: Table, cursor: list[Any] | None) -> tuple[str, tuple[Any, ...], int]:
    """A query for the rows after a cursor, its parameters, and how many values of a row are its address."""
    columns = ", ".join(f"t.{quote(c)}" for c in table.columns)
    if table.rowid:
        address = [f"t.{table.rowid}"]
    else:
        address = [f"t.{quote(c)} COLLATE {quote(i.collation)}" for c, i in zip(table.key, table.identity, strict=True)]
    where = ""
    params: tuple[Any, ...] = ()
    if cursor is not None:
        values = [decode_any(value) for value in cursor]
        marks = ["CAST(? AS TEXT)" if isinstance(v, bytes) and type(v) is not bytes else "?" for v in values]
        where = f" WHERE ({', '.join(address)}) > ({', '.join(marks)})"
        params = tuple(bytes(v) if isinstance(v, bytes) else v for v in values)
    order = ", ".join(address)
    return (
        f"SELECT {order}, {columns} FROM {quote(table.name)} AS t{where} ORDER BY {order} LIMIT ?",
        params,
        len(address),
    )
