"""Read-only connections that show the tables of several files as one database."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from ..storage.database import Database
from ..storage.sqlite.database import open_database

_KEPT = 8
_left_to_parent: list[Database] = []


class View:
    """Read-only connections that show several files' tables as one database, kept for the next query."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._idle: list[Database] = []
        self._mutex = threading.Lock()
        self._process = os.getpid()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A connection inside a read transaction, so that all statements see the same moment."""
        db = self._take()
        try:
            with db.snapshot():
                yield db
        finally:
            self._give_back(db)

    def _take(self) -> Database:
        with self._mutex:
            if self._process != os.getpid():
                # A fork: the parent's connections are not to be used or closed here.
                _left_to_parent.extend(self._idle)
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        db = open_database(self._paths[0], readonly=True)
        try:
            for number, path in enumerate(self._paths[1:], start=1):
                db.execute(f"attach database ? as read{number}", (f"file:{quote(path)}?mode=ro",))
        except BaseException:
            db.close()
            raise
        return db

    def _give_back(self, db: Database) -> None:
        with self._mutex:
            if len(self._idle) < _KEPT:
                self._idle.append(db)
                return
        db.close()

    def close(self) -> None:
        with self._mutex:
            if self._process == os.getpid():
                for db in self._idle:
                    db.close()
            self._idle = []
