"""The read side of the PostgreSQL store: each question is one statement, one round trip, no transaction kept open.

Pages go by key, which needs no cursor: reading 100 M events holds a page in memory, and works through a pooler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import COLUMNS, PLAIN, BodyInfo, Head, Matching, Scope, StreamInfo, after_prefix, narrowed
from .database import Connection
from .place import Place

_NEVER = 1 << 62
_PLAIN = PLAIN.replace("body", "case when effective is null then body end as body", 1)


class Reader:
    """The statements, with the log's schema in them."""

    def __init__(self, place: Place) -> None:
        self._s = s = place.quoted
        self._runs = f"{s}.runs"

    def _all(self, connection: Connection, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        return connection.execute(sql, params, binary=True).fetchall()

    def _one(self, connection: Connection, sql: str, params: Sequence[Any] = ()) -> Any:
        return connection.execute(sql, params, binary=True).fetchone()

    # --- headers --------------------------------------------------------------------------------------

    def head(self, connection: Connection) -> Head:
        """The end of the log."""
        return Head(*self._one(connection, f"select h.position, h.recorded, h.hash from {self._s}.head() h"))

    def stream_rows(
        self, connection: Connection, stream: str, version: int, limit: int
    ) -> list[tuple[int, int, int, int, str | None]]:
        """See `Store.stream_rows`."""
        return self._all(
            connection,
            f"with s as (select id from {self._s}.streams where name = $1)"
            f" select r.position, r.version, r.count, r.kind, r.body from s join {self._runs} r on r.stream = s.id"
            " where r.version >= coalesce((select version from"
            f" {self._runs} where stream = s.id and version <= $2 order by version desc limit 1), 0)"
            " order by r.version limit $3",
            (stream, version, limit),
        )

    def page(
        self, connection: Connection, scope: Scope, kinds: list[int] | None, after: int, until: int, limit: int,
        backwards: bool, whole: bool,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        """See `Store.page`.

        Args:
            kinds: Those that the scope takes in, or None when it is not restricted so.
            whole: It is known that a run ends at ``after``.
        """
        if until <= after + 1 or kinds == []:
            return []
        if scope.stream is not None:
            return self._stream_page(connection, scope.stream, kinds, after, until, limit, backwards)
        # One bound goes to the database, as where to begin, and rows beyond the other are dropped here: of two the
        # planner makes a bitmap and a sort, as long as it knows nothing of a young table.
        bound, order = ("r.position < $1", "desc") if backwards else ("r.position > $1", "asc")
        params: list[Any] = [until if backwards else after, limit]
        among = ""
        if kinds is None:
            rest = f"from {self._runs} r where {bound} order by r.position {order} limit $2"
        else:
            among, names = _inside(self._s, scope.further)
            params += [kinds, *names]
            # Each kind comes in order from the index; a page of each holds the page of all.
            rest = (
                f"from unnest($3::bigint[]) k cross join lateral (select * from {self._runs} r where r.kind = k"
                f" and {bound}{among} order by r.position {order} limit $2) r order by r.position {order} limit $2"
            )
            among += " and r.kind = any($3::bigint[])"
        rows = self._headers(connection, rest, params)
        if rows and not after < rows[-1][0] < until:
            rows = [row for row in rows if after < row[0] < until]
        if after and not whole and (not backwards or len(rows) < limit):
            # The run that holds `after` may reach beyond it; no run is longer than 65,536 events.
            edge = self._all(
                connection,
                f"select {COLUMNS} from {self._runs} r where r.position <= $1 and r.position > $1::bigint - 65536"
                f" and r.position + r.count > $1::bigint + 1 and $2::bigint > 0{among}"
                " order by r.position desc limit 1",
                [after, *params[1:]],
            )
            rows = [*rows, *edge] if backwards else [*edge, *rows]
        return rows[:limit]

    def _stream_page(
        self, connection: Connection, stream: str, kinds: list[int] | None, after: int, until: int, limit: int,
        backwards: bool,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        # Versions order a stream's runs as positions do, and only versions are indexed.
        first, last = 0, _NEVER
        if after or until < _NEVER:
            first, last = self._one(
                connection, f"select {self._s}.version_from($1, $2), {self._s}.version_at($1, $3)",
                (stream, after + 1, until),
            )  # fmt: skip
        bound, order = ("r.version < $2", "desc") if backwards else ("r.version >= $2", "asc")
        params: list[Any] = [stream, last if backwards else first, limit]
        among = ""
        if kinds is not None:
            among, params = " and r.kind = any($4::bigint[])", [*params, kinds]
        rows = self._headers(
            connection,
            f"from {self._runs} r where r.stream = (select s.id from {self._s}.streams s where s.name = $1)"
            f" and {bound}{among} order by r.version {order} limit $3",
            params,
        )
        if rows and not first <= rows[-1][2] < last:
            rows = [row for row in rows if first <= row[2] < last]
        return rows

    def matching_page(
        self, connection: Connection, scope: Scope, queries: Sequence[tuple[Matching, list[int] | None]], after: int,
        until: int, limit: int, backwards: bool,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        """See `Store.page`, of a scope with a query: its alternatives, each with the kinds that it may take.

        Args:
            queries: Those that begin before ``until``.
        """
        if not queries or until <= after + 1:
            return []
        order = "desc" if backwards else "asc"
        prefix = scope.further
        params: list[Any] = [
            limit, until, backwards, scope.stream, prefix, after_prefix(prefix) if prefix is not None else None
        ]  # fmt: skip
        parts = []
        for query, kinds in queries:
            n = len(params)
            parts.append(
                f"select m from {self._s}.matched(${n + 1}::text[], ${n + 2}::bigint[], $4::text, $5::text, $6::text,"
                f" ${n + 3}::bigint, $2::bigint, $1::bigint, $3::boolean) m"
            )
            params += [sorted(set(query.tags)), kinds, max(after, query.after)]
        # `offset 0` has each header looked up by its position, in this order.
        found = f"select m from ({' union '.join(parts)}) u order by m {order} limit $1::bigint"
        return self._headers(
            connection,
            f"from ({found}) f cross join lateral (select * from {self._runs} r where r.position = f.m offset 0) r"
            f" order by r.position {order}",
            params,
        )

    def _headers(self, connection: Connection, rest: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        rows = self._all(connection, f"select {_PLAIN} {rest}", params)
        if any(row[5] is None for row in rows):
            rows = self._all(connection, f"select {COLUMNS} {rest}", params)
        return rows

    def headers(self, connection: Connection, after: int, limit: int) -> tuple[list[Any], dict[int, list[str]]]:
        """See `Store.headers`."""
        rows = self._all(
            connection,
            f"select {COLUMNS}, body_hash, hash from {self._runs} where position > $1 order by position limit $2",
            (after, limit),
        )
        tags: dict[int, list[str]] = {}
        if rows:
            for position, tag in self._all(
                connection,
                f"select position, tag from {self._s}.tags where position > $1 and position <= $2"
                " order by position, tag",
                (after, rows[-1][0]),
            ):
                tags.setdefault(position, []).append(tag)
        return rows, tags

    def version_bounds(
        self, connection: Connection, stream: str, first: int, last: int, low: int, high: int
    ) -> tuple[int, int]:
        """See `Store.version_bounds`."""
        if last <= first:
            return low, low + 1
        for version, is_low in ((first, True), (last, False)):
            found = self._one(
                connection,
                f"select r.position, r.version, r.count from {self._runs} r"
                f" where r.stream = (select s.id from {self._s}.streams s where s.name = $1) and r.version <= $2"
                " order by r.version desc limit 1",
                (stream, version),
            )
            low, high = narrowed(low, high, version, is_low, found)
        return low, high

    def position_at(self, connection: Connection, micros: int) -> int:
        """See `Store.position_at`."""
        return int(self._one(connection, f"select {self._s}.position_at($1)", (micros,))[0])

    # --- names ----------------------------------------------------------------------------------------

    def kinds_after(self, connection: Connection, id: int) -> list[tuple[int, str, str, str]]:
        """The kinds with numbers beyond one: number, category, type, schema, in order."""
        sql = f"select id, category, type, schema from {self._s}.kinds where id > $1 order by id"
        return self._all(connection, sql, (id,))

    def stream_names(self, connection: Connection, ids: list[int]) -> list[tuple[int, str]]:
        """The names that some numbers of streams stand for."""
        return self._all(connection, f"select id, name from {self._s}.streams where id = any($1)", (ids,))

    def stream_kinds(self, connection: Connection, name: str, kinds: list[int]) -> tuple[list[int], bool]:
        """See `Store.stream_kinds`."""
        frames = {
            row[0]
            for row in self._all(
                connection,
                f"select c.kind from {self._s}.catalogue c join {self._s}.streams s on s.id = c.stream"
                " where s.name = $1 and c.kind = any($2)",
                (name, kinds),
            )
        }
        others = [kind for kind in kinds if kind not in frames]
        if not others:
            return sorted(frames), False
        found = self._one(
            connection,
            f"select 1 from {self._runs} r where r.stream = (select s.id from {self._s}.streams s where s.name = $1)"
            " and r.kind = any($2) limit 1",
            (name, others),
        )
        return sorted(frames), found is not None

    def tags(self, connection: Connection, position: int) -> tuple[str, ...]:
        """See `Store.tags`."""
        sql = f"select tag from {self._s}.tags where position = $1 order by tag"
        return tuple(row[0] for row in self._all(connection, sql, (position,)))

    def range_of(self, connection: Connection, position: int, name: str) -> tuple[int, int] | None:
        """See `Store.range_of`."""
        sql = f"select low, high from {self._s}.ranges where position = $1 and name = $2"
        return self._one(connection, sql, (position, name))  # type: ignore[no-any-return]

    # --- bodies ---------------------------------------------------------------------------------------

    def body(self, connection: Connection, ref: int) -> tuple[int, bytes] | None:
        """The encoding and the bytes of a body, if it is there."""
        sql = f"select encoding, bytes from {self._s}.bodies where id = $1"
        return self._one(connection, sql, (ref,))  # type: ignore[no-any-return]

    def body_infos(self, connection: Connection, refs: Sequence[int]) -> dict[int, BodyInfo]:
        """See `Store.body_infos`."""
        sql = f"select id, encoding, rows, length(bytes) from {self._s}.bodies where id = any($1::bigint[])"
        return {row[0]: BodyInfo(*row[1:]) for row in self._all(connection, sql, (list(refs),))}

    def placeholders(
        self, connection: Connection, encoding: int, before: int, limit: int
    ) -> list[tuple[int, int, bytes]]:
        """Merged bodies of an encoding with numbers below another, that one's neighbours first."""
        sql = f"select id, rows, bytes from {self._s}.bodies where id < $1 and encoding = $2 order by id desc limit $3"
        return self._all(connection, sql, (before, encoding, limit))

    def find_body(self, connection: Connection, position: int) -> tuple[int, int] | None:
        """See `Store.find_body`."""
        row = self._one(connection, f"select body_ref, body_offset from {self._runs} where position = $1", (position,))
        return row if row is not None and row[0] is not None else None

    # --- streams --------------------------------------------------------------------------------------

    def streams(self, connection: Connection, where: str, params: Sequence[Any], limit: int) -> list[StreamInfo]:
        """Streams at a glance, in order of name. ``where`` speaks of ``s``."""
        return [
            StreamInfo(*row)
            for row in self._all(
                connection,
                "select s.name, coalesce(b.version, 0), coalesce(a.position, 0), coalesce(b.position, 0),"
                f" coalesce(a.recorded, 0), coalesce(b.recorded, 0), s.closed from {self._s}.streams s"
                f" left join lateral (select r.position, r.recorded from {self._runs} r where r.stream = s.id"
                " order by r.version limit 1) a on true"
                " left join lateral (select r.position + r.count - 1 as position, r.recorded,"
                f" r.version + r.count - 1 as version from {self._runs} r where r.stream = s.id"
                f" order by r.version desc limit 1) b on true where {where} order by s.name limit {limit}",
                params,
            )
        ]


def _inside(schema: str, prefix: str | None) -> tuple[str, tuple[str, ...]]:
    """The condition that a run's stream begins with a prefix, where its kind's category does not say so already."""
    if prefix is None:
        return "", ()
    inside = f" and r.stream in (select s.id from {schema}.streams s where s.name >= $4 and s.name < $5)"
    return inside, (prefix, after_prefix(prefix))
