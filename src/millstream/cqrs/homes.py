"""The home of a read model: the database that its projection was given, and where versions stand beside it."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from typing import Any, NamedTuple

from ..errors import MissingExtra, UsageError
from ..log import Log
from ..storage.database import Database
from ..storage.duckdb.database import forget_database as forget_duck
from ..storage.duckdb.database import open_database as open_duck
from ..storage.redact import redact
from ..storage.sqlite.database import MEMORY, open_database
from .places import InDuck, InLog, OnServer, OwnFile, Target

_DUCK = (".duckdb", ".ddb")
_LONGEST = 63
"""The most bytes of a name in PostgreSQL."""


class Kind(StrEnum):
    """What a read model is kept in."""

    LOG = "log"
    FILE = "file"
    MEMORY = "memory"
    DUCKDB = "duckdb"
    POSTGRESQL = "postgresql"


def kind_of(path: str | None) -> Kind:
    """What the argument of ``into()`` stands for.

    Raises:
        UsageError: A URL of nothing that read models are kept in.
    """
    if path is None:
        return Kind.LOG
    if path == ":memory:":
        return Kind.MEMORY
    if path.startswith(("postgresql://", "postgres://")):
        return Kind.POSTGRESQL
    if "://" in path:
        raise UsageError(
            f"{redact(path)!r:.80} is no place for a read model",
            hint="Give a file (read.db, read.duckdb), ':memory:' or postgresql://user@host/database",
        )
    return Kind.DUCKDB if path.endswith(_DUCK) else Kind.FILE


FILES: tuple[object, ...] = (Kind.FILE,)
"""What one connection to SQLite shows: any files, the log's among them, and what is in memory."""


class Spot(NamedTuple):
    """Where the version that answers stands, as whoever asks it needs to know.

    Attributes:
        kind: What it is kept in.
        path: Its file, if it is one.
        schema: Its schema, if it has one.
        server: The database that the schema is in.
        home: The DuckDB file that it stands beside, or in.
    """

    kind: Kind
    path: str = ""
    schema: str = ""
    server: Any = None
    home: str = ""

    @property
    def reach(self) -> tuple[object, ...]:
        """What one connection shows together with it: all spots of the same reach."""
        if self.server is not None:
            return (Kind.POSTGRESQL, self.server.key)
        if self.kind is Kind.DUCKDB or not self.path:
            return (self.kind, self.home or self.path)
        return FILES


class Home:
    """The database that a projection was given, and the versions that were built beside it.

    The home says which version answers. The first one's tables stand in the home itself, those of each later one beside
    it: in a file of its own or, in PostgreSQL, in a schema of its own.

    Attributes:
        kind: What it is.
        target: The home's database.
    """

    def __init__(self, log: Log, name: str, path: str | None) -> None:
        self.kind = kind_of(path)
        self._name = name
        self._held: dict[str, Database] = {}
        self._server: Any = None
        self._schema = ""
        self._path = path or log.path
        self._location: str | None = path
        if self.kind is Kind.LOG:
            self.target: Target = InLog(log)
            if log.location and not log.path:
                self._server = _server(log.store.place)  # type: ignore[attr-defined]
                self._schema = self._server.place.schema
        elif self.kind is Kind.POSTGRESQL:
            self._server = _server(path or "")
            self._schema, self._location = self._server.place.schema, self._server.place.location
            self.target = OnServer(self._server, self._schema, ours=False)
        elif self.kind is Kind.MEMORY:
            self._path = f"{MEMORY}{name}-{uuid.uuid4().hex}"
            self.target = self._memory(self._path)
        elif self.kind is Kind.DUCKDB:
            self.target = self._duck(self._path)
        else:
            if log.path and os.path.realpath(self._path) == os.path.realpath(log.path):
                raise UsageError(
                    f"{path} is the log's own file",
                    hint=f"Write {name}.into() to keep a read model in the log's database, or give another file",
                )
            self.target = OwnFile(self._path)

    @property
    def has_room(self) -> bool:
        """Whether another version can be built beside it."""
        return bool(self._path) or self._server is not None

    @property
    def is_shared(self) -> bool:
        """Whether other processes see it: one of all keeps it then."""
        return self.kind is not Kind.MEMORY

    def room(self, name: str, number: int) -> str:
        """A place for a new version."""
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        if self._server is not None:
            end = f"_{number}"
            return f"{self._schema}_{plain.lower()}"[: _LONGEST - len(end)] + end
        stem, suffix = os.path.splitext(os.path.basename(self._path))
        return f"{stem}.{plain}.{number}{suffix}"

    def at(self, place: str) -> Target:
        """The database of a version."""
        if not place:
            return self.target
        if self._server is not None:
            return OnServer(self._server, place, ours=True)
        if self.kind is Kind.MEMORY:
            return self._memory(self.file(place))
        return self._duck(self.file(place)) if self.kind is Kind.DUCKDB else OwnFile(self.file(place))

    def file(self, place: str) -> str:
        """The file of a version that was built beside the home."""
        if self.kind is Kind.MEMORY:
            return f"{MEMORY}{place}" if place else self._path
        return os.path.join(os.path.dirname(self._path), place)

    def spot(self, place: str) -> Spot:
        """Where a version stands, for those who ask it."""
        if self._server is not None:
            # The first version beside a log stands where its role looks anyway, and not among the log's tables.
            schema = place if self.kind is Kind.LOG else place or self._schema
            return Spot(self.kind, schema=schema, server=self._server)
        if self.kind is Kind.LOG and not place:
            return Spot(Kind.LOG, self._path)
        path = self.file(place) if place else self._path
        kind = Kind.FILE if self.kind is Kind.LOG else self.kind
        path = path if path.startswith(MEMORY) else os.path.abspath(path)
        return Spot(kind, path, home=os.path.abspath(self._path) if kind is Kind.DUCKDB else "")

    def path(self, place: str) -> str | None:
        """The file (or URL and schema) that a version's tables are in; None for the log's own database."""
        if not place:
            return self._location
        return f"schema {place}" if self._server is not None else self.file(place)

    def remove(self, place: str) -> None:
        """Delete what a version stood in."""
        if self._server is not None:
            self._server.drop(place)
            return
        path = self.file(place)
        held = self._held.pop(path, None)
        if held is not None:
            held.close()
        if self.kind is Kind.DUCKDB:
            forget_duck(path, self._path)
        if self.kind is not Kind.MEMORY:
            for end in ("", "-wal", "-shm", ".wal"):
                with suppress(FileNotFoundError):
                    os.unlink(path + end)

    @contextmanager
    def apart(self) -> Iterator[Target]:
        """A database of the same kind that is gone afterwards."""
        if self._server is not None:
            schema = f"millstream_apart_{uuid.uuid4().hex[:16]}"
            try:
                yield OnServer(self._server, schema, ours=True)
            finally:
                self._server.drop(schema)
            return
        with tempfile.TemporaryDirectory(prefix="millstream-") as folder:
            if self.kind is Kind.DUCKDB:
                path = os.path.join(folder, "apart.duckdb")
                with closing(open_duck(path)):
                    yield InDuck(path)
            else:
                yield OwnFile(os.path.join(folder, "apart.db"))

    def _memory(self, path: str) -> OwnFile:
        # What is in memory is there for as long as it is open somewhere.
        if path not in self._held:
            self._held[path] = open_database(path)
        return OwnFile(path)

    def _duck(self, path: str) -> InDuck:
        # To open a file takes milliseconds, to open it again nothing.
        home = "" if path == self._path else self._path
        if path not in self._held:
            self._held[path] = open_duck(home, beside=[path]) if home else open_duck(path)
        return InDuck(path, home)

    def fork(self) -> None:
        """Before a fork: have no DuckDB file open that nobody uses just now, which the child could not open then."""
        if self.kind is Kind.DUCKDB:
            self.let_go()

    def let_go(self) -> None:
        """Close connections that are only kept to be quick, or to keep others out."""
        if self._server is not None:
            self._server.close()
        if self.kind is Kind.DUCKDB:
            while self._held:
                with suppress(KeyError):
                    self._held.popitem()[1].close()


def _server(place: Any) -> Any:
    """The database that a URL or the place of a log names."""
    try:
        from ..storage.postgres.schemas import Server, server_of
    except ImportError as error:
        raise MissingExtra("postgres", "psycopg") from error
    return server_of(place) if isinstance(place, str) else Server(place)
