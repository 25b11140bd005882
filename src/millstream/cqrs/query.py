"""Queries: what is asked of the read side, answered from read models that may be told to be fresh."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Generic, Literal, TypeVar, dataclass_transform

import msgspec

from ..errors import DatabaseError, InvalidPosition, ReadOnlyLog, StorageError, TimedOut, UsageError
from ..log import Log
from ..log.handlers import InvalidHandler
from ..storage.base import Receipt
from ..storage.database import Database
from .binding import message_type, named, parameters
from .command import MessageMeta
from .comparing import replay
from .errors import (
    DuplicateHandler,
    ForeignReadModel,
    ProjectionFailed,
    ReadModelBehind,
    ReadModelChanged,
    UnknownQuery,
)
from .follower import Follower
from .homes import FILES, Home, Kind, Spot
from .live import LiveModel
from .lockstep import Together, carried
from .past import Images, folder_of, position_of
from .places import OnServer
from .projection import Placement, Projection
from .subscribing import answers
from .views import DuckView, FilesView, ServerView, View, Views

Result = TypeVar("Result", covariant=True)

Behind = Literal["answer", "raise"]
"""What to do when a read model is behind for more than a moment."""

_TRIES = 3
"""How often a query of the past is asked at most, when images are deleted beside it."""
_MOVES = 16
"""How often a query is asked at most, when each time another version comes to answer meanwhile."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
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
    query_type: type[Any]
    query: str
    database: str
    """The name of the parameter that takes the database; empty without one."""
    reads: tuple[Placement, ...] | None
    """The read models that it declares to use; None: any."""
    followers: tuple[Follower, ...]
    """Those of what it may use that workers keep, and live ones."""
    lives: tuple[LiveModel, ...]
    """Those that are computed now."""
    answered: Callable[[Any, Database], Any]
    """The function, as one of the query and the database."""


class Answer(msgspec.Struct, Generic[Result]):
    """What answers a query, and how fresh it is.

    Attributes:
        result: The answer.
        position: The position that all of its read models show at least.
        behind: How many positions that is from the log's head.
        problems: Why read models are behind, where it is more than the moment that a worker takes.
    """

    result: Result
    position: int
    behind: int
    problems: list[str]


class Asked(msgspec.Struct, frozen=True):
    """How a query is to be answered: see ``App.query``."""

    after: Receipt | int | None = None
    fresh: bool = False
    timeout: float = 10.0
    behind: Behind = "answer"
    at: Any = None


NOW = Asked()
"""With what is there."""


class Queries:
    """The handlers of queries, and the databases that they read.

    A handler's ``db`` shows the tables of the read models that it declares to use, or of all of them, whichever
    file they lie in: unqualified names find them. What it shows is of one moment for as long as the handler
    runs. Beside read models in SQLite, the tables of the log's own database are shown when that is a file too. No
    connection shows both a file and PostgreSQL, or two files of DuckDB.
    """

    def __init__(
        self, log: Log, placements: Sequence[Placement], followers: dict[str, Follower], moved: threading.Condition
    ) -> None:
        self._log = log
        self._placements = placements
        self._followers = followers
        self.handlers: dict[type[Any], _Handler] = {}
        """The handlers, by the classes of queries."""
        self._views = Views()
        for follower in followers.values():
            if isinstance(follower, LiveModel):
                follower.on_drop = self._views.drop
        self._log_spot = Home(log, "", None).spot("")
        self._shown: dict[type[Any], tuple[list[int], View]] = {}
        """What the handler of a query was shown last: the versions, and the view that has them."""
        self._images: Images | None = None
        self._making = threading.Lock()
        self._moved = moved

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
        if query in self.handlers:
            first = self.handlers[query].function
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
                f"{query.__name__} reads tables of several databases, and no connection shows them all: "
                + ", ".join(sorted({self._spot(each).kind for each in declared})),
                hint="Keep them in one place, such as OrderSummary.into(); or answer it with two queries",
            )
        if declared is None and not database:
            declared = ()  # it reads nothing: there is nothing to wait for
        wanted = self._placements if declared is None else declared
        followers = tuple(self._followers[each.name] for each in wanted if each.name in self._followers)
        lives = tuple(each for each in followers if database and isinstance(each, LiveModel))
        answered = function
        # What is wrapped may take its arguments by name alone.
        by_place = function.__code__.co_argcount == 2 and not hasattr(function, "__wrapped__")
        if [each.name for each in found] != [name, database] or not by_place:

            def answered(query: Any, db: Database) -> Any:
                return function(**{name: query, database: db})

        self.handlers[query] = _Handler(function, query, name, database, declared, followers, lives, answered)

    def known(self) -> list[type[Any]]:
        """The queries that have a handler."""
        return list(self.handlers)

    def _declared(self, reads: Sequence[type[Projection]] | None) -> tuple[Placement, ...] | None:
        if reads is None:
            return None
        by_class = {placement.projection: placement for placement in self._placements}
        for placement in self._placements:
            for projection in carried(placement.projection):
                by_class.setdefault(projection, placement)  # its rows stand with what reads it
        for projection in reads:
            if projection not in by_class:
                raise UsageError(
                    f"{getattr(projection, '__name__', projection)} is not a projection of this app",
                    hint="Give it to ms.App(projections=[…])",
                )
        return tuple(dict.fromkeys(by_class[projection] for projection in reads))

    def _apart(self, wanted: Sequence[Placement]) -> bool:
        """Whether no connection shows all of these."""
        return len({self._spot(placement).reach for placement in wanted}) > 1

    def answer(self, query: Query[Result], asked: Asked = NOW) -> Result:
        """Answer a query; see ``App.query``."""
        handler = self.handlers.get(type(query)) or self._handler(query)
        if asked is not NOW and asked.at is not None:
            return self._answer_at(handler, query, asked.at)
        for follower in handler.followers:
            if follower.failure is not None and isinstance(follower.failure, (ForeignReadModel, ReadModelChanged)):
                raise follower.failure
        if asked is NOW:
            return self._answered(handler, query)
        deadline = time.monotonic() + asked.timeout
        while True:
            before = self._turns(handler)
            self._fold(handler)
            self._prepare(handler, asked, deadline)
            result = self._answered(handler, query)
            # Another version may have come to answer since it was waited for, which shows less: after a rollback.
            if self._turns(handler) == before:
                return result

    def _answered(self, handler: _Handler, query: Query[Result]) -> Result:
        if not handler.lives:
            return self._answer_now(handler, query)
        with ExitStack() as stack:
            for live in handler.lives:
                stack.enter_context(live.shown())
            return self._answer_now(handler, query)

    def _answer_now(self, handler: _Handler, query: Query[Result]) -> Result:
        if not handler.database:
            return handler.function(**{handler.query: query})  # type: ignore[no-any-return]
        tries = _MOVES
        while True:
            tries -= 1
            before = [follower.current() for follower in handler.followers]
            try:
                shown = self._shown.get(handler.query_type)
                if shown is None or shown[0] != before:
                    with self._database(handler) as db:
                        return handler.answered(query, db)  # type: ignore[no-any-return]
                # The way of most queries: all that is needed is at hand.
                view = shown[1]
                db = view.take()
                try:
                    return handler.answered(query, db)  # type: ignore[no-any-return]
                finally:
                    view.give_back(db)
            except ReadOnlyLog as error:
                raise _writes(query) from error
            except StorageError as error:
                # Another version may have taken the place of the one that was asked, in that very moment.
                for follower in handler.followers:
                    follower.look()
                # It may be the same one that answers again: so what fails is tried thrice in any case.
                if tries > _MOVES - 3 or (tries and self._versions(handler) != before):
                    continue
                if "no such table" in error.message and self._apart(self._placements):
                    raise _shown_in_part(query, error) from error
                raise

    def told(self, query: Query[Result], asked: Asked) -> Answer[Result]:
        """Answer a query, and say how far its read models have come; see ``App.answer``."""
        handler = self._handler(query)
        if asked.at is not None:
            position = position_of(self._log, asked.at)
            return Answer(self.answer(query, asked), position, self._log.head - position, [])
        deadline = time.monotonic() + asked.timeout
        while True:
            before = self._turns(handler)
            self._fold(handler)
            self._prepare(handler, asked, deadline)
            # Before the answer: it is at least of that position.
            positions = [follower.position() for follower in handler.followers]
            head = self._log.head
            position = min(positions, default=head)
            result = self.answer(query)
            if self._turns(handler) == before:
                return Answer(result, position, max(0, head - position), self._problems(handler))

    def subscribe(self, query: Query[Result], timeout: float | None) -> Iterator[Result]:
        """The answer, and each that differs from the one before; see ``App.subscribe``."""
        handler = self._handler(query)
        followers = handler.followers
        # What is kept in the commits of the log, or written by others, moves with its head.
        by_head = len(followers) < len(self._wanted(handler)) or not followers or bool(handler.lives)
        answer = partial(self.answer, query)
        return answers(self._log, followers, self._moved, answer, by_head=by_head, timeout=timeout)

    def _handler(self, query: Query[Any]) -> _Handler:
        handler = self.handlers.get(type(query))
        if handler is None:
            raise UnknownQuery(type(query).__name__)
        return handler

    def _fold(self, handler: _Handler) -> None:
        """Have live read models fold what came; one that fails shows all before that, and says so as a problem."""
        for live in handler.lives:
            with suppress(ProjectionFailed):
                live.fold()

    def _prepare(self, handler: _Handler, asked: Asked, deadline: float) -> None:
        """Wait, or refuse, as was asked."""
        if asked.behind == "raise" and (problems := self._problems(handler)):
            raise ReadModelBehind(problems)
        position = 0 if asked.after is None else self._position(asked.after)
        if asked.fresh:
            position = max(position, self._log.head)
        if position:
            self._await(handler, position, asked.timeout, deadline)

    def _problems(self, handler: _Handler) -> list[str]:
        found = (follower.problem() for follower in handler.followers)
        return [problem for problem in found if problem is not None]

    def _answer_at(self, handler: _Handler, query: Query[Result], at: object) -> Result:
        """Answer a query from the read models as they stood."""
        position = position_of(self._log, at)
        wanted = self._shown_at(handler)
        if not handler.database:
            return handler.function(**{handler.query: query})  # type: ignore[no-any-return]
        inline = [placement for placement in self._placements if placement.inline]
        if len(inline) > 1 and any(placement.inline for placement in wanted):
            wanted = [Together(self._log, inline), *(placement for placement in wanted if not placement.inline)]
        tries = _TRIES
        while True:
            tries -= 1
            shown: list[str] = []
            try:
                with self._past(wanted, position, shown) as view, view.reading() as db:
                    return handler.answered(query, db)  # type: ignore[no-any-return]
            except StorageError as error:
                # Images may be deleted at any time, also in the moment that they are asked.
                there = isinstance(error, DatabaseError) and all(map(os.path.exists, shown))
                if not tries or there:
                    raise

    def _kept_images(self) -> Images:
        with self._making:
            if self._images is None:
                folder = folder_of([placement.path for placement in self._placements], self._log)
                self._images = Images(self._log, folder)
            return self._images

    def _shown_at(self, handler: _Handler) -> list[Placement]:
        """The read models that one connection shows the handler, as of the present."""
        wanted = list(self._wanted(handler))
        if handler.database and not wanted:
            raise UsageError("there are no read models to ask of the past", hint="Give the app projections")
        if self._apart(wanted):
            wanted = [placement for placement in wanted if self._spot(placement).reach == FILES]
            if not wanted:
                raise _several()
        return wanted

    @contextmanager
    def _past(self, wanted: list[Placement], position: int, shown: list[str]) -> Iterator[View]:
        """What shows read models as they stood, in a database of the kind that they are kept in.

        Args:
            shown: Takes the files of the images that it shows.
        """
        with ExitStack() as stack:
            spot = self._spot(wanted[0])
            if spot.server is not None:
                home = Home(self._log, wanted[0].name, wanted[0].path)
                stack.callback(home.let_go)
                target = stack.enter_context(home.apart())
                assert isinstance(target, OnServer)
                for placement in wanted:
                    replay(self._log, placement, target, position)
                # The view's connections are those of the app; what closes is the schema.
                yield ServerView(spot.server, [target.schema])
                return
            images = self._kept_images()
            if spot.kind is Kind.DUCKDB:
                image = images.in_duckdb(wanted, position)
                stack.callback(image.done)
                shown.append(image.path)
                yield DuckView(image.path)
                return
            for placement in wanted:
                image = images.at(placement, position)
                stack.callback(image.done)
                shown.append(image.path)
            view = FilesView(list(shown))
            stack.callback(view.close)
            yield view

    def _wanted(self, handler: _Handler) -> Sequence[Placement]:
        return self._placements if handler.reads is None else handler.reads

    def _versions(self, handler: _Handler) -> list[int]:
        """The versions of the read models that the handler is shown."""
        return [follower.number for follower in handler.followers]

    def _turns(self, handler: _Handler) -> list[int]:
        """What changes whenever the version does that is shown of a read model which is kept."""
        return [follower.turns for follower in handler.followers if not isinstance(follower, LiveModel)]

    def _position(self, after: object) -> int:
        position = after.position if isinstance(after, Receipt) else after
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise InvalidPosition(f"after={after!r:.60} is not a position", hint="Give a receipt or a position")
        if position > (head := self._log.head):
            raise InvalidPosition(
                f"after={position} is beyond the log, which ends at {head}", hint="Give a receipt of this very log"
            )
        return position

    def _await(self, handler: _Handler, position: int, timeout: float, deadline: float) -> None:
        for placement in self._wanted(handler):
            follower = self._followers.get(placement.name)
            if follower is None or follower.wait(position, max(0.0, deadline - time.monotonic())):
                continue
            raise TimedOut(
                f"read model {placement.name!r} has not come to position {position} within {timeout:g} s",
                hint="See that a worker keeps it: app.start() or app.run(), here or in another process",
            )

    def _database(self, handler: _Handler) -> AbstractContextManager[Database]:
        versions = [follower.current() for follower in handler.followers]
        shown = self._shown.get(handler.query_type)
        if shown is not None and shown[0] == versions:
            return shown[1].reading()
        wanted = self._wanted(handler)
        # Read models first: they are what queries are for; the tables of the log's own database come after. It is the
        # versions that answer now which are shown.
        view = self._view([self._spot(placement) for placement in wanted], handler.reads is None)
        if view is None:
            return self._log_alone()
        if self._versions(handler) == versions:  # or else it may show what another one has
            self._shown[handler.query_type] = versions, view
        return view.reading()

    def _view(self, spots: list[Spot], undeclared: bool) -> View | None:
        """What shows the tables that stand at some spots; None for the log's own connection."""
        near = [spot for spot in spots if spot.reach == FILES]
        paths = list(dict.fromkeys(spot.path for spot in near if spot.kind is not Kind.LOG))
        if paths and (undeclared or len(near) == len(spots)):
            # Read models first: they are what queries are for; the tables of the log's own database come after.
            own = self._log.store.address if self._log.path else None
            if own and (undeclared or any(spot.kind is Kind.LOG for spot in near)):
                paths.append(own)
            return self._views.of_files(paths)
        if len({spot.reach for spot in spots}) > 1:
            raise _several()
        if not spots or all(spot.kind is Kind.LOG and not spot.schema for spot in spots):
            return None
        if spots[0].kind is Kind.DUCKDB:
            home = spots[0].home
            return self._views.of_duck(home, [path for spot in spots if (path := spot.path) != home])
        schemas = list(dict.fromkeys(spot.schema for spot in spots if spot.schema))
        return self._views.of_server(spots[0].server, schemas)

    def _spot(self, placement: Placement) -> Spot:
        """Where the version of a read model stands that answers."""
        follower = self._followers.get(placement.name)
        return self._log_spot if follower is None else follower.spot()

    @contextmanager
    def _log_alone(self) -> Iterator[Database]:
        with self._log.connect() as db, db.snapshot():
            yield db

    def forked(self) -> None:
        """In a forked child: go on with connections and locks of its own."""
        self._views.forked()
        self._images = None
        self._making = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._views.close()
        self._shown.clear()
        with self._making:
            images, self._images = self._images, None
        if images is not None:
            images.close()


def _several() -> UsageError:
    return UsageError(
        "the read models are kept in several databases, and no connection shows them all",
        hint="Say which of them the query reads: @app.query(reads=[…])",
    )


def _writes(query: Query[Any]) -> UsageError:
    return UsageError(
        f"the handler of {type(query).__name__} writes, and queries only read",
        hint="Write in a command's aggregates, or in the handlers of a projection",
    )


def _shown_in_part(query: Query[Any], error: StorageError) -> DatabaseError:
    return DatabaseError(
        f"{error.message}; the handler of {type(query).__name__} is shown the read models in SQLite alone,"
        " and others are kept elsewhere",
        hint="Say which read models it reads: @app.query(reads=[…])",
    )
