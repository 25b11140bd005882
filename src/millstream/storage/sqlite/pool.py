"""Read connections, kept for the next reader."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import LogClosed
from .database import connect
from .faults import translate, translated
from .forks import at_work, enter, leave

_IDLE = 8


class Loan:
    """A connection of a pool, for as long as a block lasts. What SQLite raises in it is an error of ours outside.

    Most reads take a few microseconds, of which generators as context managers would be a good part.
    """

    __slots__ = ("_connection", "_pool", "_thread")

    def __init__(self, pool: ReaderPool) -> None:
        self._pool = pool

    def __enter__(self) -> sqlite3.Connection:
        self._thread = enter()  # another one may end the block: a web server's, of which each does a part
        try:
            self._connection = self._pool.take()
        except BaseException:
            leave(self._thread)
            raise
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._pool.give_back(self._connection)
        finally:
            leave(self._thread)
        if isinstance(error, sqlite3.Error):
            raise translate(error, self._pool.path) from error


class ReaderPool:
    """Connections to a file for readers. No read transaction outlives a loan."""

    def __init__(self, path: str, file: str, *, immutable: bool = False) -> None:
        self.path = path
        self._file = file
        self._immutable = immutable
        self._idle: list[sqlite3.Connection] = []
        self._mutex = threading.Lock()
        self._closed = False

    def reader(self) -> Loan:
        """A connection, for as long as the block lasts."""
        return Loan(self)

    def take(self) -> sqlite3.Connection:
        """A connection; give it back."""
        with self._mutex:
            if self._closed:
                raise LogClosed(self.path)
            if self._idle:
                return self._idle.pop()
        connection = connect(self._file, readonly=True, immutable=self._immutable, name=self.path)
        connection.execute("pragma cache_size = -16000")
        return connection

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Say that a connection is not needed any more."""
        with self._mutex:
            if not self._closed and len(self._idle) < _IDLE:
                if connection.in_transaction:
                    connection.execute("rollback")
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle now, and the rest when it comes back."""
        with at_work, self._mutex:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle = []


class SharedReader:
    """The one connection of a log in memory, lent to one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.mutex = threading.RLock()
        self._closed = False

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """The connection, for as long as the block lasts."""
        with at_work, self.mutex:
            if self._closed:
                raise LogClosed(":memory:")
            with translated(":memory:"):
                yield self._connection

    def close(self) -> None:
        """Close the connection; the log is gone."""
        with self.mutex:
            self._closed = True
            self._connection.close()
