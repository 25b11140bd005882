"""Read-only connections that show the tables of several files as one database."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from ..storage.database import Database
from ..storage.sqlite.database import SQLiteDatabase, open_database

_KEPT = 8
_left_to_parent: list[Database] = []


class View:
    """Read-only connections that show several files' tables as one database, kept for the next query."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._idle: list[SQLiteDatabase] = []
        self._mutex = threading.Lock()
        self._process = os.getpid()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A connection inside a read transaction, so that all statements see the same moment."""
        db = self.take()
        try:
            yield db
        finally:
            self.give_back(db)

    def take(self) -> Database:
        """A connection inside a read transaction; give it back. The same as `reading`, in a third of the time."""
        db = self._idle_one()
        db.connection.execute("begin")  # takes no lock, and reads nothing: it cannot fail
        return db

    def _idle_one(self) -> SQLiteDatabase:
        if self._process != os.getpid():
            with self._mutex:
                if self._process != os.getpid():
                    # A fork: the parent's connections are not to be used or closed here.
                    _left_to_parent.extend(self._idle)
                    self._idle, self._process = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        db = open_database(self._paths[0], readonly=True)
        try:
            for number, path in enumerate(self._paths[1:], start=1):
                db.execute(f"attach database ? as read{number}", (f"file:{quote(path)}?mode=ro",))
        except BaseException:
            db.close()
            raise
        return db

    def give_back(self, db: Database) -> None:
        """Say that a connection is not needed any more."""
        assert isinstance(db, SQLiteDatabase)
        if db.connection.in_transaction:
            db.connection.execute("rollback")
        if len(self._idle) < _KEPT:
            self._idle.append(db)
        else:
            db.close()

    def close(self) -> None:
        with self._mutex:
            if self._process == os.getpid():
                for db in self._idle:
                    db.close()
            self._idle = []
