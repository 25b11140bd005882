"""Projections: read models as classes, and where each of them is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import polars as pl

from ..errors import DatabaseError, InvalidEvent, MillstreamError, SchemaConflict, UsageError
from ..events import Plain
from ..log import Log
from ..log.checkpoints import begin, parts_of
from ..log.handlers import InvalidHandler
from ..log.present import together
from ..log.records import Recorded, Run
from ..log.shapes import shape
from ..log.singles import Singles, events_in
from ..storage.database import Database
from ..storage.redact import redact
from ..storage.watching import Watch
from .applying import Bound, bound_of
from .batches import cut, frame_of_runs
from .errors import ForeignReadModel, ReadModelChanged
from .pieces import Apply, Batch, Piece, apply_all
from .shares import MOST, STREAM, Keys, Share

ROWS = 131_072
"""The most events for one batch, where nothing else asks for fewer."""


class Projection:
    """Base class of projections: what events mean for the rows of a read model.

    Handlers, marked ``@ms.on``, take the event and, by annotation or name, ``db: ms.Database`` (in the
    transaction that also moves the projection's checkpoint, so each event takes effect exactly once) and
    ``recorded: ms.Recorded``, the event's envelope. They may run again after a rollback, so they must have no
    effects but through ``db``. Those marked ``@ms.on_batch`` take a frame of many events instead, and ``db``.

    Attributes:
        schema: SQL that creates the read model's tables; runs once.
        name: Names it in checkpoints and errors; by default the class's name.
        version: Stands for the code of the class, where it is given: the read model is then built anew when the schema
            or this changes. By default when the schema or the code of the class does.
        reads: Other projections, whose tables its handlers look things up in. They are carried along: a copy of their
            rows is kept in the same database, at the same event, so that a rebuild or a replay finds what was found.
        on_failure: What becomes of an event whose handler raises. ``"stop"``: the projection stands right before it.
            ``"skip"``: it goes on without it. ``"park"``: it goes on, and later events of the same stream wait behind
            the one that failed; for rows that go by streams, and so not with ``reads``.
        partitions: In how many parts its events are applied, each by a worker of its own: see `partition_by`. Counts
            where several processes can write: in a file of SQLite, in PostgreSQL, in the log's database.
        partition_by: What says which events belong together, and so stay in the order of the log: ``"_stream"``, or a
            field of the events with texts, whole numbers, enums or ids; or such a name for each class of events.

    Example:
        >>> import millstream as ms
        >>> class OrderPlaced(ms.Event):
        ...     customer: str
        >>> class OrderSummary(ms.Projection):
        ...     schema = "create table order_summary (id text primary key, customer text)"
        ...
        ...     @ms.on
        ...     def placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        ...         db.execute("insert into order_summary values (?, ?)", (recorded.stream, event.customer))
        >>> OrderSummary.into("read.db")
        <OrderSummary into read.db>
    """

    schema: ClassVar[str] = ""
    name: ClassVar[str] = ""
    version: ClassVar[object] = None
    reads: ClassVar[Sequence[type[Projection]]] = ()
    on_failure: ClassVar[Literal["stop", "skip", "park"]] = "stop"
    partitions: ClassVar[int] = 1
    partition_by: ClassVar[str | Mapping[Any, str]] = STREAM
    _is_base = True
    """Whether this is a class of the library's, whose code does not make a read model another one."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__
        if cls.on_failure not in ("stop", "skip", "park"):
            raise UsageError(
                f"{cls.__qualname__}.on_failure is {cls.on_failure!r:.40}", hint='Write "stop", "skip" or "park"'
            )
        if type(cls.partitions) is not int or not 1 <= cls.partitions <= MOST:
            raise UsageError(
                f"{cls.__qualname__}.partitions is {cls.partitions!r:.40}",
                hint=f"Write a whole number from 1 to {MOST}",
            )

    @classmethod
    def inline(cls) -> Placement:
        """Kept in the log's own database, in the very commit that appends the events.

        An error that a handler raises, a violated constraint above all, rejects the append: nothing is left.
        """
        return cls._placed(inline=True)

    @classmethod
    def into(cls, path: str | os.PathLike[str] | None = None) -> Placement:
        """Kept by a worker that follows the log, a moment behind it.

        Args:
            path: What the read model is kept in. ``"read.db"``: a SQLite file. ``"read.duckdb"``: a DuckDB file.
                ``"postgresql://user@host/database?schema=shop"``: a schema of a PostgreSQL database, ``public`` if the
                URL names none. ``":memory:"``: the memory of this process, filled from the log at each start. None:
                tables in the log's own database (of a log in PostgreSQL: where the role's ``search_path`` begins, by
                default in the schema ``public``).
        """
        if path is not None and (not isinstance(path, str | os.PathLike) or "\0" in str(path) or not str(path)):
            raise UsageError(
                f"{cls.__qualname__}.into({path!r:.60}) names no place", hint="Give a path or a URL, or nothing"
            )
        return cls._placed(path=None if path is None else os.fspath(path))

    @classmethod
    def live(cls) -> Placement:
        """Kept by nobody: each query first folds the events that came since the last one, into memory.

        So a query always shows all that is committed, and nothing runs between queries. The first query of a process
        folds the whole history of the types that are handled. That is sensible where that is short (some ten thousand
        events, or some hundred thousand for ``@ms.on_batch``), or where it is seldom asked: a report, a test, a look
        that is still being designed. What is asked often, by many processes, or of a long history, is for `into`.
        """
        return cls._placed(live=True, path=":memory:")

    def perform(self, effect: Any) -> object:
        """Do outside what a handler has added to its ``effects``: see `Effects`. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} has no method perform(self, effect: ms.Effect)")

    @classmethod
    def _placed(cls, **where: Any) -> Placement:
        spans = cls._spans() if cls.on_failure == "park" and not where.get("inline") else None
        if spans is not None:
            raise InvalidHandler(
                cls.__qualname__,
                f'its on_failure is "park", and {spans}: events that waited for their stream would be applied in'
                " another order than a rebuild has",
                hint='Choose "stop"; or "skip", and when the handler is mended, a rebuild, which has them in order',
            )
        if not cls.reads:
            return cls._alone(**where)
        from .lockstep import Lockstep

        return Lockstep(cls, **where)

    @classmethod
    def _alone(cls, **where: Any) -> Placement:
        """The same, without those that it reads."""
        return Placement(cls, **where)

    @classmethod
    def _spans(cls) -> str | None:
        """Why what it makes of an event depends on the events of other streams, as far as it says so itself."""
        return "what it looks up changes with the events of all streams" if cls.reads else None

    @classmethod
    def _made_of(cls) -> list[str]:
        """What makes its rows beside its schema and its code."""
        return []


class Placement:
    """A projection, and where and when it is kept. Made by `Projection.inline`, `Projection.into`, `Projection.live`.

    Attributes:
        projection: The projection's class.
        inline: Whether it is kept inside the appending commits.
        live: Whether it is computed when it is asked.
        path: The file of the read model; None for the log's own database.
        types: The names of the types that it handles.
    """

    def __init__(
        self, projection: type[Projection], *, inline: bool = False, live: bool = False, path: str | None = None
    ) -> None:
        self.projection = projection
        self.inline = inline
        self.live = live
        self.path = path
        self.name = projection.name
        self.watch: Watch | None = None
        """The tables beside its own that its handlers are not to use."""
        self._bound = self._bind()
        self._batched = any(bound.batch for bound in self._bound.values())
        self._classes = {name: bound.event for name, bound in self._bound.items()}
        self._shapes = {name: shape(bound.event) if bound.batch else None for name, bound in self._bound.items()}
        self.types = tuple(self._bound)
        self.share: Share | None = None
        """The partition of its events that it takes; None for all."""

    folds = False
    """Whether what it makes of many events at once is what it would make of one after the other."""

    @property
    def schema(self) -> str:
        """The SQL that makes its tables."""
        return self.projection.schema

    def _bind(self) -> dict[str, Bound]:
        bound = bound_of(self.projection)
        by = self.projection.partition_by
        if by != STREAM:
            Keys(self.projection.__qualname__, by, {name: each.event for name, each in bound.items()})
        return bound

    @property
    def _picks(self) -> Share | None:
        """What picks its events one by one; None where all are taken, or whole runs are picked."""
        return None if self.share is None or self.share.by_stream else self.share

    @property
    def performs(self) -> bool:
        """Whether its events have effects on the outside."""
        return any(bound.effects for bound in self._bound.values())

    @property
    def notes(self) -> bool:
        """Whether there are handlers, its own or of what it reads, that add effects."""
        return self.performs

    @property
    def events(self) -> list[type[Any]]:
        """The classes of the events that it handles."""
        return list(self._classes.values())

    def handler_of(self, type: str) -> Apply:
        """What applies events of a type."""
        return self._bound[type].apply

    @property
    def kept_as(self) -> str:
        """The name of what one worker keeps: the projection's, or that of a partition."""
        return self.name if self.share is None else f"{self.name}/{self.share.number}"

    @property
    def consumer(self) -> str:
        """The name of its checkpoint."""
        return f"projection:{self.kept_as}"

    def keys(self) -> Keys | None:
        """What its events are divided by, if it is to be kept in partitions; None where it knows that itself.

        Raises:
            InvalidHandler: They do not have it.
        """
        return Keys(self.projection.__qualname__, self.projection.partition_by, self._classes)

    def part(self, number: int, count: int) -> Placement:
        """One of its partitions, with an instance of its class for itself: another thread keeps it."""
        found = self.projection._placed(inline=self.inline, live=self.live, path=self.path)
        found.watch = self.watch
        found.share = Share(number, count, found.keys())
        return found

    def prepare(self, db: Database, log: Log) -> None:
        """Create the tables, unless that was done before. Call inside a transaction.

        Raises:
            ReadModelChanged: The tables were made by another version of the schema.
            ForeignReadModel: They show another log.
            DatabaseError: The schema is not SQL that runs.
        """
        db.ensure_table(PROJECTIONS, TABLES[PROJECTIONS])
        table = db.own(PROJECTIONS)
        if not self.check(db, log):
            db.make_alone()
        if not self.check(db, log):
            try:
                db.executescript(self.schema)
            except DatabaseError as error:
                raise DatabaseError(
                    f"the schema of projection {self.name!r} does not run: {error.message}",
                    hint="Correct its SQL; the tables of a projection are its own, and have names of their own",
                ) from error
            db.execute(f"insert into {table} values (?, ?, ?)", (self.name, self._schema_hash(), log.id))
            for number in range(1, self.share.count + 1) if self.share is not None else ():
                begin(db, f"projection:{self.name}/{number}")  # all of them count, from the beginning on
        elif not self.fits(db):
            raise ReadModelChanged(self.name)

    def check(self, db: Database, log: Log) -> bool:
        """Whether its tables are in a database.

        Raises:
            ForeignReadModel: They show another log.
        """
        if not db.has_table(PROJECTIONS):
            return False
        row = db.one(f"select log_id from {db.own(PROJECTIONS)} where name = ?", (self.name,))
        if row is not None and self.path is not None:
            if row["log_id"] != log.id:
                raise ForeignReadModel(self.name, "it was built from another one")
            shown = max((each.position for each in parts_of(db, f"projection:{self.name}")), default=0)
            if shown > log.head:
                raise ForeignReadModel(self.name, f"it shows position {shown}, and the log ends at {log.head}")
        return row is not None

    def fits(self, db: Database) -> bool:
        """Whether the tables that are there were made by this schema."""
        row = db.one(f"select schema_hash from {db.own(PROJECTIONS)} where name = ?", (self.name,))
        return row is None or row["schema_hash"] == self._schema_hash()

    def _schema_hash(self) -> str:
        return hashlib.sha256(self.schema.encode()).hexdigest()

    def pieces(
        self, pages: Iterable[Sequence[Run] | Singles], *, rows: int = ROWS, apart: Collection[str] = ()
    ) -> Iterator[Piece | Batch]:
        """The events of runs, decoded, each with what applies it; those of a handler of batches together.

        What was made of one stored event is one piece: it shares a position, so no checkpoint can come between.

        Args:
            pages: The runs, in lists; what was made of one stored event is in one of them.
            rows: The most events for one batch.
            apart: Streams whose events are to come one by one.
        """
        kinds: dict[int, str] = {}
        gathered: list[Run] = []
        method = ""
        count = 0
        share = self.share
        for page in pages:
            if share is not None and share.by_stream:
                page = share.runs(page)
                if not page:
                    continue
            if isinstance(page, Singles) and not apart:
                bound = self._bound.get(page.type)
                if bound is not None and bound.batch:
                    if gathered:
                        yield self.batch(gathered)
                        gathered, count = [], 0
                    yield self.batch(page)
                    continue
            for kind, run in {run.kind_id: run for run in page}.items():
                if kind not in kinds:
                    bound = self._bound.get(run.type)
                    kinds[kind] = bound.batch if bound is not None else ""
            plain = not apart and {type(run) for run in page} == {Run}
            wanted = {kinds[run.kind_id] for run in page}
            if plain and wanted == {""}:
                if gathered:
                    yield self.batch(gathered)
                    gathered, count = [], 0
                for run in page:
                    yield from self._of(run)
                continue
            if plain and wanted == {method} and (more := sum([run.count for run in page])) + count <= rows:
                # A page of nothing but events of the batch: its runs need not be looked at one by one.
                gathered += page
                count += more
                continue
            for found in together(page):
                run = found[0]
                handler = kinds[run.kind_id] if len(found) == 1 else ""
                alone = bool(apart) and run.stream in apart
                for part in found[:1] if run.count <= rows and not alone else cut(run, 1 if alone else rows):
                    if gathered and (alone or handler != method or count + part.count > rows):
                        yield self.batch(gathered)
                        gathered, count = [], 0
                    if handler and alone:
                        yield self.batch([part])
                    elif handler:
                        method = handler
                        gathered.append(part)
                        count += part.count
                if len(found) > 1:
                    yield self._one_of(found)
                elif not handler:
                    yield from self._of(run)
        if gathered:
            yield self.batch(gathered)

    def batch(self, runs: Sequence[Run] | Singles) -> Batch:
        """Runs that one handler takes as a frame."""
        made = self._shapes
        frame: pl.DataFrame | Exception
        count = events_in(runs)
        try:
            frame = frame_of_runs(runs, self._classes, made)
            if self._picks is not None:
                frame = self._picks.rows(frame)
        except (InvalidEvent, SchemaConflict, UsageError) as error:
            # What cannot be read has no key: the first partition has it fail.
            frame = error if count > 1 or self._picks is None or self._picks.number == 1 else pl.DataFrame()
        return Batch(self, runs, count, frame)

    def _one_of(self, group: list[Run]) -> Piece:
        parts = [piece for run in group for piece in self._of(run)]
        return Piece(group[0].position, group[0].type, apply_all, parts, None, group[0])

    def _of(self, run: Run) -> Iterator[Piece | Batch]:
        found = self._bound.get(run.type)
        if found is None:
            # It would perhaps be of a type that is handled, but cannot be read.
            yield from self._one_by_one(run, _refuse, Plain)
            return
        if found.batch:
            yield self.batch([run])
            return
        apply, cls, wants_recorded = found.apply, found.event, found.wants_recorded
        try:
            events = [Plain(run.type, data) for data in run.data()] if cls is Plain else run.events(cls)
            picks = self._picks
            taken = None if picks is None else [picks.takes(run, event) for event in events]
        except (InvalidEvent, UsageError):
            yield from self._one_by_one(run, apply, cls)
            return
        position, type = run.position, run.type
        for index, event in enumerate(events):
            if taken is not None and not taken[index]:
                continue
            recorded = Recorded(run, index, event) if wants_recorded else None
            yield Piece(position + index, type, apply, event, recorded, run)

    def _one_by_one(self, run: Run, apply: Apply, cls: type[Any]) -> Iterator[Piece]:
        """The events of a run of which some do not fit their class: those fail when they are applied."""
        picks = self._picks
        for recorded in run:
            try:
                event = recorded.decode(cls)
                if picks is None or picks.takes(run, event):
                    yield Piece(recorded.position, run.type, apply, event, recorded, run)
            except (InvalidEvent, UsageError) as error:
                # What cannot be read has no key: the first partition has it fail.
                if picks is None or picks.number == 1:
                    yield Piece(recorded.position, run.type, _refuse, error, recorded, run)

    def __repr__(self) -> str:
        where = "inline" if self.inline else "live" if self.live else f"into {redact(self.path or 'the log')}"
        return f"<{self.name} {where}>"


def _refuse(error: MillstreamError, db: Database, recorded: Recorded | None) -> None:
    raise error


PROJECTIONS = "millstream_projections"
TABLES = {PROJECTIONS: "name text primary key, schema_hash text not null, log_id text not null"}
"""The tables that projections keep beside their own: their columns by their names."""
