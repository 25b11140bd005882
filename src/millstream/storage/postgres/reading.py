"""What a log in PostgreSQL is asked: headers and bodies, names, streams, pages on their way to another place."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ...errors import DamagedLog, NotFound
from ..base import (
    COLUMNS,
    AppendRow,
    BodyInfo,
    Head,
    Kind,
    PackedEvents,
    Scope,
    StreamInfo,
    after_prefix,
    last_of,
)
from ..database import Database
from ..raw import PAGE_BYTES, PAGE_RUNS, RawHead, RawPage, State
from .connections import Readers
from .database import Connection, PostgresDatabase, ReadingDatabase
from .kinds import Kinds
from .migrate import may_append, version_of
from .place import Place
from .raw import RawReader, snapshot
from .reader import Reader
from .writer import Writer

Result = TypeVar("Result")

_NAMES = 500_000


class Reading:
    """The reads of a `PostgresStore`, each on a connection that it borrows for a moment."""

    page_runs = 2_000
    _readers: Readers
    _writer: Writer

    def __init__(self, place: Place) -> None:
        self.place = place
        self._reader = Reader(place)
        self._raw = RawReader(place)
        self._kinds = Kinds(self._reader)
        self._streams: dict[int, str] = {}
        self._log_id: str | None = None
        self._ends: set[int] = set()

    def _renew(self) -> None:
        """In a forked child, connect anew."""
        raise NotImplementedError

    @property
    def location(self) -> str:
        return self.place.location

    def _read(self, operation: Callable[[Connection], Result]) -> Result:
        self._renew()
        return self._readers.read(operation)

    def _one(self, sql: str, params: Sequence[Any] = ()) -> Any:
        return self._read(lambda connection: connection.execute(sql, params).fetchone())

    @contextmanager
    def connect(self) -> Iterator[PostgresDatabase]:
        self._renew()
        with self._readers.reader() as connection:
            yield ReadingDatabase(connection, self.place.schema, self.location)

    @property
    def log_id(self) -> str:
        if self._log_id is None:
            row = self._one(f"select value from {self.place.quoted}.meta where key = 'log_id'")
            self._log_id = str(row[0]) if row is not None else ""
        return self._log_id

    def append_row(self, id: str) -> AppendRow | None:
        row = self._one(f"select digest, result, last from {self.place.quoted}.find_append($1)", (id,))
        return AppendRow(*row) if row is not None else None

    def head(self) -> Head:
        head = self._read(self._reader.head)
        self._writer.knows(head.position)
        self._remember_end(head.position)
        return head

    def packed(self, scope: Scope, after: int, until: int, limit: int) -> PackedEvents | None:
        """See `Store.packed`. This store has pages only."""
        return None

    def page(self, scope: Scope, after: int, until: int, limit: int, backwards: bool = False) -> list[tuple[Any, ...]]:
        def pages(connection: Connection) -> list[tuple[Any, ...]]:
            if scope.matching is not None:
                queries = [
                    (query, self._kinds_of(connection, scope.within(query)))
                    for query in scope.matching.any_of
                    if query.after + 1 < until
                ]
                rows = self._reader.matching_page(connection, scope, queries, after, until, limit, backwards)
            else:
                kinds = self._kinds_of(connection, scope)
                rows = self._reader.page(connection, scope, kinds, after, until, limit, backwards, after in self._ends)
            if scope.stream is None:
                self._learn_streams(connection, {row[1] for row in rows})
            return rows

        rows = self._read(pages)
        if rows and not backwards:
            self._remember_end(last_of(rows[-1]))
        return rows

    def stream_rows(self, stream: str, version: int, limit: int) -> list[tuple[int, int, int, int, str | None]]:
        return self._read(lambda connection: self._reader.stream_rows(connection, stream, version, limit))

    def _kinds_of(self, connection: Connection, scope: Scope) -> list[int] | None:
        return self._kinds.of(connection, scope) if scope.by_kind else None

    def _remember_end(self, position: int) -> None:
        """A run ends here: who reads on from here needs no look at the run before."""
        if len(self._ends) > 10_000:
            self._ends.clear()
        self._ends.add(position)

    def headers(self, after: int, limit: int) -> tuple[list[tuple[Any, ...]], dict[int, list[str]]]:
        def found(connection: Connection) -> tuple[list[Any], dict[int, list[str]]]:
            rows, tags = self._reader.headers(connection, after, limit)
            self._learn_streams(connection, {row[1] for row in rows})
            return rows, tags

        return self._read(found)

    def placed(self, database: Database, first: int, until: int) -> list[tuple[Any, ...]]:
        return database.execute(
            f"select {COLUMNS} from {self.place.quoted}.runs where position >= ? and position < ? order by position",
            (first, until),
        ).fetchall()

    def body(self, ref: int) -> tuple[int, bytes]:
        found = self._read(lambda connection: self._reader.body(connection, ref))
        if found is None:
            raise NotFound(f"body {ref} has moved", hint="Read its header again")
        return found

    def find_body(self, position: int) -> tuple[int, int] | None:
        return self._read(lambda connection: self._reader.find_body(connection, position))

    def body_infos(self, refs: Sequence[int]) -> dict[int, BodyInfo]:
        return self._read(lambda connection: self._reader.body_infos(connection, refs))

    def placeholders(self, encoding: int) -> Iterator[tuple[int, int, bytes]]:
        before = 0
        while True:
            rows = self._read(partial(self._reader.placeholders, encoding=encoding, before=before, limit=1000))
            yield from rows
            if len(rows) < 1000:
                return
            before = rows[-1][0]

    def kind(self, id: int) -> Kind:
        found = self._kinds.get(id) or self._read(lambda connection: self._kinds.find(connection, id))
        if found is None:
            raise DamagedLog(0, f"kind {id} has no name")
        return found

    def stream_name(self, id: int) -> str:
        found = self._streams.get(id)
        if found is None:
            self._read(lambda connection: self._learn_streams(connection, {id}))
            found = self._streams.get(id)
            if found is None:
                raise DamagedLog(0, f"stream {id} has no name")
        return found

    def _learn_streams(self, connection: Connection, ids: set[int]) -> None:
        """Names are learnt a page at a time: one by one would be a round trip each."""
        unknown = [id for id in ids if id not in self._streams]
        if unknown:
            if len(self._streams) > _NAMES:
                self._streams.clear()
            self._streams.update(self._reader.stream_names(connection, unknown))

    def tags(self, position: int) -> tuple[str, ...]:
        return self._read(lambda connection: self._reader.tags(connection, position))

    def position_at(self, micros: int) -> int:
        return self._read(lambda connection: self._reader.position_at(connection, micros))

    def version_bounds(self, stream: str, first: int, last: int, low: int, high: int) -> tuple[int, int]:
        return self._read(lambda c: self._reader.version_bounds(c, stream, first, last, low, high))

    def kinds(self, scope: Scope) -> list[int]:
        return self._read(lambda connection: self._kinds.of(connection, scope))

    def stream_kinds(self, name: str, kinds: list[int]) -> tuple[list[int], bool]:
        return self._read(lambda connection: self._reader.stream_kinds(connection, name, kinds))

    def range_of(self, position: int, name: str) -> tuple[int, int] | None:
        return self._read(lambda connection: self._reader.range_of(connection, position, name))

    def stream(self, name: str) -> StreamInfo | None:
        found = self._read(lambda connection: self._reader.streams(connection, "s.name = $1", (name,), 1))
        return found[0] if found else None

    def streams(self, prefix: str = "", *, batch: int = 500) -> Iterator[StreamInfo]:
        after = ""
        where = "s.name > $1 and s.name >= $2" + (" and s.name < $3" if prefix else "")
        ends = (after_prefix(prefix),) if prefix else ()
        while True:
            infos = self._read(partial(self._reader.streams, where=where, params=(after, prefix, *ends), limit=batch))
            yield from (info for info in infos if info.version)
            if len(infos) < batch:
                return
            after = infos[-1].name

    def describe(self) -> dict[str, Any]:
        """What there is to know of the place where it is."""

        def look(connection: Connection) -> dict[str, Any]:
            row = connection.execute("select current_setting('server_version'), pg_is_in_recovery()").fetchone()
            assert row is not None
            return {
                "schema": self.place.schema,
                "version": version_of(connection, self.place),
                "server": row[0],
                "standby": row[1],
                "appends": not row[1] and may_append(connection, self.place),
            }

        return self._read(look)

    def size(self) -> int:
        found = self._one(
            "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relkind in ('r', 'm', 'S')",
            (self.place.schema,),
        )
        return int(found[0])

    def copy_to(self, path: str) -> bool:
        return False

    def check(self) -> None:
        """Nothing: PostgreSQL checks its pages itself, where it was set up with checksums."""

    # --- moving house ---------------------------------------------------------------------------------

    def raw_head(self) -> RawHead:
        return self._read(partial(self._in_snapshot, self._raw.raw_head))

    def raw_header(self, position: int) -> tuple[int, Head] | None:
        return self._read(lambda connection: self._raw.header(connection, position))

    def raw_page(
        self,
        after: int,
        *,
        until: int | None = None,
        known: Container[int] = (),
        state: bool = False,
        limit_runs: int = PAGE_RUNS,
        limit_bytes: int = PAGE_BYTES,
    ) -> RawPage:
        return self._read(
            partial(
                self._in_snapshot,
                lambda c: self._raw.page(c, after, until, known, state, limit_runs, limit_bytes),
            )
        )

    def raw_bodies(self) -> set[int]:
        return self._read(self._raw.bodies)

    def raw_state(self) -> State | None:
        return self._read(partial(self._in_snapshot, self._raw.state))

    def _in_snapshot(self, operation: Callable[[Connection], Result], connection: Connection) -> Result:
        with snapshot(connection):
            return operation(connection)
