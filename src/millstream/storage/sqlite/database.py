"""`Database`: a SQLite connection as users of the library see it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .faults import translated

if TYPE_CHECKING:
    import polars as pl

Params = Sequence[Any] | Mapping[str, Any]


class Database:
    """A SQL connection. Inside ``log.transaction()`` it shares the transaction of the appends.

    Errors of the driver leave it as `DatabaseError` and its kin. Transactions belong to whoever handed the
    connection out: statements such as COMMIT are not for its users.
    """

    def __init__(self, connection: sqlite3.Connection, path: str = "") -> None:
        self.connection = connection
        self.path = path

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        """Run one statement and return its cursor.

        Raises:
            ConstraintViolated: A constraint rejects a row.
            DatabaseError: The statement is wrong.
        """
        with translated(self.path):
            return self.connection.execute(sql, params)

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        """Run one statement for each of the rows."""
        with translated(self.path):
            self.connection.executemany(sql, rows)

    def executescript(self, sql: str) -> None:
        """Run several statements, inside the transaction that is open (nothing is committed)."""
        for statement in statements(sql):
            self.execute(statement)

    def query(self, sql: str, params: Params = ()) -> list[dict[str, Any]]:
        """All rows of a query, as dicts."""
        cursor = self.execute(sql, params)
        names = [column[0] for column in cursor.description or ()]
        with translated(self.path):
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def one(self, sql: str, params: Params = ()) -> dict[str, Any] | None:
        """The first row of a query as a dict, or None."""
        cursor = self.execute(sql, params)
        with translated(self.path):
            row = cursor.fetchone()
        if row is None:
            return None
        return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}

    def frame(self, sql: str, params: Params = ()) -> pl.DataFrame:
        """All rows of a query as a Polars frame."""
        import polars as pl

        cursor = self.execute(sql, params)
        names = [column[0] for column in cursor.description or ()]
        with translated(self.path):
            rows = cursor.fetchall()
        return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Statements inside happen together or not at all, within the transaction around them."""
        self._control("savepoint millstream")
        try:
            yield
        except BaseException:
            # A full disk makes SQLite give up the whole transaction, savepoints and all.
            if self.connection.in_transaction:
                self._control("rollback to millstream")
                self._control("release millstream")
            raise
        self._control("release millstream")

    def _control(self, sql: str) -> None:
        """Run a statement that begins or ends something, on behalf of this class."""
        self.execute(sql)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction of a database of one's own: committed at the end, rolled back on an error."""
        self.execute("begin immediate")
        try:
            yield
            self.execute("commit")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("rollback")
            raise

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one (triggers and strings may hold semicolons)."""
    rest = ""
    for piece in script.split(";"):
        rest += piece + ";"
        if sqlite3.complete_statement(rest):
            if rest.strip(" \t\r\n;"):
                yield rest
            rest = ""
    if rest.strip(" \t\r\n;"):
        yield rest


def connect(
    path: str,
    *,
    readonly: bool = False,
    immutable: bool = False,
    synchronous: str = "FULL",
    timeout: float = 30.0,
) -> sqlite3.Connection:
    """A connection set up the way this library uses SQLite: WAL, explicit transactions, any thread.

    Args:
        immutable: Nobody writes the file, and its folder takes no file beside it: read it without any lock.
    """
    uri = path != ":memory:"
    target = _uri(path, readonly, immutable) if uri else path
    with translated(path, lock_timeout=timeout):
        connection = sqlite3.connect(
            target,
            uri=uri,
            isolation_level=None,
            check_same_thread=False,
            timeout=timeout,
            cached_statements=256,
        )
        try:
            if not readonly and path != ":memory:":
                connection.execute("pragma journal_mode = wal")
            connection.execute(f"pragma synchronous = {synchronous}")
            connection.execute("pragma foreign_keys = on")
        except BaseException:
            connection.close()
            raise
    return connection


def _uri(path: str, readonly: bool, immutable: bool) -> str:
    mode = "ro&immutable=1" if immutable else "ro" if readonly else "rwc"
    return f"file:{quote(path)}?mode={mode}"


def open_database(path: str, *, synchronous: str = "FULL", readonly: bool = False) -> Database:
    """Open a SQLite file of one's own, such as a read model's."""
    return Database(connect(path, readonly=readonly, synchronous=synchronous), path)
