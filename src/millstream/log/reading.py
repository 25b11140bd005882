"""The reading half of a log."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..blocks import Block
from ..errors import InvalidPosition, StreamNotFound, UsageError
from ..events import Event, decoder, definitions, event_class, sealed_fields, type_name
from ..evolution import stored_names
from ..frames import Columns, is_frame_schema, schema_columns
from ..storage.base import Matching, Receipt, Scope, StreamInfo
from ..storage.contract import Store
from ..storage.database import Database
from ..time import Duration, Moment, seconds, to_micros
from . import following, paging
from .bodies import Bodies
from .paging import END, IfTrimmed
from .present import Plan, plan_of, present
from .records import Recorded, Run, recorded_events
from .singles import Singles
from .staging import check_stream

if TYPE_CHECKING:
    import polars as pl

    from .personal.keys import Keys

Types = Iterable[str | type[Event]] | str | type[Event] | None


class Reader:
    """All that a log is asked without being changed; `millstream.Log` is one."""

    def __init__(self, store: Store, keys: Any = None) -> None:
        self.store = store
        self._given_keys = keys
        self._keys: Keys | None = None
        if keys is not None:
            self._keys = self._made_keys()  # what is wrong with it is told at once
        self.bodies = Bodies(store)
        self.tail = following.Tail(self)
        self.decoders: dict[int, Callable[[Any], Any]] = {}
        """How to decode the JSON of a kind, for the kinds that were read and have a class."""
        self.plans: dict[int, Plan | None] = {}
        """What is to be done with runs of a kind, for the kinds that were read; see `present.plan_of`."""
        self._undecodable: set[int] = set()
        self.sealed: dict[int, tuple[str, ...]] = {}
        """The sealed fields of each kind that has any, of those that were read."""
        self._definitions = -1
        self._columns: dict[int, Columns] = {}
        self.inside: set[int] = set()
        """The threads that are inside of a transaction."""
        store.on_stale.append(self._forget)
        _readers.add(self)

    def _forked(self) -> None:
        """In a forked child: other threads than this one are in the parent."""
        self.inside.intersection_update({threading.get_ident()})
        self.tail.forked()

    def _forget(self) -> None:
        """Nothing that was read is to be trusted; see `Store.on_stale`."""
        self.bodies.forget()
        self.tail.forget()
        self.decoders.clear()
        self.plans.clear()
        self._undecodable.clear()
        self.sealed.clear()
        self._columns.clear()

    @property
    def keys(self) -> Keys:
        """The keys of personal data; see `millstream.log.personal.keys.Keys`."""
        if self._keys is None:
            self._keys = self._made_keys()
        return self._keys

    @property
    def given_keys(self) -> Any:
        """Where the keys of personal data are, as it was said when the log was opened."""
        return self._given_keys

    def _made_keys(self) -> Keys:
        from .personal.keys import Keys

        return Keys(self, self._given_keys)

    @property
    def head(self) -> int:
        """Position of the last event; 0 when the log is empty."""
        return self.store.head().position

    def read(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int | Receipt | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        since_version: int | None = None,
        until_version: int | None = None,
        since_position: int | None = None,
        until_position: int | None = None,
        backwards: bool = False,
        limit: int | None = None,
        matching: Matching | None = None,
        trimmed: IfTrimmed = "skip",
    ) -> Iterator[Recorded]:
        """Events in order of position, as a lazy iterator over what is in the log now.

        Args:
            stream: A stream's name, or a category such as ``"account-*"``; None for the whole log.
            types: Only events of these classes or type names.
            after: Only events after this position, or after what a receipt stands for.
            since: Only events recorded at or after this time.
            until: Only events recorded before this time.
            since_version: Only events of the stream from this version on.
            until_version: Only events of the stream before this version.
            since_position: Only events from this position on.
            until_position: Only events before this position.
            backwards: The last one first.
            limit: At most so many.
            matching: Only events that this query matches; what narrows them most, leads, by index.
            trimmed: Pass over events that retention has trimmed (``"skip"``), or ``"raise"``.

        Raises:
            InvalidPosition, InvalidTime, InvalidStreamName: An argument is not what it should be.
            Trimmed: Events that were asked for were trimmed, and ``trimmed="raise"``.

        Example:
            >>> import millstream as ms
            >>> log = ms.open()
            >>> receipt = log.append("audit", [ms.Plain("Login", {}), ms.Plain("Logout", {})])
            >>> [e.type for e in log.read("audit", backwards=True)]
            ['Logout', 'Login']
            >>> receipt = log.append("audit", ms.Plain("Login", {}), tags=["user:7"])
            >>> [e.position for e in log.read(matching=ms.Matching(types=["Login"], tags=["user:7"]))]
            [3]
        """
        pages = self._runs(
            stream, types, after, since, until, since_version, until_version, since_position, until_position,
            backwards, _count("limit", limit), trimmed, matching,
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
        after: int | Receipt = 0,
        since: Moment | None = None,
        until: Moment | None = None,
        since_version: int | None = None,
        until_version: int | None = None,
        until_position: int | None = None,
        matching: Matching | None = None,
        trimmed: IfTrimmed = "skip",
    ) -> Iterator[Run]:
        """The same as `read`, by runs: whole frames, and neighbouring events of one append together."""
        pages = self._runs(
            stream,
            types,
            after,
            since,
            until,
            since_version,
            until_version,
            None,
            until_position,
            False,
            None,
            trimmed,
            matching,
        )
        return chain.from_iterable(pages)

    def _runs(
        self,
        stream: str | None,
        types: Types,
        after: int | Receipt | None,
        since: Moment | None,
        until: Moment | None,
        since_version: int | None,
        until_version: int | None,
        since_position: int | None,
        until_position: int | None,
        backwards: bool,
        limit: int | None,
        trimmed: IfTrimmed,
        matching: Matching | None,
    ) -> Iterator[list[Run]]:
        scope = scope_of(stream, types, matching)
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
        return self.pages(scope, low, high, backwards, limit, trimmed)

    def pages(
        self, scope: Scope, low: int, high: int, backwards: bool, limit: int | None, trimmed: IfTrimmed = "skip"
    ) -> Iterator[list[Run]]:
        """Runs of a scope strictly between two positions, a page at a time; those at the edges are cut."""
        return paging.pages(self, scope, low, high, backwards, limit, trimmed)

    def spans(self, scope: Scope, low: int, high: int, trimmed: IfTrimmed = "skip") -> Iterator[list[Run] | Singles]:
        """The same, forwards, for who makes columns of them: `Singles` where single events stand alike."""
        return paging.spans(self, scope, low, high, trimmed)

    def present(self, runs: list[Run], *, backwards: bool = False) -> Iterator[list[Run]]:
        """Stored runs as they are read today, in parts: the very same list where none of them needs a change."""
        return present(self, self.unsealed(runs), backwards=backwards)

    def stored(self, scope: Scope, low: int = 0, high: int = END) -> Iterator[list[Run]]:
        """The same as `pages`, as they are stored: under the names and in the shapes that they had then."""
        return paging.stored(self, scope, low, high)

    def unsealed(self, runs: list[Run]) -> list[Run]:
        """Stored runs, those with sealed fields replaced by such as can be read; the very same list without any."""
        self._refresh_decoders({run.kind_id for run in runs})
        sealed = self.sealed
        if not sealed or all(run.kind_id not in sealed for run in runs):
            return runs
        from .personal.sealing import unsealed

        self.keys.refresh()
        return [unsealed(self, run, sealed[run.kind_id]) if run.kind_id in sealed else run for run in runs]

    def left(self, runs: list[Run], trimmed: IfTrimmed = "skip") -> list[Run]:
        """The runs that were not trimmed; with ``"raise"``, `Trimmed` for the first that was."""
        merged = {ref for run in runs if (ref := run.body_ref) is not None and ref < 0}
        gone = self.bodies.trimmed(merged) if merged else merged
        if not gone:
            return runs
        if trimmed == "raise":
            first = next(run for run in runs if run.body_ref in gone)
            self.bodies.refuse(first.body_ref or 0, first.position)
        return [run for run in runs if run.body_ref not in gone]

    def follow(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int | Receipt = 0,
        matching: Matching | None = None,
        timeout: Duration | float | None = None,
    ) -> Iterator[Recorded]:
        """History after a position, then what comes, as it comes: gapless, in order, each event once.

        Args:
            stream: A stream, a category such as ``"account-*"``, or None for the whole log.
            types: Only events of these classes or type names.
            after: The last position that the caller has seen, or a receipt; 0 for all.
            matching: Only events that this query matches.
            timeout: End when nothing came for so long; None: only when the log is closed.
        """
        scope, position = scope_of(stream, types, matching), _count("after", after) or 0
        for batch in following.follow(self, scope, position, seconds(timeout)):
            for seen in batch:
                yield from seen.events()

    def follow_runs(
        self,
        stream: str | None = None,
        *,
        types: Types = None,
        after: int | Receipt = 0,
        matching: Matching | None = None,
        timeout: Duration | float | None = None,
    ) -> Iterator[list[Run]]:
        """The same as `follow`, by lists of runs as they were found."""
        scope, position = scope_of(stream, types, matching), _count("after", after) or 0
        for batch in following.follow(self, scope, position, seconds(timeout)):
            yield [seen.run for seen in batch]

    def wait(self, after: int | Receipt, timeout: Duration | float | None = None) -> bool:
        """Wait until the log's head is beyond a position.

        Returns:
            False when the time was up, or the log closed, before that.
        """
        after = _count("after", after) or 0
        limit = seconds(timeout)
        if self.store.closed:
            return False
        if self.head > after:
            return True
        return self.store.signal.wait(after, max(limit, 0.0) if limit is not None else None)

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
            InvalidQuery: The query is wrong.
        """
        from .sql import sql

        return sql(self, query)

    def streams(self, pattern: str = "*") -> Iterator[StreamInfo]:
        """The streams whose names fit: a name, or a beginning followed by ``*``. In order of name."""
        if not isinstance(pattern, str):
            raise UsageError(f"{pattern!r:.60} is no pattern", hint="Give a name, or a beginning followed by '*'")
        if pattern.endswith("*"):
            prefix = pattern[:-1]
            return self.store.streams(check_stream(prefix) if prefix else "")
        found = self.store.stream(check_stream(pattern))
        return iter([found] if found else [])

    def stream(self, name: str) -> StreamInfo:
        """A stream at a glance.

        Raises:
            StreamNotFound: No event was ever appended to it.
        """
        found = self.store.stream(check_stream(name))
        if found is None:
            raise StreamNotFound(name)
        return found

    def version(self, stream: str) -> int:
        """The version of a stream: how many events it has; 0 when there is none."""
        found = self.store.stream(check_stream(stream))
        return found.version if found else 0

    def position_at(self, time: Moment) -> int:
        """The last position recorded strictly before a time; 0 when there is none."""
        return self.store.position_at(to_micros(time))

    def connect(self) -> AbstractContextManager[Database]:
        """A connection to read the log's own database with, for the read models that live there."""
        return Block(self.store.connect(), "log.connect() as db")

    # --- caches that runs use -------------------------------------------------------------------------

    def _refresh_decoders(self, kinds: Iterable[int]) -> None:
        """Make `decoders` hold what this process can decode of these kinds."""
        if self._definitions != definitions():
            self._definitions = definitions()
            self.decoders.clear()
            self.plans.clear()
            self._undecodable.clear()
        for kind in kinds:
            if kind not in self.decoders and kind not in self._undecodable:
                found = self.store.kind(kind)
                if fields := sealed_fields(found.schema):
                    self.sealed[kind] = fields
                cls = event_class(found.type)
                if cls is None or is_frame_schema(found.schema):
                    self._undecodable.add(kind)
                else:
                    self.decoders[kind] = decoder(cls).decode

    def is_plain(self, kind: int) -> bool:
        """Whether events of a kind are read as they are stored: neither sealed, nor of another name or shape."""
        self._refresh_decoders([kind])
        return kind not in self.sealed and plan_of(self, kind) is None

    def columns_of(self, kind: int) -> Columns:
        """The columns of a kind of frame."""
        found = self._columns.get(kind)
        if found is None:
            schema = self.store.kind(kind).schema
            found = self._columns[kind] = schema_columns(schema) if is_frame_schema(schema) else {}
        return found


def scope_of(stream: str | None, types: Types, matching: Matching | None = None) -> Scope:
    """What a reader wants, checked."""
    shown = type_names(types)
    names = None if shown is None else stored_names(shown)
    if matching is not None and not isinstance(matching, Matching):
        raise UsageError(f"matching={matching!r:.60} is no query", hint="Give a millstream.Matching")
    if stream is None or stream == "*":
        return Scope(None, None, names, shown, matching)
    if isinstance(stream, str) and stream.endswith("*"):
        check_stream(stream[:-1])
        return Scope(None, stream[:-1], names, shown, matching)
    return Scope(check_stream(stream), None, names, shown, matching)


def type_names(types: Types) -> frozenset[str] | None:
    """The present names of types; None for all."""
    if types is None:
        return None
    if isinstance(types, str) or not isinstance(types, Iterable):
        types = [types]
    return frozenset(type_name(each) for each in types)


_readers: weakref.WeakSet[Reader] = weakref.WeakSet()


def _forked() -> None:
    for reader in list(_readers):
        reader._forked()


os.register_at_fork(after_in_child=_forked)


def _count(name: str, value: int | Receipt | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, Receipt):
        value = value.position
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidPosition(f"{name}={value!r:.60} is not a whole number from 0 on", hint="Give an int")
    return min(value, END)


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
