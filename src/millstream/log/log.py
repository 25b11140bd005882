"""`Log`: the one append-only log, as its users see it."""

from __future__ import annotations

import time as _time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ..errors import InvalidEvent, InvalidPosition, LogClosed, StreamNotFound, UsageError
from ..events import AnyEvent, Event, Plain, decoder, definitions, event_class, type_name
from ..frames import MAX_ROWS, Columns, is_frame_schema, schema_columns
from ..storage.base import Matching, Receipt, Request, Scope, StagedAppend, StreamInfo
from ..storage.sqlite import SQLiteStore
from ..storage.sqlite.database import Database
from ..storage.sqlite.reader import COLUMNS as HEADER_COLUMNS
from ..time import Clock, Duration, Moment, duration_micros, to_micros
from .bodies import Bodies
from .records import Recorded, Run, recorded_events
from .staging import check_label, check_stream, digest_of, stage
from .transaction import Transaction

if TYPE_CHECKING:
    import polars as pl

END = 1 << 62
_PAGE = 1_000

Types = Iterable[str | type[Event]] | str | type[Event] | None
InlineHandler = Callable[[Database, list[Run]], None]


class StreamClosedEvent(Event, type="StreamClosed"):
    """The last event of a stream that was closed for good."""

    reason: str = ""


def open(
    path: str | None = None,
    *,
    clock: Clock | None = None,
    readonly: bool = False,
    lock_timeout: Duration | float = 30.0,
) -> Log:
    """Open a log, and create it when it is not there yet.

    Args:
        path: The path of a SQLite file. None opens a log in memory that is gone when it is closed.
        clock: Returns the present as a timezone-aware datetime; for replays and tests. Default: the system's.
        readonly: Never write; the file must be there.
        lock_timeout: The longest wait for another process that holds the writer lock (seconds, or "30s").

    Raises:
        NotALog: The file is something else.
        NewerFormat: It was written by a newer version.
        ReadOnlyLog: The file or its folder cannot be written.
        NetworkFilesystem: It lies where locks cannot be trusted.
    """
    if path is not None and not isinstance(path, str):
        path = str(path)
    if path is not None and "://" in path and not path.startswith("sqlite:///"):
        raise UsageError(f"{path!r:.60} is not a place for a log", hint="Give the path of a file, or nothing")
    target = ":memory:" if path is None or path == ":memory:" else path.removeprefix("sqlite:///")
    if not target:
        raise UsageError("the path is empty", hint="Give the path of a file, or None for a log in memory")
    seconds = lock_timeout if isinstance(lock_timeout, int | float) else duration_micros(lock_timeout) / 1e6
    return Log(SQLiteStore(target, clock=clock, readonly=readonly, lock_timeout=seconds))


class Log:
    """One append-only log of events in streams. Made by `millstream.open`; safe to share between threads.

    Promises: positions are gapless and become visible in order; ``recorded`` never goes backwards; an append is
    atomic, over several streams too; what `append` has returned is on disk.
    """

    def __init__(self, store: SQLiteStore) -> None:
        self.store = store
        self.bodies = Bodies(store)
        self.decoders: dict[int, Callable[[Any], Any]] = {}
        """How to decode the JSON of a kind, for the kinds that were read and have a class."""
        self._undecodable: set[int] = set()
        self._definitions = -1
        self._columns: dict[int, Columns] = {}
        self._closed = False

    # --- writing --------------------------------------------------------------------------------------

    def append(
        self,
        stream: str,
        events: object,
        *,
        type: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        unless: Matching | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        effective: Moment | None = None,
    ) -> Receipt:
        """Append events to a stream: all of them, durably, or none.

        Args:
            stream: The stream's name, such as ``"account-1"``. The part before the first ``-`` is its category.
            events: One event, several (each may be a `Draft`), or a Polars, Arrow or pandas frame.
            type: The type of a frame's events.
            expect: The version that the stream must be at: 0 for a stream that must be new.
            id: Names this append. A repeat with the same content has no effect and gives the same receipt.
            unless: Do not append if an event in the log matches.
            tags: Labels for the events, to be found by.
            metadata: JSON-like data about the events.
            correlation: The id of the conversation that the append belongs to; kept in the metadata.
            causation: The id of what caused it; kept in the metadata.
            effective: When it was true in the world, if that is not now.

        Raises:
            VersionConflict: The stream is at another version than expected.
            ConditionFailed: An event matches ``unless``.
            IdReused: The id was used for other content.
            StreamClosed: The stream was closed.
            SchemaConflict: A frame's column does not agree with what the stream holds.
            InvalidEvent, InvalidStreamName, UnsupportedColumn: The events cannot be stored.
            DiskFull, ReadOnlyLog, LogLocked: Nothing was written.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> log.append("audit", ms.Plain("Login", {"user": 7})).position
            1
        """
        if self._closed:
            raise LogClosed(self.path)
        if correlation is not None or causation is not None:
            metadata = with_causes(metadata, correlation, causation)
        staged = stage(
            stream, events, type=type, expect=expect, unless=unless, tags=tags, metadata=metadata, effective=effective
        )
        return self.store.commit(_request([staged], id))

    def request(
        self,
        stream: str,
        events: object,
        *,
        type: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        unless: Matching | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        effective: Moment | None = None,
    ) -> Request:
        """What `append` commits, encoded and checked but not committed; see there."""
        if correlation is not None or causation is not None:
            metadata = with_causes(metadata, correlation, causation)
        staged = stage(
            stream,
            events,
            type=type,
            expect=expect,
            unless=unless,
            tags=tags,
            metadata=metadata,
            effective=effective,
        )
        return _request([staged], id)

    def stage(
        self,
        stream: str,
        events: object,
        *,
        type: str | None = None,
        expect: int | None = None,
        unless: Matching | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        effective: Moment | None = None,
    ) -> StagedAppend:
        """Encode events now, to be written later by `commit`."""
        return stage(
            stream,
            events,
            type=type,
            expect=expect,
            unless=unless,
            tags=tags,
            metadata=metadata,
            effective=effective,
        )

    def commit(
        self,
        appends: Sequence[StagedAppend] = (),
        *,
        work: Callable[[Database, Receipt], None] | None = None,
        id: str | None = None,
        digest: bytes | None = None,
    ) -> Receipt:
        """Append to several streams and change rows of the log's own database, all in one commit.

        Consumers write outputs, state and checkpoint this way, and so take effect exactly once.

        Args:
            appends: What `stage` made.
            work: Called with the database, inside the transaction, after the appends. It may run on another
                thread, and more than once: its only effects must be on that database.
            id: As in `append`; also kept when nothing is appended.
            digest: What the id stands for; by default, the content of the appends.
        """
        if id is not None:
            check_label(id, "append id")
            digest = digest if digest is not None else digest_of(appends)
        return self.store.commit(Request(list(appends), id, digest or b"", work))  # type: ignore[arg-type]

    def transaction(self, *, id: str | None = None) -> Transaction:
        """Several appends, and SQL on the log's database, in one commit.

        Appends are buffered; the writer lock is taken at the first SQL statement, or at the end.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> with log.transaction() as tx:
            ...     tx.append("order-1", ms.Plain("OrderPlaced", {"total": 30}), expect=0)
            ...     tx.append("stock-9", ms.Plain("StockReserved", {"count": 2}))
            >>> tx.receipt.count
            2
        """
        return Transaction(self, id)

    def close_stream(self, stream: str, *, reason: str = "", expect: int | None = None) -> Receipt:
        """Close a stream for good: a last ``StreamClosed`` event, and no append after it. Its past stays.

        Raises:
            StreamNotFound: No event was ever appended to it.
            StreamClosed: It is closed already.
        """
        if self.store.stream(check_stream(stream)) is None:
            raise StreamNotFound(stream)
        staged = stage(stream, StreamClosedEvent(reason=reason), expect=expect, close=True)
        return self.store.commit(Request([staged]))

    def inline(self, name: str, types: Types, handler: InlineHandler) -> None:
        """Run a handler inside every commit of this process that appends one of these types.

        What it does to the database and the append happen together or not at all; an error that it raises
        rejects the append. It may run on another caller's thread, and twice: no other effects in it.

        Args:
            name: Names the handler; another one of that name takes its place.
            types: Event classes or type names; None for all.
            handler: Called with the database and the runs of one stream.
        """
        wanted = _type_names(types)

        def handle(database: Database, append: StagedAppend, position: int) -> None:
            handler(database, self._staged_runs(database, append, position, wanted))

        self.store.inline(name, wanted, handle)

    def _staged_runs(
        self, database: Database, append: StagedAppend, position: int, types: frozenset[str] | None
    ) -> list[Run]:
        rows = database.execute(
            f"select {HEADER_COLUMNS} from runs where position >= ? and position < ? order by position",
            (position, position + append.count),
        ).fetchall()
        runs = [_UncommittedRun(self, *row) for row in rows]
        for run, staged in zip(runs, append.runs, strict=True):
            run.staged, run.stream_name, run.database = staged, append.stream, database
        return [run for run in runs if types is None or run.type in types]

    # --- reading --------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """Position of the last event; 0 when the log is empty."""
        return self.store.head().position

    def read(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        since_version: int | None = None,
        until_version: int | None = None,
        since_position: int | None = None,
        until_position: int | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> Iterator[Recorded]:
        """Events in order of position, as a lazy iterator over what is in the log now.

        Args:
            stream: A stream's name, or a category such as ``"account-*"``; None for the whole log.
            types: Only events of these classes or type names.
            after: Only events after this position.
            since: Only events recorded at or after this time.
            until: Only events recorded before this time.
            since_version: Only events of the stream from this version on.
            until_version: Only events of the stream before this version.
            since_position: Only events from this position on.
            until_position: Only events before this position.
            backwards: The last one first.
            limit: At most so many.

        Raises:
            InvalidPosition, InvalidTime, InvalidStreamName: An argument is not what it should be.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> receipt = log.append("audit", [ms.Plain("Login", {}), ms.Plain("Logout", {})])
            >>> [e.type for e in log.read("audit", backwards=True)]
            ['Logout', 'Login']
        """
        pages = self._runs(
            stream, types, after, since, until, since_version, until_version, since_position, until_position,
            backwards, _count("limit", limit),
        )  # fmt: skip
        return _events(pages, backwards, limit)

    def read_until(self, time: Moment, stream: str | None = None, *, types: Types = None) -> Iterator[Recorded]:
        """All that was recorded before a moment, of the whole log or of one stream."""
        return self.read(stream, types=types, until=time)

    def runs(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int = 0,
        since: Moment | None = None,
        until: Moment | None = None,
        until_position: int | None = None,
    ) -> Iterator[Run]:
        """The same as `read`, by runs: whole frames, and neighbouring events of one append together."""
        pages = self._runs(stream, types, after, since, until, None, None, None, until_position, False, None)
        return chain.from_iterable(pages)

    def _runs(
        self,
        stream: str | None,
        types: Types,
        after: int | None,
        since: Moment | None,
        until: Moment | None,
        since_version: int | None,
        until_version: int | None,
        since_position: int | None,
        until_position: int | None,
        backwards: bool,
        limit: int | None,
    ) -> Iterator[list[Run]]:
        scope = scope_of(stream, types)
        low = max(_count("after", after) or 0, (_count("since_position", since_position) or 1) - 1)
        high = END
        if until_position is not None:
            high = min(high, _count("until_position", until_position) or 0)
        if since is not None:
            low = max(low, self.store.position_at(to_micros(since)))
        if until is not None:
            high = min(high, self.store.position_at(to_micros(until)) + 1)
        first = _count("since_version", since_version) or 1
        last = _count("until_version", until_version)
        if (since_version is not None or until_version is not None) and scope.stream is None:
            raise InvalidPosition("versions are within one stream", hint="Name the stream, or use positions")
        if scope.stream is not None and (first > 1 or last is not None):
            low, high = self.store.version_bounds(scope.stream, first, END if last is None else last, low, high)
        if high == END and (scope.stream is None or backwards):
            # The end is fixed when reading begins; a single stream's own end serves as well.
            high = self.head + 1
        return self._pages(scope, low, high, backwards, limit)

    def _pages(self, scope: Scope, low: int, high: int, backwards: bool, limit: int | None) -> Iterator[list[Run]]:
        size = _PAGE if limit is None else max(1, min(_PAGE, limit))
        while True:
            rows = self.store.page(scope, low, high, size, backwards)
            runs = [Run(self, *row) for row in rows]
            first, end = (runs[-1].position, runs[-1].last) if runs else (0, 0)
            # All but those at the edges lie inside the bounds whole.
            for edge in {0, len(runs) - 1} if runs else ():
                part = runs[edge].cut(low, high)
                if part is None:
                    runs[edge].count = 0
                else:
                    runs[edge] = part
            if runs and not (runs[0].count and runs[-1].count):
                runs = [run for run in runs if run.count]
            if runs:
                self._refresh_decoders({run.kind_id for run in runs})
                yield runs
            if len(rows) < size:
                return
            if backwards:
                high = first
            else:
                low = end
            size = min(_PAGE, size * 4)

    def follow(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int = 0,
        timeout: Duration | float | None = None,
    ) -> Iterator[Recorded]:
        """History after a position, then what comes, as it comes: gapless, in order, each event once.

        Args:
            stream: A stream, a category such as ``"account-*"``, or None for the whole log.
            types: Only events of these classes or type names.
            after: The last position that the caller has seen; 0 for all.
            timeout: End when nothing came for so long; None: only when the log is closed.
        """
        for batch in self.follow_runs(stream, types=types, after=after, timeout=timeout):
            for run in batch:
                yield from recorded_events(run)

    def follow_runs(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int = 0,
        timeout: Duration | float | None = None,
    ) -> Iterator[list[Run]]:
        """The same as `follow`, by lists of runs as they were found."""
        scope = scope_of(stream, types)
        position = _count("after", after) or 0
        seconds = _seconds(timeout)
        quiet_since = _time.monotonic()
        while True:
            left = None if seconds is None else seconds - (_time.monotonic() - quiet_since)
            if not self.wait(position, left):
                return
            head = self.head
            for batch in _batches(self._pages(scope, position, head + 1, False, None)):
                yield batch
                quiet_since = _time.monotonic()
            position = head

    def wait(self, after: int, timeout: Duration | float | None = None) -> bool:
        """Wait until the log's head is beyond a position.

        Returns:
            False when the time was up, or the log closed, before that.
        """
        seconds = _seconds(timeout)
        if self._closed:
            return False
        if self.head > after:
            return True
        return self.store.signal.wait(after, max(seconds, 0.0) if seconds is not None else None)

    def scan(
        self,
        stream: str,
        *,
        types: Types = None,
        since: Moment | None = None,
        until: Moment | None = None,
        by: str | None = None,
        envelope: bool = False,
    ) -> pl.LazyFrame:
        """A stream as a lazy Polars frame: the union of its columns, null where an event lacks one.

        Only runs that can hold wanted rows are read, and of frames only the columns that the query needs.

        Args:
            stream: A stream's name, or a category such as ``"sensor-*"``.
            types: Only events of these classes or type names.
            since: Only rows at or after this time.
            until: Only rows before this time.
            by: The datetime column that ``since`` and ``until`` are about; default: the time of recording.
            envelope: Add ``_position``, ``_stream``, ``_version``, ``_type`` and ``_time`` (UTC).
        """
        from .scan import scan

        return scan(self, stream, types=types, since=since, until=until, by=by, envelope=envelope)

    def sql(self, query: str) -> pl.DataFrame:
        """The answer of DuckDB to a query over streams and tables, by their names.

        A stream has its columns and ``_position``, ``_stream``, ``_version``, ``_type``, ``_time``. Needs the
        extra ``sql``.

        Raises:
            MissingExtra: DuckDB is not installed.
            NotFound: A name is neither a stream nor a table.
            DatabaseError: The query is wrong.
        """
        from .sql import sql

        return sql(self, query)

    def streams(self, pattern: str = "*") -> Iterator[StreamInfo]:
        """The streams whose names fit: a name, or a beginning followed by ``*``. In order of name."""
        if pattern.endswith("*"):
            return self.store.streams(pattern[:-1])
        found = self.store.stream(pattern)
        return iter([found] if found else [])

    def stream(self, name: str) -> StreamInfo:
        """A stream at a glance.

        Raises:
            StreamNotFound: No event was ever appended to it.
        """
        found = self.store.stream(name)
        if found is None:
            raise StreamNotFound(name)
        return found

    def version(self, stream: str) -> int:
        """The version of a stream: how many events it has; 0 when there is none."""
        found = self.store.stream(stream)
        return found.version if found else 0

    def position_at(self, time: Moment) -> int:
        """The last position recorded strictly before a time; 0 when there is none."""
        return self.store.position_at(to_micros(time))

    def connect(self) -> AbstractContextManager[Database]:
        """A connection to read the log's own database with, for the read models that live there."""
        return self.store.connect()

    # --- caches that runs use -------------------------------------------------------------------------

    def _refresh_decoders(self, kinds: Iterable[int]) -> None:
        """Make `decoders` hold what this process can decode of these kinds."""
        if self._definitions != definitions():
            self._definitions = definitions()
            self.decoders.clear()
            self._undecodable.clear()
        for kind in kinds:
            if kind not in self.decoders and kind not in self._undecodable:
                found = self.store.kind(kind)
                cls = event_class(found.type)
                if cls is None or is_frame_schema(found.schema):
                    self._undecodable.add(kind)
                else:
                    self.decoders[kind] = decoder(cls).decode

    def columns_of(self, kind: int) -> Columns:
        """The columns of a kind of frame."""
        found = self._columns.get(kind)
        if found is None:
            schema = self.store.kind(kind).schema
            found = self._columns[kind] = schema_columns(schema) if is_frame_schema(schema) else {}
        return found

    # --- the rest -------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether this process has closed it."""
        return self._closed

    @property
    def path(self) -> str:
        """The file's path; empty for a log in memory."""
        return "" if self.store.memory else self.store.path

    def now(self) -> int:
        """The log's clock, in microseconds since 1970."""
        return self.store.now()

    def confirm_clock(self) -> None:
        """Accept the wall clock as it is, after it was refused with `ClockJumped`."""
        self.store.confirm_clock()

    def verify(self, *, head: str | None = None, progress: Callable[[int, int], None] | None = None) -> Any:
        """Walk the hash chain and the bodies; see `millstream.log.verify.verify`."""
        from .verify import verify

        return verify(self, head=head, progress=progress)

    def backup(self, path: str) -> None:
        """Copy the whole log to a new file while it is in use; see `millstream.log.maintain.backup`."""
        from .maintain import backup

        backup(self, path)

    def compact(self, stream: str | None = None) -> Any:
        """Merge the bodies of many small runs into large ones; see `millstream.log.maintain.compact`."""
        from .compact import compact

        return compact(self, stream)

    def close(self) -> None:
        """Close the log. What is under way ends first; followers end; idempotent."""
        self._closed = True
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<millstream.Log {self.path or 'in memory'}>"


class _UncommittedRun(Run, eq=False):
    """A run inside the transaction that appends it: what other connections cannot see yet, it has at hand."""

    staged: Any = None
    stream_name: str = ""
    database: Any = None

    @property
    def stream(self) -> str:
        return self.stream_name

    @property
    def type(self) -> str:
        return str(self.staged.type)

    @property
    def schema(self) -> str:
        return str(self.staged.schema)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.staged.tags)

    def lines(self) -> list[Any]:
        return [self.staged.body] if self.count == 1 else self.staged.body.split(b"\n")

    def _text(self) -> bytes:
        return bytes(self.staged.body)

    def frame(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        from ..frames import decode_frame

        if not self.is_frame:
            return super().frame(columns)
        frame = decode_frame(self.staged.body)
        return frame.select(c for c in columns if c in frame.columns) if columns is not None else frame


def _request(
    appends: list[StagedAppend],
    id: str | None,
    digest: bytes | None = None,
    work: Callable[[Database, Receipt], None] | None = None,
) -> Request:
    if id is None:
        return Request(appends, None, b"", work)  # type: ignore[arg-type]
    check_label(id, "append id")
    return Request(appends, id, digest if digest is not None else digest_of(appends), work)  # type: ignore[arg-type]


def with_causes(metadata: Mapping[str, Any] | None, correlation: str | None, causation: str | None) -> dict[str, Any]:
    """Metadata with the ids of what an append belongs to and what caused it."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata is {metadata!r:.60}", hint="Give a dict")
    causes = {"correlation": correlation, "causation": causation}
    return {**(metadata or {}), **{name: value for name, value in causes.items() if value is not None}}


def scope_of(stream: str | None, types: Types) -> Scope:
    """What a reader wants, checked."""
    names = _type_names(types)
    if stream is None or stream == "*":
        return Scope(None, None, names)
    if isinstance(stream, str) and stream.endswith("*"):
        check_stream(stream[:-1])
        return Scope(None, stream[:-1], names)
    return Scope(check_stream(stream), None, names)


def _type_names(types: Types) -> frozenset[str] | None:
    if types is None:
        return None
    if isinstance(types, str) or not isinstance(types, Iterable):
        types = [types]
    return frozenset(type_name(each) for each in types)


def _count(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidPosition(f"{name}={value!r:.60} is not a whole number from 0 on", hint="Give an int")
    return min(value, END)


def _seconds(timeout: Duration | float | None) -> float | None:
    if timeout is None or isinstance(timeout, int | float):
        return timeout
    return duration_micros(timeout) / 1e6


def _events(pages: Iterator[list[Run]], backwards: bool, limit: int | None) -> Iterator[Recorded]:
    left = END if limit is None else limit
    if left <= 0:
        return
    for page in pages:
        for run in page:
            if run.count == 1:
                yield Recorded(run, 0)
                left -= 1
            else:
                events = recorded_events(run)
                if backwards:
                    events.reverse()
                yield from events if len(events) <= left else events[:left]
                left -= len(events)
            if left <= 0:
                return


def _batches(pages: Iterator[list[Run]]) -> Iterator[list[Run]]:
    """Pages cut so that each holds some 65,536 events at most."""
    for page in pages:
        batch: list[Run] = []
        rows = 0
        for run in page:
            batch.append(run)
            rows += run.count
            if rows >= MAX_ROWS:
                yield batch
                batch, rows = [], 0
        if batch:
            yield batch


__all__ = ["AnyEvent", "Log", "Plain", "StreamClosedEvent", "open"]
