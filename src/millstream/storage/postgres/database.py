"""PostgreSQL connections as a `Database`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from ...errors import ReadOnlyLog
from ..database import ONLY_READS, Database, Params, no_rows, spoiled
from ..frames import check_upsert, insert_sql, on_conflict, quoted, quoted_column, upsert_sql
from .faults import translated
from .place import quote_name
from .sql import Guard, bind, parse

if TYPE_CHECKING:
    import polars as pl


Connection = psycopg.Connection[tuple[Any, ...]]

_MAKING = 1296649294
_FEW = 20
"""Fewer rows than these are changed one by one: a table for them would take longer."""


class PostgresDatabase(Database):
    """A PostgreSQL connection as a `Database`. The library's own tables stand in the log's schema."""

    dialect = "postgresql"
    blob = "bytea"

    def __init__(self, connection: Connection, schema: str, location: str) -> None:
        self.connection = connection
        self.schema = schema
        self.location = location

    def check_whole(self) -> None:
        if self.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            raise spoiled("PostgreSQL")

    def execute(self, sql: str, params: Params = ()) -> Any:
        if self._watch is not None:
            self._watch.check(sql)
        statement = parse(sql)
        values = bind(statement, params)
        with translated(self.location):
            return self.connection.execute(statement.text, values or None)

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        if self._watch is not None:
            self._watch.check(sql)
        statement = parse(sql)
        if not isinstance(rows, Iterable):
            raise no_rows(rows)
        with translated(self.location), self.connection.cursor() as cursor:
            cursor.executemany(statement.text, [bind(statement, row) for row in rows])

    def insert(self, table: str, frame: pl.DataFrame) -> None:
        if frame.height:
            self._may(insert_sql(table, frame.columns, "?"))
            self._copy(quoted(table), frame)

    def upsert(self, table: str, frame: pl.DataFrame, *, key: str | Sequence[str], add: Sequence[str] = ()) -> None:
        keys = check_upsert(frame, key, add, exact=True)
        if not frame.height:
            return
        one = upsert_sql(table, frame.columns, keys, add, "?")
        self._may(one)
        if frame.height < _FEW or frame.select(keys).is_duplicated().any():
            # One statement changes a row once only.
            self.executemany(one, frame.rows())
            return
        names = ", ".join(quoted_column(name) for name in frame.columns)
        with translated(self.location):
            self.connection.execute(
                f"create temp table millstream_upsert as select {names} from {quoted(table)} with no data"
            )
        self._copy("pg_temp.millstream_upsert", frame)
        with translated(self.location):
            self.connection.execute(
                f"insert into {quoted(table)} ({names}) select {names} from pg_temp.millstream_upsert"
                + on_conflict(table, frame.columns, keys, add)
            )
            self.connection.execute("drop table pg_temp.millstream_upsert")

    def _copy(self, target: str, frame: pl.DataFrame) -> None:
        names = ", ".join(quoted_column(name) for name in frame.columns)
        with (
            translated(self.location),
            self.connection.cursor() as cursor,
            cursor.copy(f"copy {target} ({names}) from stdin") as copy,
        ):
            for row in frame.iter_rows():
                copy.write_row(row)

    def _may(self, sql: str) -> None:
        """Refuse a statement that users may not run here."""
        if self._watch is not None:
            self._watch.check(sql)

    def executescript(self, sql: str) -> None:
        if parse(sql).first_words:
            self.execute(sql)

    def own(self, name: str) -> str:
        return f"{quote_name(self.schema)}.{quote_name(name)}"

    def make_alone(self) -> None:
        # Of two that create a table if it does not exist, at once, one fails.
        self.execute("select pg_advisory_xact_lock(?, hashtext(?))", (_MAKING, self.own("made")))

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

    def savepoint(self) -> AbstractContextManager[None]:
        return self._savepoint("release savepoint millstream")

    def unit(self) -> AbstractContextManager[None]:
        """A savepoint at whose end deferred constraints are checked: they reject it alone, not the COMMIT of all.

        What was deferred is deferred again afterwards, for the units to come.
        """
        return self._savepoint(
            "savepoint millstream_check; set constraints all immediate;"
            " rollback to savepoint millstream_check; release savepoint millstream"
        )

    @contextmanager
    def _savepoint(self, end: str) -> Iterator[None]:
        self._control("savepoint millstream")
        try:
            yield
            self._control(end)
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

    def _may(self, sql: str) -> None:
        super()._may(sql)
        self._guard.check(parse(sql))

    def execute(self, sql: str, params: Params = ()) -> Any:
        self._guard.check(parse(sql))
        return super().execute(sql, params)

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        self._guard.check(parse(sql))
        super().executemany(sql, rows)


class ReadingDatabase(PostgresDatabase):
    """A connection of a log for reading alone. It keeps from accidents: what a role may do is the server's to say."""

    def _may(self, sql: str) -> None:
        super()._may(sql)
        if not parse(sql).only_reads:
            raise ReadOnlyLog(self.location, hint=ONLY_READS)

    def execute(self, sql: str, params: Params = ()) -> Any:
        self._may(sql)
        return super().execute(sql, params)

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        self._may(sql)
        super().executemany(sql, rows)


__all__ = ["Connection", "GuardedDatabase", "PostgresDatabase", "ReadingDatabase"]
