"""A copy of a table in PostgreSQL. Values go as text, which the server reads by the columns' types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg

from ...errors import ConstraintViolated, DatabaseError, Rejected
from ...storage.postgres.connections import connect_raw
from ...storage.postgres.database import Connection
from ...storage.postgres.faults import translated
from ...storage.postgres.place import parse_url
from ..change import Row
from ..shape import Column
from ..values import Range, Undecodable, encode_value
from .held import Held
from .net import Key
from .target import POSITIONS, Target, quote

_TYPES = {
    "bool": "boolean",
    "int": "bigint",
    "uint": "numeric(20)",
    "float": "double precision",
    "decimal": "numeric",
    "bytes": "bytea",
    "uuid": "uuid",
    "date": "date",
    "time": "time",
    "timetz": "timetz",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "duration": "interval",
    "interval": "interval",
    "json": "json",
    "range:int": "int8range",
    "range:decimal": "numrange",
    "range:date": "daterange",
    "range:timestamp": "tsrange",
    "range:timestamptz": "tstzrange",
}
_NO_EQUALITY = {"json", "xml"}


class PostgresTarget(Target):
    """A table in a database of PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._place = parse_url(url, "public")
        self.location = self._place.location.removesuffix("?schema=public")
        self.types, self.table, self.name = {}, "", ""
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The connection."""
        if self._connection is None:
            self.connect()
        assert self._connection is not None
        return self._connection

    def connect(self) -> None:
        """Connect, unless there is a good connection."""
        if self._connection is not None and self._connection.closed:
            self._connection = None
        if self._connection is None:
            with translated(self.location):
                self._connection = connect_raw(self._place)
                for setting in ("timezone = 'UTC'", "extra_float_digits = 3", "intervalstyle = 'iso_8601'"):
                    self._connection.execute(f"set {setting}")
                if not self.ask("select to_regclass($1)", (self._own(POSITIONS),))[0][0]:
                    self.run(
                        f"create table if not exists {self._own(POSITIONS)} (stream text primary key,"
                        " log text not null, position bigint not null, holder text not null)"
                    )

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction of the server. After a failure the connection is made anew."""
        try:
            with translated(self.location), self.connection.transaction():
                yield
        except ConstraintViolated as error:
            raise Rejected(error.message) from error
        except DatabaseError as error:
            state = getattr(error.__cause__, "sqlstate", None) or ""
            if state.startswith("22") or isinstance(error.__cause__, psycopg.DataError):
                raise Rejected(error.message) from error
            raise
        except Exception:
            if self._connection is not None and self._connection.broken:
                self.close()
            raise

    def _own(self, name: str) -> str:
        return f"{self._place.quoted}.{quote(name)}"

    def held(self, stream: str) -> Held | None:
        """What the table of positions says; locked until the transaction ends."""
        rows = self.ask(
            f"select log, position, holder from {self._own(POSITIONS)} where stream = $1 for update", (stream,)
        )
        return Held(*rows[0]) if rows else None

    def hold(self, stream: str, held: Held) -> None:
        """Write it to the table of positions."""
        self.run(
            f"insert into {self._own(POSITIONS)} (stream, log, position, holder) values ($1, $2, $3, $4)"
            " on conflict (stream) do update"
            " set log = excluded.log, position = excluded.position, holder = excluded.holder",
            (stream, held.log, held.position, held.holder),
        )

    # --- columns ------------------------------------------------------------------------------------------

    def look(self, name: str) -> bool:
        """Find the table, and the types of its columns.

        They go without their lengths: a cast to varchar(5) would cut off what is longer, an assignment refuses it.
        """
        self.name, self.table = name, self._own(name)
        rows = self.ask(
            "select attname, format_type(atttypid, -1) from pg_attribute"
            " where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum",
            (self.table,),
        )
        self.types = dict(rows)
        return bool(self.types)

    def type_of(self, column: Column) -> str:
        """The type of its kind."""
        if column.kind.endswith("[]"):
            return _TYPES.get(column.kind[:-2], "text") + "[]"
        return _TYPES.get(column.kind, "text")

    def retype(self, column: Column) -> None:
        """Read the texts of its values as the other type."""
        wanted = self.type_of(column)
        name = quote(column.name)
        self.run(f"alter table {self.table} alter column {name} type {wanted} using {name}::text::{wanted}")
        self.look(self.name)

    def widen(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """SQLite's columns hold values of any type: here, one has the narrowest that holds all it was given."""
        for name in columns:
            wanted = {_loose(row[name]) for row in rows if row.get(name) is not None}
            current = self.types[name]
            if wanted <= {current} or (wanted <= {"bigint"} and current == "numeric"):
                continue
            if not self.ask(f"select exists (select 1 from {self.table} where {quote(name)} is not null)")[0][0]:
                current = "" if current == "text" else current
            new = _widest(wanted | ({current} if current else set()))
            if new != self.types[name]:
                self.run(
                    f"alter table {self.table} alter column {quote(name)} type {new} using {quote(name)}::text::{new}"
                )
                self.types[name] = new

    def index(self, key: Sequence[str]) -> None:
        """A unique index of a name of its own; a primary key that the table has serves as well."""
        rows = self.ask(
            "select c.relname, array(select a.attname::text from unnest(i.indkey) k(n)"
            " join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.n)"
            " from pg_index i join pg_class c on c.oid = i.indexrelid"
            " where i.indrelid = to_regclass($1) and i.indisunique and i.indpred is null",
            (self.table,),
        )
        name = self._index_name()
        mine = next((columns for index, columns in rows if index == name), None)
        if key and any(set(columns) == set(key) for _, columns in rows):
            return
        if mine is not None:
            self.run(f"drop index {self._own(name)}")
        if key:
            self.run(f"create unique index {quote(name)} on {self.table} ({', '.join(map(quote, key))})")

    def _index_name(self) -> str:
        return f"millstream_key_{self.name}".encode()[:63].decode("utf-8", "ignore")

    # --- rows ---------------------------------------------------------------------------------------------

    def insert_many(self, columns: Sequence[str], rows: Sequence[Row], conflict: str) -> None:
        """One statement: a list of texts for each column, which the server unfolds."""
        names = ", ".join(map(quote, columns))
        values = self._columns(columns, [list(row.values()) for row in rows])
        picks = ", ".join(f"u.c{n}::{self.types[name]}" for n, name in enumerate(columns))
        self.run(
            f"insert into {self.table} ({names}) select {picks} from {_unfold(len(columns))}{conflict}",
            values,
        )

    def delete(self, key: Sequence[str], keys: Sequence[Key]) -> None:
        """One statement."""
        if keys:
            self.run(
                f"delete from {self.table} t using {_unfold(len(key))} where {self._equal(key)}",
                self._columns(key, keys),
            )

    def update(self, key: Sequence[str], parts: Sequence[tuple[Key, Row]]) -> None:
        """A statement for all that tell the same columns."""
        groups: dict[tuple[str, ...], list[list[Any]]] = {}
        for old, row in parts:
            groups.setdefault(tuple(row), []).append([*old, *row.values()])
        for columns, rows in groups.items():
            first = len(key)
            sets = ", ".join(f"{quote(c)} = u.c{first + n}::{self.types[c]}" for n, c in enumerate(columns))
            self.run(
                f"update {self.table} t set {sets} from {_unfold(first + len(columns))} where {self._equal(key)}",
                self._columns([*key, *columns], rows),
            )

    def remove(self, row: Row) -> None:
        """The first that equals it, NULLs included; what has no equality is compared as text."""
        names = [name for name in row if name in self.types]
        terms = []
        for n, name in enumerate(names, 1):
            type = self.types[name]
            if type.removesuffix("[]") in _NO_EQUALITY:
                terms.append(f"{quote(name)}::text is not distinct from ${n}::text::{type}::text")
            else:
                terms.append(f"{quote(name)} is not distinct from ${n}::text::{type}")
        found = f"select ctid from {self.table} where {' and '.join(terms)} limit 1"
        self.run(f"delete from {self.table} where ctid = ({found})", [pg_text(row[name]) for name in names])

    def fill(self, column: str, value: Any) -> None:
        """One statement."""
        self.run(f"update {self.table} set {quote(column)} = $1::text::{self.types[column]}", (pg_text(value),))

    def _equal(self, key: Sequence[str]) -> str:
        return " and ".join(f"t.{quote(name)} = u.c{n}::{self.types[name]}" for n, name in enumerate(key))

    def _columns(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[str | None]]:
        return [[pg_text(row[n]) for row in rows] for n in range(len(names))]

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run a statement."""
        with translated(self.location):
            self.connection.execute(sql, values or None)

    def ask(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with translated(self.location):
            return self.connection.execute(sql, values or None).fetchall()


def _unfold(count: int) -> str:
    lists = ", ".join(f"${n + 1}::text[]" for n in range(count))
    return f"unnest({lists}) as u({', '.join(f'c{n}' for n in range(count))})"


_LOOSE = {bool: "bigint", int: "bigint", float: "double precision", bytes: "bytea"}


def _loose(value: Any) -> str:
    return _LOOSE.get(type(value), "text")


def _widest(types: set[str]) -> str:
    """The narrowest type that holds what all of these hold."""
    if len(types) == 1:
        return types.pop()
    return "numeric" if types <= {"bigint", "double precision", "numeric"} else "text"


def pg_text(value: Any) -> str | None:
    """A value as PostgreSQL reads it.

    Raises:
        Rejected: PostgreSQL has no text for it.
    """
    match value:
        case None:
            return None
        case bool():
            return "t" if value else "f"
        case Undecodable():
            raise Rejected("text that is no UTF-8 cannot be written to PostgreSQL")
        case str():
            if "\0" in value:
                raise Rejected("PostgreSQL's text cannot hold the character NUL")
            return str(value)
        case float():
            return "Infinity" if value == float("inf") else "-Infinity" if value == -float("inf") else repr(value)
        case bytes():
            return "\\x" + value.hex()
        case list():
            return "{" + ",".join(_element(item) for item in value) + "}"
        case timedelta():
            return f"{value // timedelta(microseconds=1)} microseconds"
        case Range():
            return str(encode_value(value, "range:any")) if value.bounds == "empty" else _range_text(value)
    return str(encode_value(value, ""))


def _range_text(value: Range) -> str:
    def bound(limit: Any) -> str:
        if limit is None:
            return ""
        return '"' + (pg_text(limit) or "").replace("\\", "\\\\").replace('"', '""') + '"'

    return f"{value.bounds[0]}{bound(value.lower)},{bound(value.upper)}{value.bounds[1]}"


def _element(item: Any) -> str:
    if item is None:
        return "NULL"
    if isinstance(item, list):
        return pg_text(item) or ""
    return '"' + (pg_text(item) or "").replace("\\", "\\\\").replace('"', '\\"') + '"'
