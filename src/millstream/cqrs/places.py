"""Where read models are kept: databases that a worker writes to, and where the versions of a read model stand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from ..errors import NotALog, UsageError
from ..log import Log
from ..storage.database import Database
from ..storage.sqlite.database import open_database
from .inline import BATCH, HOLD
from .projection import ROWS, Placement


class Target(Protocol):
    """A database that a read model is kept in, and how a worker writes to it."""

    pieces: int
    """How many events to decode ahead."""
    rows: int
    """The most events for one batch."""
    hold: float
    """The longest time, in seconds, for one transaction."""

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a write transaction; it may run more than once."""

    def reading(self) -> AbstractContextManager[Database]:
        """A connection to read with."""

    def kept_open(self) -> AbstractContextManager[Target]:
        """The same with one connection for all that follows, on one thread."""


class OwnFile:
    """A read model's own file. A power cut may undo its last moments, of rows and checkpoint alike."""

    pieces = 5_000
    rows = ROWS
    hold = 0.25

    def __init__(self, path: str) -> None:
        self.path = path

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a write transaction on a connection of its own."""
        db = self._open()
        try:
            with db.transaction():
                work(db)
        finally:
            db.close()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A read-only connection of its own."""
        db = open_database(self.path, readonly=True)
        try:
            yield db
        finally:
            db.close()

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same with one connection for all that follows, on one thread."""
        db = self._open()
        try:
            yield _OpenFile(db)
        finally:
            db.close()

    def _open(self) -> Database:
        try:
            return open_database(self.path, synchronous="NORMAL")
        except NotALog as error:
            raise UsageError(
                f"{self.path} is no SQLite database, so no read model can be kept in it",
                hint="Give the path of a read model, or of a new file",
            ) from error


class _OpenFile:
    pieces = OwnFile.pieces
    rows = OwnFile.rows
    hold = OwnFile.hold

    def __init__(self, db: Database) -> None:
        self._db = db

    def transact(self, work: Callable[[Database], None]) -> None:
        with self._db.transaction():
            work(self._db)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        yield self._db

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        yield self


class InLog:
    """A read model in the log's own database, written through the log's committer, a little at a time."""

    pieces = 500
    rows = BATCH
    hold = HOLD

    def __init__(self, log: Log) -> None:
        self._log = log

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a commit of the log."""
        self._log.commit(work=lambda db, receipt: work(db))

    def reading(self) -> AbstractContextManager[Database]:
        """One of the log's read connections."""
        return self._log.connect()

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same: the log keeps its connection open."""
        yield self


class Home:
    """The database that a projection was given, and the files of the versions that were built beside it.

    The home says which version answers. The first one's tables stand in the home itself, those of each later one in a
    file of its own beside it.

    Attributes:
        target: The home's database.
    """

    def __init__(self, log: Log, placement: Placement) -> None:
        path = placement.path
        if path is not None and log.path and os.path.realpath(path) == os.path.realpath(log.path):
            raise UsageError(
                f"{path} is the log's own file",
                hint=f"Write {placement.name}.into() to keep a read model in the log's database, or give another file",
            )
        self.target: OwnFile | InLog = OwnFile(path) if path is not None else InLog(log)
        self._path = path if path is not None else log.path
        self._in_log = path is None

    @property
    def has_room(self) -> bool:
        """Whether another version can be built beside it."""
        return bool(self._path)

    def room(self, name: str, number: int) -> str:
        """A place for a new version."""
        stem, suffix = os.path.splitext(os.path.basename(self._path))
        return f"{stem}.{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.{number}{suffix}"

    def at(self, place: str) -> OwnFile | InLog:
        """The database of a version."""
        return OwnFile(self.file(place)) if place else self.target

    def file(self, place: str) -> str:
        """The file of a version that was built beside the home."""
        return os.path.join(os.path.dirname(self._path), place)

    def path(self, place: str) -> str | None:
        """The file that a version's tables are in; None for the log's own database."""
        if place:
            return self.file(place)
        return None if self._in_log else self._path

    def remove(self, place: str) -> None:
        """Delete the file of a version."""
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self.file(place) + end)
