"""Moving house, in PostgreSQL: pages of a log as it is stored, given in a few statements each."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import Any

import msgspec

from ...conversion import ready
from ...errors import DamagedLog
from ..base import Head
from ..raw import (
    CARRIED,
    EMPTY,
    STATE_BYTES,
    Carried,
    RawAppend,
    RawBody,
    RawHead,
    RawPage,
    RawRun,
    Role,
    State,
    check_found,
    cut_at_commit,
    label,
)
from .database import Connection
from .place import Place, quote_name

_HEADER = 300
"""About what a header takes, in bytes."""
_NEVER = 1 << 62
_RECORDED, _REF = 6, 13


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """All that is read inside is of one moment."""
    connection.execute("begin isolation level repeatable read read only")
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("rollback")


class RawReader:
    """The statements, with the log's schema in them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._s = place.quoted

    def _all(self, connection: Connection, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        return connection.execute(sql, params, binary=True).fetchall()

    def role(self, connection: Connection) -> Role | None:
        """What the log is, when it is not simply the home of its events."""
        found = self._all(connection, f"select value from {self._s}.meta where key = 'role'")
        return msgspec.json.decode(found[0][0], type=ready(Role)) if found else None

    def raw_head(self, connection: Connection) -> RawHead:
        """Where a log ends, whose it is, and what role it has."""
        [(log_id,)] = self._all(connection, f"select value from {self._s}.meta where key = 'log_id'")
        return RawHead(log_id, self._head_at(connection, _NEVER), self.role(connection))

    def header(self, connection: Connection, position: int) -> tuple[int, Head] | None:
        """See `RawSource.raw_header`."""
        found = self._all(
            connection,
            f"select position, count, recorded, hash from {self._s}.runs where position <= $1"
            " order by position desc limit 1",
            (position,),
        )
        if not found or found[0][0] + found[0][1] <= position:
            return None
        first, count, recorded, hash = found[0]
        return first, Head(first + count - 1, recorded, hash)

    def _head_at(self, connection: Connection, position: int) -> Head:
        found = self._all(
            connection,
            f"select position + count - 1, recorded, hash from {self._s}.runs where position <= $1"
            " order by position desc limit 1",
            (position,),
        )
        return Head(*found[0]) if found else EMPTY

    def page(
        self, connection: Connection, after: int, until: int | None, known: Container[int], state: bool,
        limit_runs: int, limit_bytes: int,
    ) -> RawPage:  # fmt: skip
        """See `RawSource.raw_page`. Call inside a `snapshot`."""
        [(log_id,)] = self._all(connection, f"select value from {self._s}.meta where key = 'log_id'")
        start = self._head_at(connection, after)
        if start.position != after:
            raise DamagedLog(after, "no run ends there")
        bound = _NEVER if until is None else until
        rows, whole, more = self._rows(connection, after, bound, limit_runs, limit_bytes)
        result = RawPage(log_id=log_id, after=start, runs=list(starmap(RawRun, rows)), whole=whole)
        last = result.head.position
        if rows:
            self._add_labels(connection, result.runs, after, last)
            result.bodies = self._bodies(connection, {row[_REF] for row in rows} - {None}, after, known)
            result.closed = self._closed(connection, {run.stream for run in result.runs}, last)
        result.appends = [
            RawAppend(*row)
            for row in self._all(
                connection,
                f"select id, digest, first, last, result from {self._s}.appends where last >= $1 and last <= $2",
                (after, last),
            )
        ]
        if not more and until is None:
            result.level = True
            result.state = self.state(connection, whole=state)
            result.state_current = result.state is not None
        return result

    def _rows(
        self, connection: Connection, after: int, bound: int, limit_runs: int, limit_bytes: int
    ) -> tuple[list[tuple[Any, ...]], bool, bool]:
        """Rows of a page; whether they end where a commit ends; whether there are more."""
        rows = self._all(
            connection,
            # A running total of what the headers before take, so that what is too much never leaves the server.
            "select position, count, name, version, type, schema, recorded, effective, format, body_hash, hash,"
            " metadata, body, body_ref, body_offset from (select p.*, s.name, k.type, k.schema,"
            " row_number() over (order by p.position) as nth,"
            f" sum({_HEADER} + coalesce(octet_length(p.body), 0) + coalesce(octet_length(p.metadata), 0) + case"
            "   when p.body_ref is null or p.again > 1 then 0 else coalesce((select octet_length(b.bytes)"
            f"  from {self._s}.bodies b where b.id = p.body_ref), 0) end) over (order by p.position) as total"
            " from (select r.*, row_number() over (partition by r.body_ref order by r.position) as again"
            f"  from (select * from {self._s}.runs r where r.position > $1 order by r.position limit $2) r) p"
            # Left joins, so that a name that is missing shows as such and not as a header that is.
            f" left join {self._s}.streams s on s.id = p.stream left join {self._s}.kinds k on k.id = p.kind) t"
            " where total <= $3 or nth = 1 order by position",
            (after, limit_runs + 1, limit_bytes),
        )
        more = len(rows) > limit_runs or self._follows(connection, rows, after)
        if rows and rows[-1][0] + rows[-1][1] > bound:
            rows = [row for row in rows if row[0] + row[1] <= bound]
            more = False
        if not more:
            return rows, True, False
        # The last one of a page ends a commit if the next was recorded later; so look at one more than is kept.
        keep = min(len(rows), limit_runs)
        if len(rows) == keep:
            rows = [*rows, self._next(connection, rows[-1])]
        kept, whole = cut_at_commit(rows, _RECORDED, keep)
        return rows[:kept], whole, True

    def _follows(self, connection: Connection, rows: list[Any], after: int) -> bool:
        last = rows[-1][0] + rows[-1][1] - 1 if rows else after
        return self._head_at(connection, _NEVER).position > last

    def _next(self, connection: Connection, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of the run after another, when it was recorded: in the place that this has in a row."""
        [(recorded,)] = self._all(
            connection, f"select recorded from {self._s}.runs where position = $1", (row[0] + row[1],)
        )
        return (*row[:_RECORDED], recorded, *row[_RECORDED + 1 :])

    def _add_labels(self, connection: Connection, runs: list[RawRun], after: int, last: int) -> None:
        among = "where position > $1 and position <= $2"
        tags = f"select position, tag from {self._s}.tags {among} order by position, tag"
        ranges = f"select position, name, low, high from {self._s}.ranges {among}"
        label(runs, self._all(connection, tags, (after, last)), self._all(connection, ranges, (after, last)))

    def _bodies(self, connection: Connection, refs: set[int], after: int, known: Container[int]) -> dict[int, RawBody]:
        wanted = sorted(ref for ref in refs if ref > 0 or ref not in known)
        if not wanted:
            return {}
        sql = f"select id, encoding, rows, bytes from {self._s}.bodies where id = any($1::bigint[])"
        found = {row[0]: RawBody(*row[1:]) for row in self._all(connection, sql, (wanted,))}
        check_found(found, wanted, after)
        return found

    def _closed(self, connection: Connection, streams: set[str], last: int) -> list[str]:
        """Those of a page's streams that are closed and have no event after it."""
        return [
            row[0]
            for row in self._all(
                connection,
                f"select s.name from {self._s}.streams s where s.name = any($1) and s.closed and (select r.position"
                f" from {self._s}.runs r where r.stream = s.id order by r.version desc limit 1) <= $2",
                (sorted(streams), last),
            )
        ]

    def bodies(self, connection: Connection) -> set[int]:
        """See `RawTarget.raw_bodies`."""
        return {row[0] for row in self._all(connection, f"select id from {self._s}.bodies where id < 0")}

    # --- consumers' state -----------------------------------------------------------------------------

    def table(self, name: str) -> str:
        """A carried table as a statement names it."""
        return f"{self._s}.{quote_name(name)}"

    def _tables(self, connection: Connection) -> list[Carried]:
        sql = "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1"
        names = {row[0] for row in self._all(connection, sql, (self._place.schema,))}
        return [table for table in CARRIED if table.name in names]

    def state(self, connection: Connection, *, whole: bool = False) -> State | None:
        """The rows of the carried tables; None when they are too many and were not asked for whatever their size."""
        tables = self._tables(connection)
        if not whole and sum(self._size(connection, table) for table in tables) > STATE_BYTES:
            return None
        found: State = {}
        for table in tables:
            where, params = condition(table)
            order = ", ".join(f'{name} collate "C"' if type == "text" else name for name, type in table.key_columns)
            sql = f"select {table.names} from {self.table(table.name)}{where} order by {order}"
            found[table.name] = self._all(connection, sql, params)
        return found

    def _size(self, connection: Connection, table: Carried) -> int:
        sizes = " + ".join(f"coalesce(octet_length({name}), 0)" for name, type in table.columns if type != "integer")
        [(size,)] = self._all(connection, f"select coalesce(sum({sizes}), 0)::bigint from {self.table(table.name)}")
        return int(size)


def condition(table: Carried) -> tuple[str, list[str]]:
    """The condition on a carried table's rows."""
    if not table.prefixes:
        return "", []
    name = table.columns[0][0]
    marks = [f"starts_with({name}, ${number})" for number in range(1, len(table.prefixes) + 1)]
    return " where " + " or ".join(marks), list(table.prefixes)
