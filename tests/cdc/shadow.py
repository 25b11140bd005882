"""The referee: a copy of a table that believes only its changes, and refuses any that does not fit."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable

import msgspec

from millstream.cdc import Change
from millstream.cdc.change import decode_change
from millstream.cdc.source import Progress
from millstream.cdc.sqlite import install
from millstream.cdc.sqlite.decode import Decoder
from millstream.cdc.sqlite.encode import Line
from millstream.cdc.sqlite.schema import quote
from millstream.cdc.sqlite.triggers import CHANGES, STARTED
from millstream.cdc.values import Row, text_of


def cell(value: object) -> tuple[str, object]:
    """A value that equals another one only if SQLite would store both alike (1 and 1.0 are two)."""
    return type(value).__name__, value


def signature(row: Row) -> tuple[object, ...]:
    return tuple((name, cell(value)) for name, value in row.items())


class Shadow:
    """Rows of one table, as a multiset, kept by changes alone."""

    def __init__(self) -> None:
        self.rows: Counter[tuple[object, ...]] = Counter()

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            change = decode_change(change, "1")
            if change.operation == "TRUNCATE":
                self.rows.clear()
                continue
            if change.operation in ("UPDATE", "DELETE"):
                assert change.before is not None
                before = signature(change.before)
                assert self.rows[before] > 0, f"{change} names a row that is not there: {self.rows}"
                self.rows[before] -= 1
            if change.operation in ("INSERT", "READ", "UPDATE"):
                assert change.after is not None
                self.rows[signature(change.after)] += 1

    def assert_equals(self, db: sqlite3.Connection, table: str) -> None:
        assert +self.rows == Counter(rows_of(db, table))


def rows_of(db: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    db.text_factory = text_of
    try:
        cursor = db.execute(f"SELECT * FROM {quote(table)}")
        names = [column[0] for column in cursor.description]
        return [signature(dict(zip(names, row, strict=True))) for row in cursor]
    finally:
        db.text_factory = str


def install_on(db: sqlite3.Connection, tables: list[str]) -> None:
    """Triggers on tables of a bare connection, without a log."""
    install.identity(db)
    with install.writing(db):
        install.open_slot(db, "test", tables)
        install.refresh(db, tables, install.newest(db))


def started_anew(db: sqlite3.Connection) -> bool:
    """Whether the triggers have asked for a table to be read again."""
    (marks,) = db.execute(f"SELECT count(*) FROM {CHANGES} WHERE op = {STARTED} AND id > 1").fetchone()
    return bool(marks)


def changes_of(db: sqlite3.Connection, tables: list[str], after: int = 0) -> dict[str, list[Change]]:
    """The changes that the triggers wrote, by table."""
    db.text_factory = text_of
    rows = db.execute(f"SELECT * FROM {CHANGES} WHERE id > ? AND op != {STARTED} ORDER BY id", (after,)).fetchall()
    db.text_factory = str
    decoder = Decoder(install.layouts(db), tables, {table: Progress(done=True) for table in tables})
    decoder.add(rows)
    lines = {t: [e for part in decoder.parts.get(t, []) for e in part.events if isinstance(e, Line)] for t in tables}
    return {t: msgspec.json.decode(msgspec.json.encode(some), type=list[Change]) for t, some in lines.items()}


__all__ = ["Shadow", "changes_of", "install_on", "rows_of", "started_anew"]
