"""`Log`: the one append-only log, as its users see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ..errors import MillstreamError, MissingExtra, NotFound, StreamNotFound, UsageError
from ..events import Event
from ..evolution import stored_names
from ..storage.base import Matching, Placed, Receipt, Request, StagedAppend
from ..storage.contract import Store
from ..storage.database import Database
from ..storage.inline import Registered
from ..storage.sqlite import SQLiteStore
from ..time import Clock, Duration, Moment, duration_micros, from_micros
from .captured import CapturedTables
from .files import path_of
from .handlers import check_plain
from .inline import staged_runs
from .reading import Reader, Types, type_names
from .records import Run
from .staging import check_label, check_stream, digest_of, stage
from .transaction import Transaction, check_outside

if TYPE_CHECKING:
    from .check import Checked
    from .compact import Compacted
    from .moving import Copied, Progress, Segments
    from .personal.forget import Forgotten
    from .personal.keys import KeyStore
    from .retention.archive import Archiving
    from .retention.archives import Archives
    from .retention.rules import Keep, Rule
    from .retention.trim import Trimming
    from .verify import Verified


_PROJECTION = "projection:"
"""What the names of projections' handlers begin with."""

_LONGEST_WAIT = 2_000_000.0
"""Seconds; a longer limit is one that never ends, and databases count them in milliseconds of 31 bits."""

InlineHandler = Callable[[Database, list[Run]], None]


class StreamClosedEvent(Event, type="StreamClosed"):
    """The last event of a stream that was closed for good."""

    reason: str = ""


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    clock: Clock | None = None,
    readonly: bool = False,
    lock_timeout: Duration | float = 30.0,
    keys: KeyStore | str | os.PathLike[str] | None = None,
) -> Log:
    """Open a log, and create it when it is not there yet.

    Args:
        path: The path of a SQLite file, or ``postgresql://user@host/database``, with ``?schema=shop`` for a schema
            other than ``millstream`` (extra ``postgres``). None opens a log in memory that is gone when it is closed.
        clock: Returns the present as a timezone-aware datetime; for replays and tests. Default: the system's.
        readonly: Never write; the file must be there.
        lock_timeout: The longest wait for another process that holds the writer lock (seconds, or "30s").
        keys: Where the keys of `Personal` data are kept: the path of a file, or a `KeyStore`. By default, they are in
            a file beside the log's (``shop.db-keys``), made when first needed, or in memory with the log; for a log in
            PostgreSQL there is no default.

    Raises:
        NotALog: The file is something else.
        NewerFormat: It was written by a newer version.
        ReadOnlyLog: The file or its folder cannot be written.
        NetworkFilesystem: It lies where locks cannot be trusted.
        ConnectionFailed, PermissionDenied: The database server cannot be reached, or refuses.
        MissingExtra: The driver for PostgreSQL is not installed.
    """
    if path is not None:
        path = path_of(path, "Give the path of a file, or None for a log in memory")
    if clock is not None and not callable(clock):
        raise UsageError(f"{clock!r:.60} is not a clock", hint="Give a function that returns the present as a datetime")
    seconds = lock_timeout if isinstance(lock_timeout, int | float) else duration_micros(lock_timeout) / 1e6
    seconds = min(seconds, _LONGEST_WAIT)
    if path is not None and path.startswith(("postgresql://", "postgres://")):
        return Log(_postgres(path, clock=clock, readonly=readonly, lock_timeout=seconds), keys)
    if path is not None and "://" in path and not path.startswith("sqlite:///"):
        raise UsageError(
            f"{path.partition('://')[0]}:// is not a place for a log",
            hint="Give the path of a file, a postgresql:// URL, or nothing",
        )
    if path is not None and path.startswith("file:"):
        raise UsageError(f"{path!r:.60} is an address of SQLite's", hint="Give the path of the file alone")
    target = ":memory:" if path is None or path == ":memory:" else path.removeprefix("sqlite:///")
    if not target:
        raise UsageError("the path is empty", hint="Give the path of a file, or None for a log in memory")
    return Log(SQLiteStore(target, clock=clock, readonly=readonly, lock_timeout=seconds), keys)


def require_postgres() -> None:
    """See that the driver for PostgreSQL is there.

    Raises:
        MissingExtra: It is not.
    """
    try:
        import psycopg  # noqa: F401
        import psycopg_pool  # noqa: F401
    except ImportError as error:
        raise MissingExtra("postgres", "psycopg") from error


def _postgres(url: str, **options: Any) -> Store:
    require_postgres()
    from ..storage.postgres import PostgresStore

    return PostgresStore(url, **options)


class Log(Reader, CapturedTables):
    """One append-only log of events in streams. Made by `millstream.open`; safe to share between threads.

    Promises: positions are gapless and become visible in order; ``recorded`` never goes backwards; an append is
    atomic, over several streams too; what `append` has returned is on disk.
    """

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
            SubjectForgotten, KeysNeeded: They hold personal data of someone who was forgotten, or there are no keys.
            DiskFull, ReadOnlyLog, LogLocked: Nothing was written.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> log.append("audit", ms.Plain("Login", {"user": 7})).position
            1
        """
        if self.inside:
            check_outside(self)
        staged = stage(
            stream, events, type=type, expect=expect, unless=unless, tags=tags, metadata=metadata,
            correlation=correlation, causation=causation, effective=effective, keys=self.keys,
        )  # fmt: skip
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
        staged = stage(
            stream, events, type=type, expect=expect, unless=unless, tags=tags, metadata=metadata,
            correlation=correlation, causation=causation, effective=effective, keys=self.keys,
        )  # fmt: skip
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
            keys=self.keys,
        )

    def commit(
        self,
        appends: Sequence[StagedAppend | None] = (),
        *,
        work: Callable[[Database, Receipt], None] | None = None,
        id: str | None = None,
        digest: bytes | None = None,
    ) -> Receipt:
        """Append to several streams and change rows of the log's own database, all in one commit.

        Consumers write outputs, state and checkpoint this way, and so take effect exactly once.

        Args:
            appends: What `stage` made; None, for an aggregate that recorded nothing, is passed over.
            work: Called with the database, inside the transaction, after the appends. It may run on another
                thread, and more than once: its only effects must be on that database.
            id: As in `append`; also kept when nothing is appended.
            digest: What the id stands for; by default, the content of the appends.
        """
        if self.inside:
            check_outside(self)
        return self.store.commit(_request(_staged(appends), id, digest, work))

    def commit_all(self, requests: Sequence[Request]) -> list[Receipt | MillstreamError]:
        """Make several commits at once, on disk together: each of them happens, or is refused, by itself.

        Returns:
            For each request its receipt, or why it was refused.
        """
        if self.inside:
            check_outside(self)
        return self.store.commit_all(requests)

    def transaction(self, *, id: str | None = None, digest: bytes | None = None) -> Transaction:
        """Several appends, and SQL on the log's database, in one commit.

        Appends are buffered; the writer lock is taken at the first SQL statement, or at the end.

        Args:
            id: As in `append`.
            digest: What the id stands for; by default, the content of the appends.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> with log.transaction() as tx:
            ...     tx.append("order-1", ms.Plain("OrderPlaced", {"total": 30}), expect=0)
            ...     tx.append("stock-9", ms.Plain("StockReserved", {"count": 2}))
            >>> tx.receipt.count
            2
        """
        return Transaction(self, id, digest)

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

    def inline(
        self,
        name: str,
        types: Types,
        handler: InlineHandler,
        *,
        fingerprint: str | None = None,
        across: bool = False,
    ) -> None:
        """Run a handler inside every commit of this process that appends one of these types.

        What it does to the database and the append happen together or not at all; an error that it raises
        rejects the append. It may run on another caller's thread, and twice: no other effects in it.

        Args:
            name: Names the handler; another one of that name takes its place.
            types: Event classes or type names; None for all.
            handler: Called with the database and the runs of one stream.
            fingerprint: Have everyone who appends these types need the handler, from now on, and of this fingerprint:
                a process that lacks it is refused. `retire_inline` ends that.
            across: Have it called with the runs of several streams at once, in the order of their positions, where a
                commit has them: after all of them were appended, which it would see if it looked into the log.
        """
        wanted = type_names(types)

        def handle(database: Database, appends: Sequence[Placed]) -> None:
            found = staged_runs(self, database, appends, wanted)
            for runs in [list(chain.from_iterable(found))] if across else found:
                if runs:
                    handler(database, runs)

        stored = None if wanted is None else frozenset(stored_names(wanted))
        self.store.inline(name, stored, handle, fingerprint, across)
        if fingerprint is not None and not self.store.readonly:
            registered = Registered(fingerprint, None if stored is None else tuple(sorted(stored)))
            if self.store.registered_inline().get(name) != registered:
                self.store.register_inline(name, registered)

    def inline_projections(self) -> dict[str, tuple[str, ...] | None]:
        """The inline handlers that everyone must have who appends their types: by name, the types (None: all)."""
        found = self.store.registered_inline()
        return {name.removeprefix(_PROJECTION): found[name].types for name in sorted(found)}

    def retire_inline(self, name: str) -> None:
        """Let events be appended without an inline handler again; what it has kept so far stays as it is.

        Raises:
            NotFound: None of that name is registered.
        """
        known = self.store.registered_inline()
        if name not in known and f"{_PROJECTION}{name}" in known:
            name = f"{_PROJECTION}{name}"
        if name not in known:
            raise NotFound(
                f"no inline projection {name!r} is registered",
                hint=f"There are: {', '.join(self.inline_projections()) or 'none'}",
            )
        self.store.register_inline(name, None)

    # --- the rest -------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether this process has closed it."""
        return self.store.closed

    @property
    def path(self) -> str:
        """The path of the log's file; empty for a log in memory or in PostgreSQL."""
        return self.store.location if self.store.is_file else ""

    @property
    def location(self) -> str:
        """Where it is, as `millstream.open` takes it, without a password; empty in memory."""
        return self.store.location

    @property
    def id(self) -> str:
        """What tells this log from any other, for as long as it lives."""
        return self.store.log_id

    def now(self) -> datetime:
        """The present by the log's clock (UTC)."""
        return from_micros(self.store.now())

    def confirm_clock(self) -> None:
        """Accept the wall clock as it is, after it was refused with `ClockJumped`."""
        self.store.confirm_clock()

    def verify(
        self,
        *,
        head: str | None = None,
        archives: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Verified:
        """Walk the hash chain and the bodies; see `millstream.log.verify.verify`."""
        from .verify import verify

        return verify(self, head=head, archives=archives, progress=progress)

    def check_schema(self, *, progress: Callable[[int, int], None] | None = None) -> list[Checked]:
        """Read every stored event through today's classes; see `millstream.check_schema`."""
        from .check import check_schema

        return check_schema(self, progress=progress)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the whole log to a new file while it is in use; see `millstream.log.moving.backup`."""
        from .moving import backup

        backup(self, path)

    def copy_to(
        self,
        target: Log | Segments | str,
        *,
        follow: bool = False,
        verify: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Copied:
        """Copy the log to another home, or to a depot, as it is; see `millstream.log.moving.copy`.

        Args:
            target: An empty log or an earlier copy, or its path; a path that ends in ``/`` and an address of an object
                store such as ``s3://bucket/prefix`` are depots.
            follow: When level, go on with what comes, until the log is closed.
            verify: Walk the target afterwards.
            progress: Called after each page.
        """
        from .depots import is_depot
        from .moving import Segments, copy

        if not isinstance(target, str):
            return copy(self, target, follow=follow, verify=verify, progress=progress)
        if is_depot(target):
            return copy(self, Segments(target), follow=follow, verify=verify, progress=progress)
        with open(target) as opened:
            return copy(self, opened, follow=follow, verify=verify, progress=progress)

    def export(self, path: str | os.PathLike[str], stream: str | None = None, *, types: Types = None) -> int:
        """Write events to a file: NDJSON of any events, or Parquet (a path ending so) of one stream's rows.

        Returns:
            How many.

        Raises:
            DiskFull, StorageError: The file cannot be written; what was there before stays.
        """
        from .transfer import export_file

        return export_file(self, path, stream, types=types)

    def import_(self, path: str | os.PathLike[str], stream: str | None = None, *, type: str | None = None) -> int:
        """Append what `export` wrote; positions and times are this log's own.

        Args:
            path: A file of NDJSON lines, or a Parquet file (a path ending so).
            stream: The stream to append to; by default, the one that each line names. Parquet needs it.
            type: The type of events that do not name theirs.

        Returns:
            How many events.

        Raises:
            InvalidEvent: A line is not an event; names the line. What was appended before it stands.
        """
        from .transfer import import_file

        return import_file(self, path, stream, type=type)

    def compact(self, stream: str | None = None) -> Compacted:
        """Merge the bodies of many small runs into large ones; see `millstream.log.compact.compact`."""
        from .compact import compact

        return compact(self, stream)

    # --- personal data --------------------------------------------------------------------------------

    def forget(self, subject: str) -> Forgotten:
        """Make all personal data of a subject unreadable, for good: in this log, its copies and its old backups.

        Their key is destroyed, durably, after those of the snapshots that may hold their data; from then on each of
        their `Personal` fields reads as `Erased`, and what is appended for them raises `SubjectForgotten`. Headers,
        hashes and all other fields stay. What left the log before is beyond its reach: read models, sinks and files of
        exports. It can be repeated, which changes nothing more, and gives the same report.

        Args:
            subject: Whose data it is: what the events' ``subject=`` field holds. They need not have any.

        Returns:
            How many events of which streams are unreadable, and which consumers may hold copies.

        Raises:
            KeysNeeded: The log was opened without keys, and has no place for them.
            ReadOnlyLog: It was opened to be read.
            DepotError, DamagedLog: Some events cannot be looked into now. The key is destroyed all the same; the
                report is given when they can be.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> log.forget("customer-7").events
            0
            >>> [(e.type, e.data) for e in log.read()]
            [('$SubjectForgotten', {'subject': 'customer-7'})]
        """
        from .personal.forget import forget

        return forget(self, subject)

    # --- retention and archives -----------------------------------------------------------------------

    @property
    def archives(self) -> Archives:
        """The log's archives: their files, whether they are whole, and how events come back from them."""
        from .retention.archives import Archives

        return Archives(self)

    def retain(self, stream: str, keep: Keep | None, *, archive: str | None = None, by: str | None = None) -> None:
        """Make a rule of how much of a stream is kept; `trim` does what the rules say. Nothing goes by itself.

        The most exact rule for a stream is the one that counts. Whole runs go, with the events of one append: a run
        stays as long as any of its events is to be kept. A pattern that does not name a stream or its whole category
        (``"sens*"``) is for frames only, so that it never takes the events of an aggregate.

        Args:
            stream: A stream, or a beginning of names such as ``"sensor-*"``: each of the streams keeps as much.
            keep: An age (``"30d"``), a number of events (``1_000_000``) or a size of stored bytes (``"10GB"``); None
                removes the rule.
            archive: Where the rest goes: a folder, or a URL such as ``"s3://bucket/prefix"``, without credentials.
                By default, the rest is dropped.
            by: Who makes the rule; default: the user of the operating system.

        Raises:
            InvalidRetention: The rule is not understood, or takes in all streams.
            InvalidDepot: The location cannot be used.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> log.retain("sensor-*", "30d", by="ann")
            >>> [(rule.pattern, rule.keep) for rule in log.rules()]
            [('sensor-*', '30d')]
        """
        from .retention.rules import retain

        retain(self, stream, keep, archive, by)

    def rules(self) -> tuple[Rule, ...]:
        """The retention rules, in order of their patterns."""
        from .retention.rules import rules

        return rules(self)

    def trim(
        self, stream: str | None = None, *, keep: Keep | None = None, dry_run: bool = False, by: str | None = None
    ) -> Trimming:
        """Drop, or archive, what the rules no longer keep. Headers and hashes stay, and `verify` holds.

        Readers pass over what was trimmed. It goes on beside writers in small steps, and can be stopped at any time.

        Args:
            stream: Only this stream, or a category such as ``"sensor-*"``.
            keep: Keep so much of the stream, this once and whatever the rules say; see `retain`.
            dry_run: Change nothing, and say what would go.
            by: Who trims; default: the user of the operating system.

        Returns:
            What went, stream by stream.

        Raises:
            InvalidRetention: ``keep`` or ``stream`` is not understood.
            StreamNotFound: A stream is named that is not there.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> for n in range(5):
            ...     receipt = log.append("clicks", ms.Plain("Click", {"n": n}))
            >>> log.trim("clicks", keep=2).events
            3
            >>> [e.data["n"] for e in log.read("clicks")]
            [3, 4]
        """
        from .retention.trim import trim

        return trim(self, stream, keep=keep, dry_run=dry_run, by=by)

    def archive(
        self, stream: str | None = None, *, to: str | None = None, keep: Keep = 0, by: str | None = None
    ) -> Archiving:
        """Put events into Parquet files of an archive, from which they are read as before.

        Each file is read back, and the hash of each run worked out from it, before anything relies on it.

        Args:
            stream: A stream, or a category such as ``"sensor-*"``; None: what the rules with an archive say.
            to: A folder, or a URL such as ``"s3://bucket/prefix"`` (extra ``objects``); may be left out when the log
                has one archive.
            keep: How much stays in the log; see `retain`. Default: nothing.
            by: Who archives; default: the user of the operating system.

        Raises:
            InvalidRetention, InvalidDepot: What is to be archived, or where to, is not understood.
            StreamNotFound: A stream is named that is not there.
            DepotError, DiskFull: The archive cannot take it; what was archived before stands.
            DamagedLog: A body does not match its hash; it is left as it is.
            MissingExtra: The place needs a package that is not installed.
        """
        from .retention.archive import archive

        return archive(self, stream, to=to, keep=keep, by=by)

    def close(self) -> None:
        """Close the log. What is under way ends first; followers end; idempotent."""
        self.store.close()
        self.bodies.close()
        if self._keys is not None:
            self._keys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self.store.closed else ""
        return f"<millstream.Log {self.location or 'in memory'}{closed}>"

    def __reduce__(self) -> Any:
        raise UsageError(
            f"{self!r} cannot be pickled or copied", hint="Hand its path over, and open it there: millstream.open(path)"
        )


def check_log(log: object) -> None:
    """See that what is to work on a log was given one.

    Raises:
        UsageError: It was given something else.
    """
    if not isinstance(log, Log):
        raise UsageError(f"{log!r:.60} is no log", hint="Give what millstream.open gives; of an async one, log.sync")


def _staged(appends: object) -> list[StagedAppend]:
    """What is to be appended of what `Log.commit` was given."""
    found: list[Any] = [each for each in appends if each is not None] if isinstance(appends, Iterable) else [appends]
    if not isinstance(appends, Iterable) or not all(isinstance(each, StagedAppend) for each in found):
        raise UsageError(
            f"{appends!r:.60} is no list of what is to be appended",
            hint="Give a list of what log.stage(…) or repository.stage(aggregate) made",
        )
    return found


def _request(
    appends: list[StagedAppend],
    id: str | None,
    digest: bytes | None = None,
    work: Callable[[Database, Receipt], None] | None = None,
) -> Request:
    if work is not None:
        check_plain(work)
    if id is None:
        return Request(appends, None, b"", work)
    check_label(id, "append id")
    return Request(appends, id, digest if digest is not None else digest_of(appends), work)
