"""What queries read: connections that show the tables of read models as one database, at one moment."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from ..storage.database import Database
from ..storage.duckdb.database import open_database as open_duck
from ..storage.sqlite.database import MEMORY, SQLiteDatabase, attached, connect
from ..storage.sqlite.forks import at_work, enter, is_left, leave, note_attached

if TYPE_CHECKING:
    from ..storage.postgres.schemas import Server

_KEPT = 8


class View(ABC):
    """Read-only connections for queries, each inside a transaction while it is lent."""

    @abstractmethod
    def take(self) -> Database:
        """A connection inside a read transaction; give it back. The same as `reading`, in a third of the time."""

    @abstractmethod
    def give_back(self, db: Database) -> None:
        """Say that a connection is not needed any more."""

    @abstractmethod
    def close(self) -> None:
        """Close what is idle."""

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A connection inside a read transaction, so that all statements see the same moment."""
        db = self.take()
        try:
            yield db
        finally:
            self.give_back(db)


class _Kept(SQLiteDatabase):
    """A connection with a cursor for what begins and ends its transactions."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        super().__init__(connection, path)
        self.control = connection.cursor().execute
        self.usual = 0
        """How often the connection is referred to when nobody keeps a cursor."""

    def close(self) -> None:
        with at_work:
            del self.control  # its cursor would hold on to what is closed
            super().close()

    def references(self) -> int:
        """How often the connection is referred to: by a cursor that somebody keeps, too."""
        return sys.getrefcount(self.connection)


class FilesView(View):
    """Read-only connections that show several files' tables as one database, kept for the next query."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._idle: list[_Kept] = []
        _open.add(self)

    def take(self) -> Database:
        enter()
        try:
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._opened()
            db.control("begin")  # takes no lock, and reads nothing: it cannot fail
        except BaseException:
            leave()
            raise
        return db

    def _opened(self) -> _Kept:
        db = _Kept(connect(self._paths[0], readonly=True), self._paths[0])
        try:
            for number, path in enumerate(self._paths[1:], start=1):
                db.execute(f"attach database ? as read{number}", (attached(path),))
                note_attached(db.connection, path)
        except BaseException:
            db.close()
            raise
        db.usual = db.references()
        return db

    def give_back(self, db: Database) -> None:
        assert isinstance(db, _Kept)
        try:
            if is_left(db.connection):
                return  # this is a child that was forked meanwhile
            if db.connection.in_transaction:
                db.control("rollback")
            # A cursor that is kept may hold it at the moment that it reads: the next query is to see the present.
            if len(self._idle) < _KEPT and db.references() == db.usual:
                self._idle.append(db)
            else:
                db.close()
        finally:
            leave()

    def close(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def leave_to_parent(self) -> None:
        """After a fork: the parent's connections are not to be used here."""
        self._idle = []


_open: weakref.WeakSet[FilesView] = weakref.WeakSet()


def _forked() -> None:
    for view in list(_open):
        view.leave_to_parent()


os.register_at_fork(after_in_child=_forked)


class ServerView(View):
    """Connections to a PostgreSQL database that look into the schemas of read models first."""

    def __init__(self, server: Server, schemas: list[str]) -> None:
        self._server = server
        self._schemas = schemas

    def take(self) -> Database:
        return self._server.take(self._schemas)

    def give_back(self, db: Database) -> None:
        self._server.give_back(db)

    def close(self) -> None:
        self._server.close()


class DuckView(View):
    """Connections to a DuckDB file, and to files that were built beside it."""

    def __init__(self, path: str, beside: Sequence[str] = ()) -> None:
        self._path = path
        self._beside = beside
        self._lent: dict[int, ExitStack] = {}

    def take(self) -> Database:
        with ExitStack() as stack:
            db = open_duck(self._path, beside=self._beside)
            stack.callback(db.close)
            stack.enter_context(db.snapshot())
            self._lent[id(db)] = stack.pop_all()
        return db

    def give_back(self, db: Database) -> None:
        self._lent.pop(id(db)).close()

    def close(self) -> None:
        """Nothing is idle."""


class Views:
    """The views of an app, each kept for the next query."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], View] = {}
        self._mutex = threading.Lock()

    def of_files(self, paths: list[str]) -> View:
        """What shows SQLite files, the names in the first one first."""
        key = tuple(paths)
        with self._mutex:
            if key not in self._known:
                for gone in [known for known, view in self._known.items() if _is_gone(known, view)]:
                    self._known.pop(gone).close()
            return self._known.setdefault(key, FilesView(paths))

    def of_duck(self, home: str, beside: Sequence[str]) -> View:
        """What shows a DuckDB file, and files that were built beside it."""
        with self._mutex:
            return self._known.setdefault((home, *beside), DuckView(home, beside))

    def of_server(self, server: Server, schemas: list[str]) -> View:
        """What shows schemas of a PostgreSQL database, the names in the first one first."""
        with self._mutex:
            return self._known.setdefault((server.key, *schemas), ServerView(server, schemas))

    def forked(self) -> None:
        """In a forked child: who held the lock may not be here."""
        self._mutex = threading.Lock()

    def drop(self, path: str) -> None:
        """Close what shows a file that is gone."""
        with self._mutex:
            for key in [key for key in self._known if path in key]:
                self._known.pop(key).close()

    def close(self) -> None:
        """Close their connections."""
        with self._mutex:
            for view in self._known.values():
                view.close()
            self._known.clear()


def _is_gone(key: tuple[object, ...], view: View) -> bool:
    paths = [path for path in key if isinstance(path, str) and not path.startswith(MEMORY)]
    return isinstance(view, FilesView) and not all(map(os.path.exists, paths))
