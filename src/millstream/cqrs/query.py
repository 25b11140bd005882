"""Queries: what is asked of the read side, answered from read models that may be told to be fresh."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from ..errors import DatabaseError, InvalidPosition, ReadOnlyLog, StorageError, TimedOut, UsageError
from ..log import Log
from ..log.handlers import InvalidHandler
from ..storage.base import Receipt
from ..storage.database import Database
from ..storage.sqlite.database import open_database
from .binding import message_type, named, parameters
from .command import MessageMeta
from .errors import DuplicateHandler, ForeignReadModel, ReadModelChanged, UnknownQuery
from .follower import Follower
from .projection import Placement, Projection

Result = TypeVar("Result", covariant=True)


class Query(msgspec.Struct, Generic[Result], metaclass=MessageMeta):
    """Base class of queries: immutable, typed questions, generic in what answers them.

    Example:
        >>> import millstream as ms
        >>> class GetOrder(ms.Query[dict]):
        ...     order: str
        >>> GetOrder("order-1")
        GetOrder(order='order-1')
    """


class _Handler(msgspec.Struct, frozen=True):
    function: Callable[..., Any]
    query: str
    database: str
    """The name of the parameter that takes the database; empty without one."""
    reads: tuple[Placement, ...] | None
    """The read models that it declares to use; None: any."""


class Queries:
    """The handlers of queries, and the databases that they read.

    A handler's ``db`` shows the tables of the read models that it declares to use, or of all of them, whichever
    file they lie in: unqualified names find them. What it shows is of one moment for as long as the handler
    runs. Beside read models in files, the tables of the log's own database are shown when that is a file too: no
    connection shows both a file and a log in PostgreSQL or in memory.
    """

    def __init__(self, log: Log, placements: Sequence[Placement], followers: dict[str, Follower]) -> None:
        self._log = log
        self._placements = placements
        self._followers = followers
        self._handlers: dict[type[Any], _Handler] = {}
        self._views: dict[tuple[str, ...], _View] = {}

    def register(
        self, function: Callable[..., Any], frame: FrameType, reads: Sequence[type[Projection]] | None
    ) -> None:
        """Have a function answer the query that its annotation names.

        Raises:
            InvalidHandler: A parameter cannot be filled by its type.
            DuplicateHandler: The query has a handler already.
            UsageError: It declares to read what no connection shows at once, or what is not of this app.
        """
        found = parameters(function, frame)
        name, query = message_type(function, found, Query)
        if query in self._handlers:
            first = self._handlers[query].function
            raise DuplicateHandler(query.__name__, getattr(first, "__qualname__", repr(first)))
        database = ""
        for parameter in found:
            if named(parameter.annotation, "Database") or (parameter.annotation is None and parameter.name == "db"):
                database = parameter.name
            elif parameter.name != name and parameter.required:
                raise InvalidHandler(
                    getattr(function, "__qualname__", repr(function)),
                    f"parameter {parameter.name!r} is nothing that a query can give",
                    hint="Ask for the query and for db: ms.Database",
                )
        declared = self._declared(reads)
        if database and declared is not None and self._apart(declared):
            raise UsageError(
                f"{query.__name__} reads tables in the log's database and read models in files, and no connection to a"
                f" log {_kind(self._log)} shows both",
                hint="Keep them in one place, such as OrderSummary.into(); or answer it with two queries",
            )
        self._handlers[query] = _Handler(function, name, database, declared)

    def _declared(self, reads: Sequence[type[Projection]] | None) -> tuple[Placement, ...] | None:
        if reads is None:
            return None
        by_class = {placement.projection: placement for placement in self._placements}
        for projection in reads:
            if projection not in by_class:
                raise UsageError(
                    f"{getattr(projection, '__name__', projection)} is not a projection of this app",
                    hint="Give it to ms.App(projections=[…])",
                )
        return tuple(by_class[projection] for projection in reads)

    def _apart(self, wanted: Sequence[Placement]) -> bool:
        """Whether some of these are kept in files, and others where those cannot be shown with them."""
        paths = [placement.path for placement in wanted]
        return not self._log.path and None in paths and any(path is not None for path in paths)

    def answer(self, query: Query[Result], *, after: Receipt | int | None, timeout: float) -> Result:
        """Answer a query; see ``App.query``."""
        handler = self._handlers.get(type(query))
        if handler is None:
            raise UnknownQuery(type(query).__name__)
        for placement in self._wanted(handler):
            follower = self._followers.get(placement.name)
            if follower is not None and isinstance(follower.failure, (ForeignReadModel, ReadModelChanged)):
                raise follower.failure
        if after is not None:
            self._await(handler, self._position(after), timeout)
        if not handler.database:
            return handler.function(**{handler.query: query})  # type: ignore[no-any-return]
        before = self._versions(handler)
        try:
            return self._ask(handler, query)
        except StorageError:
            # Another version may have taken the place of the one that was asked, in that very moment.
            for placement in self._wanted(handler):
                if (follower := self._followers.get(placement.name)) is not None:
                    follower.look()
            if self._versions(handler) == before:
                raise
            return self._ask(handler, query)

    def _wanted(self, handler: _Handler) -> Sequence[Placement]:
        return self._placements if handler.reads is None else handler.reads

    def _versions(self, handler: _Handler) -> list[int]:
        """The versions of the read models that the handler is shown."""
        followers = (self._followers.get(placement.name) for placement in self._wanted(handler))
        return [follower.number for follower in followers if follower is not None]

    def _ask(self, handler: _Handler, query: Query[Result]) -> Result:
        try:
            with self._database(handler) as db:
                return handler.function(**{handler.query: query, handler.database: db})  # type: ignore[no-any-return]
        except ReadOnlyLog as error:
            raise UsageError(
                f"the handler of {type(query).__name__} writes, and queries only read",
                hint="Write in a command's aggregates, or in the handlers of a projection",
            ) from error
        except DatabaseError as error:
            if "no such table" not in error.message or not self._apart(self._placements):
                raise
            raise DatabaseError(
                f"{error.message}; the handler of {type(query).__name__} is shown the read models in files alone, for"
                f" the log is {_kind(self._log)}",
                hint="Say which read models it reads: @app.query(reads=[…])",
            ) from error

    def _position(self, after: object) -> int:
        position = after.position if isinstance(after, Receipt) else after
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise InvalidPosition(f"after={after!r:.60} is not a position", hint="Give a receipt or a position")
        if position > (head := self._log.head):
            raise InvalidPosition(
                f"after={position} is beyond the log, which ends at {head}", hint="Give a receipt of this very log"
            )
        return position

    def _await(self, handler: _Handler, position: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for placement in self._wanted(handler):
            follower = self._followers.get(placement.name)
            if follower is None or follower.wait(position, max(0.0, deadline - time.monotonic())):
                continue
            raise TimedOut(
                f"read model {placement.name!r} has not come to position {position} within {timeout:g} s",
                hint="See that a worker keeps it: app.start() or app.run(), here or in another process",
            )

    def _database(self, handler: _Handler) -> AbstractContextManager[Database]:
        wanted = self._wanted(handler)
        # Read models first: they are what queries are for; the tables of the log's own database come after. It is the
        # versions that answer now which are shown.
        found = [self._path(placement) for placement in wanted]
        paths = list(dict.fromkeys(os.path.abspath(path) for path in found if path is not None))
        if not paths:
            return self._log_alone()
        if self._log.path and (handler.reads is None or any(path is None for path in found)):
            paths.append(os.path.abspath(self._log.path))
        key = tuple(paths)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = _View(paths)
        return view.reading()

    def _path(self, placement: Placement) -> str | None:
        follower = self._followers.get(placement.name)
        return placement.path if follower is None else follower.path()

    @contextmanager
    def _log_alone(self) -> Iterator[Database]:
        with self._log.connect() as db, db.snapshot():
            yield db

    def close(self) -> None:
        """Close the connections."""
        for view in self._views.values():
            view.close()
        self._views.clear()


class _View:
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


def _kind(log: Log) -> str:
    return "in PostgreSQL" if log.location else "in memory"


_KEPT = 8
_left_to_parent: list[Database] = []
