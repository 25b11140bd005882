"""Read connections, kept for the next reader."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import LogClosed
from .database import connect
from .faults import translated

_IDLE = 8
_abandoned: list[sqlite3.Connection] = []


def abandon(*connections: sqlite3.Connection) -> None:
    """Keep connections that a fork has copied from ever being closed: that would disturb the parent's file."""
    _abandoned.extend(connections)


class ReaderPool:
    """Connections to a file for readers. No read transaction outlives a loan."""

    def __init__(self, path: str, *, immutable: bool = False) -> None:
        self._path = path
        self._immutable = immutable
        self._idle: list[sqlite3.Connection] = []
        self._mutex = threading.Lock()
        self._closed = False

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A connection, for as long as the block lasts."""
        connection = self._take()
        try:
            with translated(self._path):
                yield connection
        finally:
            self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        with self._mutex:
            if self._closed:
                raise LogClosed(self._path)
            if self._idle:
                return self._idle.pop()
        connection = connect(self._path, readonly=True, immutable=self._immutable)
        connection.execute("pragma cache_size = -16000")
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._mutex:
            if not self._closed and len(self._idle) < _IDLE:
                if connection.in_transaction:
                    connection.execute("rollback")
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle now, and the rest when it comes back."""
        with self._mutex:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle = []

    def abandon(self) -> None:
        """In a forked child: never use or close what the parent has opened."""
        abandon(*self._idle)


class SharedReader:
    """The one connection of a log in memory, lent to one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.mutex = threading.RLock()
        self._closed = False

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """The connection, for as long as the block lasts."""
        with self.mutex:
            if self._closed:
                raise LogClosed(":memory:")
            with translated(":memory:"):
                yield self._connection

    def close(self) -> None:
        """Close the connection; the log is gone."""
        with self.mutex:
            self._closed = True
            self._connection.close()
