"""Where read models are kept: the databases that a worker writes to, in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Protocol

from ..errors import NotALog, UsageError
from ..log import Log
from ..storage.database import Database
from ..storage.duckdb.database import open_database as open_duck
from ..storage.sqlite.database import open_database
from ..storage.sqlite.forks import Tracked, at_work
from .inline import BATCH, HOLD
from .projection import ROWS

if TYPE_CHECKING:
    from ..storage.postgres.schemas import Server


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
        with at_work, closing(self._open()) as db, db.transaction():
            work(db)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A read-only connection of its own."""
        with at_work, closing(open_database(self.path, readonly=True)) as db:
            yield db

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same with one connection for all that follows, on one thread."""
        with closing(self._open()) as db:
            yield _OpenFile(db, self)

    def _open(self) -> Database:
        try:
            return open_database(self.path, synchronous="NORMAL", kind=Tracked)
        except NotALog as error:
            raise UsageError(
                f"{self.path} is no SQLite database, so no read model can be kept in it",
                hint="Give the path of a read model, or of a new file",
            ) from error


class _Open:
    def __init__(self, db: Database, like: Target) -> None:
        self._db = db
        self.pieces, self.rows, self.hold = like.pieces, like.rows, like.hold

    def transact(self, work: Callable[[Database], None]) -> None:
        with self._db.transaction():
            work(self._db)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        yield self._db

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        yield self


class _OpenFile(_Open):
    def transact(self, work: Callable[[Database], None]) -> None:
        with at_work:
            super().transact(work)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        with at_work:
            yield self._db


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


class OnServer:
    """A version of a read model in a schema of a PostgreSQL database, by connections of its own."""

    pieces = 5_000
    rows = ROWS
    hold = 0.25

    def __init__(self, server: Server, schema: str, *, ours: bool) -> None:
        self.schema = schema
        self._server = server
        self._ours = ours
        self._made = False

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a write transaction on a connection of its own."""
        self._make()
        with self._server.lend([self.schema]) as db, db.transaction():
            work(db)

    def is_there(self) -> bool:
        """Whether the schema has been made."""
        with self.reading() as db:
            return db.one("select 1 as one from pg_namespace where nspname = ?", (self.schema,)) is not None

    def reading(self) -> AbstractContextManager[Database]:
        """A connection to read with."""
        return self._server.lend([self.schema])

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same with one connection for all that follows, on one thread."""
        self._make()
        with self._server.lend([self.schema]) as db:
            yield _Open(db, self)

    def _make(self) -> None:
        if not self._made:
            self._server.ensure(self.schema, ours=self._ours)
            self._made = True


class InDuck:
    """A read model's own DuckDB file, which one process at a time can have open.

    Args:
        home: The file that it was built beside, and that it is opened with: what one connection is to show has to be
            open in one place.
    """

    pieces = 20_000
    rows = ROWS
    hold = 0.5

    def __init__(self, path: str, home: str = "") -> None:
        self.path = path
        self._home = home

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a write transaction on a connection of its own."""
        with self.reading() as db, db.transaction():
            work(db)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A connection of its own."""
        with closing(open_duck(self._home, beside=[self.path]) if self._home else open_duck(self.path)) as db:
            yield db

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same with one connection for all that follows, on one thread."""
        with self.reading() as db:
            yield _Open(db, self)
