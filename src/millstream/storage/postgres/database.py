"""PostgreSQL connections as a `Database`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg

from ..database import Database, Params
from .faults import translated
from .place import quote_name
from .sql import Guard, bind, parse

Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresDatabase(Database):
    """A PostgreSQL connection as a `Database`. The library's own tables stand in the log's schema."""

    dialect = "postgresql"
    blob = "bytea"

    def __init__(self, connection: Connection, schema: str, location: str) -> None:
        self.connection = connection
        self.schema = schema
        self.location = location

    def execute(self, sql: str, params: Params = ()) -> Any:
        statement = parse(sql)
        values = bind(statement, params)
        with translated(self.location):
            return self.connection.execute(statement.text, values or None)

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        statement = parse(sql)
        with translated(self.location), self.connection.cursor() as cursor:
            cursor.executemany(statement.text, [bind(statement, row) for row in rows])

    def executescript(self, sql: str) -> None:
        if parse(sql).first_words:
            self.execute(sql)

    def own(self, name: str) -> str:
        return f"{quote_name(self.schema)}.{quote_name(name)}"

    def has_table(self, name: str) -> bool:
        with translated(self.location):
            found = self.connection.execute("select to_regclass($1)", (self.own(name),)).fetchone()
        return found is not None and found[0] is not None

    def find_table(self, name: str) -> str | None:
        with translated(self.location):
            row = self.connection.execute(
                "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
                " where lower(c.relname) = lower($1) and c.relkind in ('r', 'v', 'm', 'f', 'p')"
                " and (pg_table_is_visible(c.oid) or n.nspname = $2)"
                " order by pg_table_is_visible(c.oid) desc limit 1",
                (name, self.schema),
            ).fetchone()
        return f"{quote_name(row[0])}.{quote_name(row[1])}" if row is not None else None

    def _faults(self) -> AbstractContextManager[None]:
        return translated(self.location)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self._control("savepoint millstream")
        try:
            yield
            # A deferred constraint fails here, where it rejects this unit alone, not at the COMMIT of all. What
            # was deferred is deferred again afterwards, for the units to come.
            self._control(
                "savepoint millstream_check; set constraints all immediate;"
                " rollback to savepoint millstream_check; release savepoint millstream"
            )
        except BaseException:
            if not self.connection.broken:
                self._control("rollback to savepoint millstream; release savepoint millstream")
            raise

    def _control(self, sql: str) -> None:
        with translated(self.location):
            self.connection.execute(sql)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield from self._between("begin isolation level read committed", "commit")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        yield from self._between("begin isolation level repeatable read read only", "rollback")

    def _between(self, begin: str, end: str) -> Iterator[None]:
        self._control(begin)
        try:
            yield
        except BaseException:
            if not self.connection.broken:
                self._control("rollback")
            raise
        self._control(end)

    def close(self) -> None:
        self.connection.close()


class GuardedDatabase(PostgresDatabase):
    """The writer's connection as user code sees it, inside a commit of the log."""

    def __init__(self, connection: Connection, schema: str, location: str) -> None:
        super().__init__(connection, schema, location)
        self._guard = Guard(schema)

    def execute(self, sql: str, params: Params = ()) -> Any:
        self._guard.check(parse(sql))
        return super().execute(sql, params)

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        self._guard.check(parse(sql))
        super().executemany(sql, rows)


__all__ = ["Connection", "GuardedDatabase", "PostgresDatabase"]
