"""DuckDB connections as a `Database`."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import (
    ConstraintViolated,
    DatabaseError,
    DiskFull,
    MillstreamError,
    MissingExtra,
    ReadOnlyLog,
    StorageError,
    UsageError,
)
from ..database import Cursor, Database, Params, no_params, no_rows, no_statement, spoiled
from ..forked import doors
from ..frames import check_upsert, on_conflict, quoted, quoted_column, upsert_sql

if TYPE_CHECKING:
    import polars as pl


_FEW = 20
"""Fewer rows than these are changed one by one: a table for them would take longer."""

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|::|:([A-Za-z_]\w*)", re.DOTALL)
_CONTROL = re.compile(r"\s*(begin|start|commit|rollback|abort|end)\b", re.IGNORECASE)

_writing: dict[str, threading.RLock] = {}
"""One writer of a file at a time, in the one process that may have it open: else one of two would be refused."""
_mutex = threading.Lock()
_open: weakref.WeakSet[DuckDatabase] = weakref.WeakSet()
_inherited: set[str] = set()
"""The files that the process which this one was forked from had open then: what is open of them is its, not ours."""


class DuckDatabase(Database):
    """A DuckDB connection as a `Database`."""

    dialect = "duckdb"
    blob = "blob"

    def __init__(self, connection: Any, path: str) -> None:
        self.connection = connection
        self.path = path
        self.files: Sequence[str] = (path,)
        self._opened_by = os.getpid()
        self._failed: list[str] = []
        """The statements of the transaction that have failed: shared with those who use it under a watch."""
        with _mutex:
            self._writing = _writing.setdefault(path, threading.RLock())

    def check_whole(self) -> None:
        if self._failed:
            raise spoiled("DuckDB")

    def execute(self, sql: str, params: Params = ()) -> Cursor:
        if not isinstance(sql, str):
            raise no_statement(sql)
        if self._watch is not None:
            self._watch.check(sql)
        if _CONTROL.match(sql):
            raise UsageError(
                "this statement is not for a transaction that belongs to somebody else",
                hint="Leave BEGIN, COMMIT and ROLLBACK to whoever handed the connection out",
            )
        try:
            with translated(self.path):
                found = self.connection.execute(_dollars(sql) if isinstance(params, Mapping) else sql, _values(params))
                return _Rows(found)
        except MillstreamError as error:
            if error.__cause__ is not None:  # the driver's
                self._failed.append(sql)
            raise

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        if not isinstance(rows, Iterable):
            raise no_rows(rows)
        for row in rows:
            self.execute(sql, row)

    def executescript(self, sql: str) -> None:
        if not isinstance(sql, str) or sql.strip(" \t\r\n;"):
            self.execute(sql)

    def insert(self, table: str, frame: pl.DataFrame) -> None:
        if frame.height:
            names = ", ".join(quoted_column(name) for name in frame.columns)
            with self._lent(frame) as lent:
                self.execute(f"insert into {quoted(table)} ({names}) select {names} from {lent}")

    def upsert(self, table: str, frame: pl.DataFrame, *, key: str | Sequence[str], add: Sequence[str] = ()) -> None:
        keys = check_upsert(frame, key, add, exact=True)
        if not frame.height:
            return
        if frame.height < _FEW or frame.select(keys).is_duplicated().any():
            # One statement changes a row once only.
            self.executemany(upsert_sql(table, frame.columns, keys, add, "?"), frame.rows())
            return
        names = ", ".join(quoted_column(name) for name in frame.columns)
        with self._lent(frame) as lent:
            self.execute(
                f"insert into {quoted(table)} ({names}) select {names} from {lent}"
                + on_conflict(table, frame.columns, keys, add)
            )

    @contextmanager
    def _lent(self, frame: pl.DataFrame) -> Iterator[str]:
        """A frame as a table that statements can read."""
        with translated(self.path):
            self.connection.register("millstream_lent", frame.to_arrow())
        try:
            yield "millstream_lent"
        finally:
            self.connection.unregister("millstream_lent")

    def own(self, name: str) -> str:
        return name

    def has_table(self, name: str) -> bool:
        return self.find_table(name) is not None

    def find_table(self, name: str) -> str | None:
        row = self.execute(
            "select table_name from information_schema.tables where table_schema = current_schema()"
            " and table_catalog = current_database() and lower(table_name) = lower(?)",
            (name,),
        ).fetchone()
        return quoted_column(row[0]) if row is not None else None

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        raise UsageError(
            "DuckDB has no savepoints", hint="Have the whole transaction fail, or keep the read model in SQLite"
        )
        yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._writing:
            yield from self._between("begin transaction", "commit")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        yield from self._between("begin transaction read only", "rollback")

    def _between(self, begin: str, end: str) -> Iterator[None]:
        self._failed.clear()
        with translated(self.path):
            self.connection.execute(begin)
        try:
            yield
            with translated(self.path):
                self.connection.execute(end)
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        try:
            with translated(self.path):
                self.connection.execute("rollback")
        except StorageError:
            pass  # it was over already

    def close(self) -> None:
        if self._opened_by != os.getpid():
            return  # to close it would write to a file that is the parent's
        with doors:
            self.connection.close()

    def _faults(self) -> AbstractContextManager[None]:
        return translated(self.path)


class _Rows:
    """What a statement has brought; how many rows it changed, where that is what it says."""

    def __init__(self, found: Any) -> None:
        # What is of no result is of no description; a change says in one row how many rows it was of.
        self.description = found.description
        self.rowcount = -1
        self._rows = found
        if self.description and len(self.description) == 1 and self.description[0][0] == "Count":
            rows = found.fetchall()
            self.rowcount = rows[0][0] if rows else 0
            self.description = None
            self._rows = None

    def fetchone(self) -> Any:
        return None if self._rows is None else self._rows.fetchone()

    def fetchall(self) -> list[Any]:
        return [] if self._rows is None else list(self._rows.fetchall())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())


def open_database(path: str, *, beside: Sequence[str] = ()) -> DuckDatabase:
    """Open a DuckDB file of one's own; all connections of a process to one file share what is open.

    Args:
        beside: Other files whose tables are shown too, the names in the first one first. They can be opened beside this
            one alone: a process that has them open by themselves is in the way.

    Raises:
        MissingExtra: DuckDB is not installed.
        StorageError: Another process has it open, the one that this was forked from above all; or its folder is not
            there.
        UsageError: It is no DuckDB file.
    """
    duckdb = _driver()
    _check_ours((path, *beside))
    try:
        with doors:
            connection = duckdb.connect(path)
            found = DuckDatabase(connection, beside[0] if beside else path)
            found.files = (path, *beside)
            _open.add(found)
        connection.execute("set timezone = 'UTC'")
        if beside:
            names = [_attached(connection, each) for each in beside]
            own = connection.execute("select current_database()").fetchone()[0]
            shown = ",".join(f"{quoted_column(name)}.main" for name in (*names, own))
            connection.execute(f"set search_path = '{shown}'")
    except duckdb.Error as error:
        said = str(error).partition("\n")[0]
        if "lock" in said:
            raise StorageError(
                f"{path} is open in another process",
                hint="DuckDB lets one process at a time have a file: keep the read model there and ask it there",
            ) from error
        if "not a valid DuckDB" in said:
            raise UsageError(
                f"{path} is no DuckDB file, so no read model can be kept in it",
                hint="Give the path of a read model, or of a new file",
            ) from error
        raise StorageError(f"{path} cannot be opened: {said}", hint="See that its folder is there") from error
    return found


def forget_database(path: str, of: str) -> None:
    """Let go of a file that was opened beside another one, so that it can be deleted."""
    with closing(open_database(of)) as db:
        db.execute(f"detach database if exists {quoted_column(_name(path))}")


def _check_ours(paths: Sequence[str]) -> None:
    for path in paths if _inherited else ():
        if os.path.realpath(path) in _inherited:
            raise StorageError(
                f"{path} was open in the process that this one was forked from",
                hint="DuckDB lets one process at a time have a file: ask it there; or stop the app before the fork, or"
                " make it after",
            )


def _forked() -> None:
    """In a forked child: the parent goes on with what it has open, whose threads are not here."""
    global _mutex
    _mutex = threading.Lock()
    _writing.clear()
    for database in list(_open):
        _inherited.update(os.path.realpath(path) for path in database.files)
        # Not even at the end of the process is it to be closed: that would write to the file.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(database.connection))
    _open.clear()


os.register_at_fork(after_in_child=_forked)


def _attached(connection: Any, path: str) -> str:
    name = _name(path)
    text = path.replace("'", "''")
    connection.execute(f"attach if not exists '{text}' as {quoted_column(name)}")
    return name


def _name(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _driver() -> Any:
    try:
        import duckdb
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtra("sql", "duckdb") from error
    return duckdb


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns the driver's exceptions raised inside into typed ones."""
    duckdb = _driver()
    try:
        yield
    except duckdb.Error as error:
        raise _typed(duckdb, error, path) from error


def _typed(duckdb: Any, error: Exception, path: str) -> MillstreamError:
    said = str(error).partition("\n")[0]
    if isinstance(error, duckdb.ConstraintException):
        return ConstraintViolated(said, hint="The transaction was rolled back; correct the row")
    if "read-only" in said:
        return ReadOnlyLog(path, hint="Write outside of what only reads")
    if isinstance(error, duckdb.OutOfMemoryException) or "No space left" in said:
        return DiskFull(path)
    if isinstance(error, duckdb.IOException | duckdb.FatalException | duckdb.TransactionException):
        return StorageError(f"{path}: {said}", hint="It is tried again")
    return DatabaseError(said, hint="Check the statement and its parameters")


def _dollars(sql: str) -> str:
    """A statement with its named parameters as DuckDB writes them."""
    return _TOKEN.sub(lambda found: f"${found[1]}" if found[1] else found[0], sql)


def _values(params: Params) -> Any:
    if isinstance(params, Mapping):
        return dict(params)
    if not isinstance(params, Iterable):
        raise no_params(params)
    return list(params)


__all__ = ["DuckDatabase", "forget_database", "open_database"]
