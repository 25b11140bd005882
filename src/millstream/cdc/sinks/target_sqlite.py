"""A copy of a table in a SQLite file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from ...errors import ConstraintViolated, Rejected
from ...storage.sqlite.database import SQLiteDatabase, open_database
from ..change import Row
from ..shape import Column
from ..values import Undecodable, encode_value
from .held import Held
from .net import Key
from .target import POSITIONS, Target, quote

_TYPES = {"bool": "boolean", "int": "integer", "float": "real", "bytes": "blob", "any": ""}
"""By kind. A column without a type holds each value as it is; all other kinds are text."""

_STORED = (int, str, float, bytes)


class SQLiteTarget(Target):
    """A table in a SQLite file, in WAL mode, so that others read while it is written."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.location = f"sqlite:///{path}"
        self.types, self.table, self.name = {}, "", ""
        self._db: SQLiteDatabase | None = None

    @property
    def db(self) -> SQLiteDatabase:
        """The connection."""
        if self._db is None:
            self.connect()
        assert self._db is not None
        return self._db

    def connect(self) -> None:
        """Open the file, and make it if it is not there."""
        if self._db is None:
            self._db = open_database(self.path)
            self._db.execute(
                f"create table if not exists {POSITIONS}"
                " (stream text primary key, log text not null, position integer not null, holder text not null)"
            )

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction of the file."""
        try:
            with self.db.transaction():
                yield
        except ConstraintViolated as error:
            raise Rejected(error.message) from error

    def held(self, stream: str) -> Held | None:
        """What the table of positions says."""
        rows = self.ask(f"select log, position, holder from {POSITIONS} where stream = ?", (stream,))
        return Held(*rows[0]) if rows else None

    def hold(self, stream: str, held: Held) -> None:
        """Write it to the table of positions."""
        self.run(
            f"insert into {POSITIONS} (stream, log, position, holder) values (?, ?, ?, ?) on conflict (stream)"
            " do update set log = excluded.log, position = excluded.position, holder = excluded.holder",
            (stream, held.log, held.position, held.holder),
        )

    def look(self, name: str) -> bool:
        """Find the table."""
        self.name, self.table = name, quote(name)
        self.types = {row[1]: row[2] for row in self.ask(f"pragma table_xinfo({self.table})")}
        return bool(self.types)

    def type_of(self, column: Column) -> str:
        """A type whose affinity leaves each value as it is."""
        return _TYPES.get(column.kind, "text")

    def retype(self, column: Column) -> None:
        """Nothing: a column here holds values of any type."""

    def widen(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Nothing, as in `retype`."""

    def index(self, key: Sequence[str]) -> None:
        """A unique index of a name of its own."""
        name = f"millstream_key_{self.name}"
        there = [row[2] for row in self.ask(f"pragma index_info({quote(name)})")]
        if there == list(key):
            return
        self.run(f"drop index if exists {quote(name)}")
        if key:
            self.run(f"create unique index {quote(name)} on {self.table} ({', '.join(map(quote, key))})")

    def insert_many(self, columns: Sequence[str], rows: Sequence[Row], conflict: str) -> None:
        """One prepared statement for all."""
        names = ", ".join(map(quote, columns))
        marks = ", ".join("?" * len(columns))
        self.db.executemany(
            f"insert into {self.table} ({names}) values ({marks}){conflict}",
            [[_stored(value) for value in row.values()] for row in rows],
        )

    def delete(self, key: Sequence[str], keys: Sequence[Key]) -> None:
        """One prepared statement for all."""
        if keys:
            where = " and ".join(f"{quote(name)} = ?" for name in key)
            self.db.executemany(f"delete from {self.table} where {where}", [list(map(_stored, k)) for k in keys])

    def update(self, key: Sequence[str], parts: Sequence[tuple[Key, Row]]) -> None:
        """A statement for each."""
        where = " and ".join(f"{quote(name)} = ?" for name in key)
        for old, row in parts:
            sets = ", ".join(f"{quote(name)} = ?" for name in row)
            self.run(f"update {self.table} set {sets} where {where}", [*map(_stored, row.values()), *map(_stored, old)])

    def remove(self, row: Row) -> None:
        """The first that equals it, NULLs included."""
        where = " and ".join(f"{quote(name)} is ?" for name in row if name in self.types)
        values = [_stored(value) for name, value in row.items() if name in self.types]
        self.run(
            f"delete from {self.table} where rowid in (select rowid from {self.table} where {where} limit 1)", values
        )

    def fill(self, column: str, value: Any) -> None:
        """One statement."""
        self.run(f"update {self.table} set {quote(column)} = ?", (_stored(value),))

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run a statement."""
        self.db.execute(sql, values)

    def ask(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.db.execute(sql, values).fetchall()


def _stored(value: Any) -> Any:
    """A value as SQLite holds it: text for what it has no type for. NaN, which it would make NULL, is text."""
    kind = type(value)
    if kind is int:
        return value if -(2**63) <= value < 2**63 else str(value)
    if kind is float:
        return value if value == value else "NaN"
    if value is None or kind is str or kind is bytes or kind is bool:
        return value
    if kind is Undecodable:
        # Bound as bytes it would be a BLOB; a str of these bytes cannot be.
        raise Rejected("text that is no UTF-8 cannot be written to SQLite by way of Python")
    if isinstance(value, _STORED):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return _list_text(value)
    return encode_value(value, _kind_of(value))


def _kind_of(value: Any) -> str:
    bound = getattr(value, "lower", None)
    if bound is None:
        bound = getattr(value, "upper", None)
    return "range:" + type(bound).__name__ if hasattr(value, "bounds") else type(value).__name__


def _list_text(value: list[Any]) -> str:
    import msgspec

    def plain(item: Any) -> Any:
        return [plain(each) for each in item] if isinstance(item, list) else _stored(item)

    return msgspec.json.encode(plain(value)).decode()
