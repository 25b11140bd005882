"""The read side of the SQLite store: pages of headers, bodies, streams, and times as positions."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..base import COLUMNS, PLAIN, Matching, Scope, StreamInfo, after_prefix, narrowed
from .matching import EVERYTHING, of_kinds, of_stream, positions, tagged
from .names import Names

_NEVER = 1 << 62
_DENSE = 3
"""Headers are walked to, not searched for, where at least one of so many positions is wanted."""
_BULK = 1_000
"""From so many headers on, a page is one of many."""
_STEPS_BACK = 4


def _headers(connection: sqlite3.Connection, rest: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Rows of `runs`, as long as `PLAIN` when all of them are plain, else as long as `COLUMNS`.

    Each column costs a tenth of a single event's reading, and most logs are mostly plain.
    """
    plain = PLAIN.replace("body", "case when effective is null then body end")
    rows = connection.execute(f"select {plain} {rest}", params).fetchall()
    if None in [row[5] for row in rows]:
        rows = connection.execute(f"select {COLUMNS} {rest}", params).fetchall()
    return rows


def page(
    connection: sqlite3.Connection,
    scope: Scope,
    names: Names,
    after: int,
    until: int,
    limit: int,
    backwards: bool,
) -> list[tuple[Any, ...]]:
    """The next headers of a scope with events in (after, until), oldest first unless ``backwards``.

    The first or last run may reach beyond the bounds; who reads cuts it.
    """
    if until <= after + 1:
        return []
    if scope.matching is not None:
        return _matching_page(connection, scope, scope.matching, after, until, limit, backwards)
    order = "desc" if backwards else "asc"
    low = containing(connection, after + 1) if after > 0 else 1
    if scope.stream is not None:
        row = connection.execute("select id from streams where name = ?", (scope.stream,)).fetchone()
        if row is None:
            return []
        kinds = None if scope.types is None else kind_ids(connection, scope)
        return _stream_page(connection, row[0], kinds, low, until, limit, order)
    if scope.prefix is None and scope.types is None:
        return _headers(
            connection,
            f"from runs where position >= ? and position < ? order by position {order} limit ?",
            (low, until, limit),
        )
    kinds = kind_ids(connection, scope)
    return _kinds_page(connection, kinds, scope, low, until, limit, backwards)


def containing(connection: sqlite3.Connection, position: int) -> int:
    """Where the run that holds this position begins (the position itself when it is beyond the head)."""
    row = connection.execute(
        "select position, count from runs where position <= ? order by position desc limit 1", (position,)
    ).fetchone()
    return row[0] if row is not None and row[0] + row[1] > position else position


def _stream_page(
    connection: sqlite3.Connection,
    stream: int,
    kinds: list[int] | None,
    low: int,
    until: int,
    limit: int,
    order: str,
) -> list[tuple[Any, ...]]:
    first, last = versions_between(connection, stream, low, until)
    chosen = "" if kinds is None else f" and kind in ({','.join(map(str, kinds))})"
    return _headers(
        connection,
        f"from runs where stream = ? and version >= ? and version < ?{chosen} order by version {order} limit ?",
        (stream, first, last, limit),
    )


def versions_between(connection: sqlite3.Connection, stream: int, low: int, until: int) -> tuple[int, int]:
    """The versions of a stream that stand from one position on and before another.

    Versions order a stream's runs as positions do, and only versions are indexed.
    """
    first = 0 if low <= 1 else _version_at(connection, stream, low)
    return first, _NEVER if until >= _NEVER else _version_at(connection, stream, until)


def stream_rows(
    connection: sqlite3.Connection, stream: str, version: int, limit: int
) -> list[tuple[int, int, int, int, str | None]]:
    """The runs of a stream from the one that holds a version on, or else from the last one before it."""
    # One statement: each is a read transaction of its own.
    return connection.execute(
        "select r.position, r.version, r.count, r.kind, r.body from streams s, runs r where s.name = ?1"
        " and r.stream = s.id and r.version >= coalesce("
        "(select version from runs where stream = s.id and version <= ?2 order by version desc limit 1), 0)"
        " order by r.version limit ?3",
        (stream, version, limit),
    ).fetchall()


def _version_at(connection: sqlite3.Connection, stream: int, position: int) -> int:
    """The version of the stream's first run at or after a position; one past its last when there is none."""
    row = connection.execute(
        "select version, position, count from runs where stream = ? order by version desc limit 1", (stream,)
    ).fetchone()
    if row is None or row[1] < position:
        return 1 if row is None else int(row[0]) + int(row[2])
    low, high = 1, int(row[0])
    # Who follows asks for what came last: a few steps back, before the whole is halved.
    for _ in range(_STEPS_BACK):
        row = connection.execute(
            "select version, position from runs where stream = ? and version < ? order by version desc limit 1",
            (stream, high),
        ).fetchone()
        if row is None or row[1] < position:
            return high
        high = int(row[0])
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(
            "select version, position from runs where stream = ? and version >= ? order by version limit 1",
            (stream, middle),
        ).fetchone()
        if found is None or found[1] >= position:
            high = middle
        else:
            low = found[0] + 1
    return low


def version_bounds(
    connection: sqlite3.Connection, stream: str, first: int, last: int, low: int, high: int
) -> tuple[int, int]:
    """Bounds (after, until) by position, narrowed to a stream's versions from ``first`` to before ``last``."""
    row = connection.execute("select id from streams where name = ?", (stream,)).fetchone()
    if row is None or last <= first:
        return low, low + 1
    for version, is_low in ((first, True), (last, False)):
        found = connection.execute(
            "select position, version, count from runs where stream = ? and version <= ? order by version desc limit 1",
            (row[0], version),
        ).fetchone()
        low, high = narrowed(low, high, version, is_low, found)
    return low, high


def kind_ids(connection: sqlite3.Connection, scope: Scope) -> list[int]:
    """The kinds that a scope by category or by type takes in."""
    rows = connection.execute("select id, category, type from kinds")
    return [id for id, category, type in rows if scope.takes(category, type)]


def stream_kinds(connection: sqlite3.Connection, name: str, kinds: list[int]) -> tuple[list[int], bool]:
    """The kinds of frames that a stream holds, out of these, and whether it holds JSON of any of them too."""
    row = connection.execute("select id from streams where name = ?", (name,)).fetchone()
    if row is None:
        return [], False
    frames = {
        k for (k,) in connection.execute("select kind from catalogue where stream = ?", (row[0],)) if k in set(kinds)
    }
    others = [kind for kind in kinds if kind not in frames]
    if not others:
        return sorted(frames), False
    # Only a category with both frames and objects needs the look.
    found = connection.execute(
        f"select 1 from runs where stream = ? and kind in ({','.join(map(str, others))}) limit 1", (row[0],)
    ).fetchone()
    return sorted(frames), found is not None


def _kinds_page(
    connection: sqlite3.Connection,
    kinds: list[int],
    scope: Scope,
    low: int,
    until: int,
    limit: int,
    backwards: bool,
) -> list[tuple[Any, ...]]:
    order = "desc" if backwards else "asc"
    if not kinds:
        return []
    # SQLite would sort all that `kind in (…)` matches. Each kind alone comes in order from the index, so take
    # a page of each, and keep what lies before the end of the shortest full page: nothing can be missing there.
    begins: list[int] = []
    bound = None
    inside, names = _inside(scope.further)
    if limit >= _BULK and not backwards and not inside:
        # Where most events are of these kinds, one walk over the headers finds a page, in half of the time.
        rows = _headers(
            connection,
            f"from runs where position >= ? and position < ? and +kind in ({','.join(map(str, kinds))})"
            " order by position limit ?",
            (low, min(until, low + 2 * limit), limit),
        )
        if len(rows) == limit:
            return rows
    for kind in kinds:
        found = connection.execute(
            f"select position from runs r where kind = ? and position >= ? and position < ?{inside}"
            f" order by position {order} limit ?",
            (kind, low, until, *names, limit),
        ).fetchall()
        begins.extend(row[0] for row in found)
        if len(found) == limit:
            end = found[-1][0]
            bound = end if bound is None else (max if backwards else min)(bound, end)
    if bound is not None:
        begins = [p for p in begins if (p >= bound if backwards else p <= bound)]
    begins.sort(reverse=backwards)
    return _headers_at(connection, begins[:limit], backwards)


def _headers_at(connection: sqlite3.Connection, begins: list[int], backwards: bool) -> list[tuple[Any, ...]]:
    if not begins:
        return []
    order = "desc" if backwards else "asc"
    low, high = (begins[-1], begins[0]) if backwards else (begins[0], begins[-1])
    if high - low < _DENSE * len(begins):
        # Most of what lies between is wanted: one walk costs a third of as many searches.
        rows = _headers(
            connection, f"from runs where position >= ? and position <= ? order by position {order}", (low, high)
        )
        if len(rows) == len(begins):
            return rows
        wanted = set(begins)
        return [row for row in rows if row[0] in wanted]
    return _headers(connection, f"from runs where position in ({','.join(map(str, begins))}) order by position {order}")


def _matching_page(
    connection: sqlite3.Connection, scope: Scope, matching: Matching, after: int, until: int, limit: int,
    backwards: bool,
) -> list[tuple[Any, ...]]:  # fmt: skip
    found: set[int] = set()
    for query in matching.any_of:
        found.update(matched(connection, scope, query, after, until, limit, backwards))
    return _headers_at(connection, sorted(found, reverse=backwards)[:limit], backwards)


def matched(
    connection: sqlite3.Connection, scope: Scope, query: Matching, after: int, until: int, limit: int,
    backwards: bool = False,
) -> list[int]:  # fmt: skip
    """Where the runs of a scope begin that hold events in (after, until) that a query matches, in order.

    The query's alternatives (``also``) are not looked at.
    """
    after = max(after, query.after)
    if until <= after + 1:
        return []
    lists = [tagged(tag) for tag in dict.fromkeys(query.tags)]
    scope = scope.within(query)
    if scope.by_kind:
        kinds = kind_ids(connection, scope)
        if not kinds:
            return []
        lists.append(of_kinds(kinds))
    if scope.stream is not None:
        row = connection.execute("select id from streams where name = ?", (scope.stream,)).fetchone()
        if row is None:
            return []
        lists.append(of_stream(row[0], partial(_version_at, connection, row[0])))
    # A run may begin before `after` and reach past it.
    low = containing(connection, after + 1) if after > 0 else 1
    inside, names = _inside(scope.further)
    return positions(connection, lists or [EVERYTHING], inside, names, low, until, limit, backwards)


def _inside(prefix: str | None) -> tuple[str, tuple[str, ...]]:
    """The condition that a run's stream begins with a prefix, where its kind's category does not say so already."""
    if prefix is None:
        return "", ()
    return " and r.stream in (select id from streams where name >= ? and name < ?)", (prefix, after_prefix(prefix))


def position_at(connection: sqlite3.Connection, micros: int) -> int:
    """The last position that was recorded strictly before a time; 0 when there is none.

    ``recorded`` never goes backwards, so a search by halves over positions needs no index.
    """
    row = connection.execute("select position from runs order by position desc limit 1").fetchone()
    low, high, answer = 1, row[0] if row else 0, 0
    while low <= high:
        middle = (low + high) // 2
        position, count, recorded = connection.execute(
            "select position, count, recorded from runs where position <= ? order by position desc limit 1",
            (middle,),
        ).fetchone()
        if recorded < micros:
            answer, low = position + count - 1, position + count
        else:
            high = position - 1
    return int(answer)


def stream_info(connection: sqlite3.Connection, id: int, name: str, closed: int) -> StreamInfo:
    """What there is to know of a stream without reading its events."""
    first = connection.execute(
        "select position, recorded from runs where stream = ? order by version limit 1", (id,)
    ).fetchone()
    last = connection.execute(
        "select position + count - 1, recorded, version + count - 1 from runs where stream = ?"
        " order by version desc limit 1",
        (id,),
    ).fetchone()
    if first is None:
        return StreamInfo(name, 0, 0, 0, 0, 0, bool(closed))
    return StreamInfo(name, last[2], first[0], last[0], first[1], last[1], bool(closed))


def streams(connection: sqlite3.Connection, prefix: str, after: str, limit: int) -> list[tuple[int, str, int]]:
    """Streams whose names begin with a prefix, in order of name, from after a name on."""
    low = max(prefix, after)
    strict = ">" if after >= prefix and after else ">="
    if prefix:
        return connection.execute(
            f"select id, name, closed from streams where name {strict} ? and name < ? order by name limit ?",
            (low, after_prefix(prefix), limit),
        ).fetchall()
    return connection.execute(
        f"select id, name, closed from streams where name {strict} ? order by name limit ?", (low, limit)
    ).fetchall()


def tags_of(connection: sqlite3.Connection, position: int) -> tuple[str, ...]:
    """The tags of the run at a position, sorted."""
    return tuple(
        row[0] for row in connection.execute("select tag from tags where position = ? order by tag", (position,))
    )
