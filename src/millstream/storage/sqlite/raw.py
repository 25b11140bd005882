"""Moving house, in SQLite: pages of a log as it is stored, given and placed in a few statements each."""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import Any, TypeVar

import msgspec

from ...conversion import ready
from ...errors import DamagedLog
from ..base import Head
from ..inline import KEY
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

_CHUNK = 1_024
_HEADER = 300
"""About what a header takes, in bytes."""
_NEVER = 1 << 62
_T = TypeVar("_T")
_RECORDED, _METADATA, _BODY, _REF = 6, 11, 12, 13
_RUNS = (
    "select r.position, r.count, s.name, r.version, k.type, k.schema, r.recorded, r.effective, r.format, r.body_hash,"
    " r.hash, r.metadata, r.body, r.body_ref, r.body_offset"
    # Left joins, so that a name that is missing shows as such and not as a header that is.
    " from runs r left join streams s on s.id = r.stream left join kinds k on k.id = r.kind"
    " where r.position > ? and r.position < ? order by r.position limit ?"
)


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read inside is of one moment."""
    if connection.in_transaction:  # in memory, where the writer's connection is the reader's
        yield
        return
    connection.execute("begin")
    try:
        yield
    finally:
        connection.execute("rollback")


def read_role(connection: sqlite3.Connection) -> Role | None:
    """What the log is, when it is not simply the home of its events."""
    row = connection.execute("select value from meta where key = 'role'").fetchone()
    return msgspec.json.decode(row[0], type=ready(Role)) if row is not None else None


def read_inline(connection: sqlite3.Connection) -> str | None:
    """The register of inline handlers that all writers must have."""
    row = connection.execute("select value from meta where key = ?", (KEY,)).fetchone()
    return row[0] if row is not None else None


def read_raw_head(connection: sqlite3.Connection) -> RawHead:
    """Where a log ends, whose it is, and what role it has."""
    row = connection.execute("select value from meta where key = 'log_id'").fetchone()
    return RawHead(str(row[0]), _head_at(connection, _NEVER), read_role(connection))


def header(connection: sqlite3.Connection, position: int) -> tuple[int, Head] | None:
    """See `RawSource.raw_header`."""
    row = connection.execute(
        "select position, count, recorded, hash from runs where position <= ? order by position desc limit 1",
        (position,),
    ).fetchone()
    if row is None or row[0] + row[1] <= position:
        return None
    return row[0], Head(row[0] + row[1] - 1, row[2], row[3])


def _head_at(connection: sqlite3.Connection, position: int) -> Head:
    row = connection.execute(
        "select position + count - 1, recorded, hash from runs where position <= ? order by position desc limit 1",
        (position,),
    ).fetchone()
    return Head(*row) if row is not None else EMPTY


def page(
    connection: sqlite3.Connection,
    after: int,
    until: int | None,
    known: Container[int],
    state: bool,
    limit_runs: int,
    limit_bytes: int,
) -> RawPage:
    """See `RawSource.raw_page`. Call inside a `snapshot`."""
    (log_id,) = connection.execute("select value from meta where key = 'log_id'").fetchone()
    start = _head_at(connection, after)
    if start.position != after:
        raise DamagedLog(after, "no run ends there")
    bound = _NEVER if until is None else until
    rows, whole, more = _rows(connection, after, bound, known, limit_runs, limit_bytes)
    result = RawPage(log_id=log_id, after=start, runs=list(starmap(RawRun, rows)), whole=whole)
    last = result.head.position
    if rows:
        _add_labels(connection, result.runs, after, last)
        result.bodies = _bodies(connection, {row[_REF] for row in rows}, after, last, known)
        result.closed = _closed(connection, after, last)
    result.appends = [
        RawAppend(*row)
        for row in connection.execute(
            "select id, digest, first, last, result from appends where last >= ? and last <= ?", (after, last)
        )
    ]
    if not more and until is None:
        result.level = True
        result.state = read_state(connection, whole=state)
        result.state_current = result.state is not None
    return result


def _rows(
    connection: sqlite3.Connection, after: int, bound: int, known: Container[int], limit_runs: int, limit_bytes: int
) -> tuple[list[tuple[Any, ...]], bool, bool]:
    """Rows of a page; whether they end where a commit ends; whether there are more."""
    cursor = connection.execute(_RUNS, (after, bound, limit_runs + 1))
    rows: list[tuple[Any, ...]] = []
    counted: set[int] = set()
    size = keep = 0
    while size <= limit_bytes:
        found = cursor.fetchmany(_CHUNK)
        if not found:
            break
        refs = {row[_REF] for row in found} - {None} - counted
        weights = _weights(connection, [ref for ref in refs if ref > 0 or ref not in known])
        counted |= refs
        if not weights:
            size += sum([len(row[_BODY] or "") + len(row[_METADATA] or "") for row in found]) + _HEADER * len(found)
            rows += found
            keep = len(rows)
            continue
        for row in found:
            size += _HEADER + len(row[_BODY] or "") + len(row[_METADATA] or "") + weights.pop(row[_REF], 0)
            rows.append(row)
            if size <= limit_bytes or keep == 0:
                keep += 1
    following = cursor.fetchone()  # whether the last one ends a commit is seen by the next one
    cursor.close()
    if following is not None:
        rows.append(following)
    if rows and rows[-1][0] + rows[-1][1] > bound:
        rows.pop()  # the run that the bound falls into
    keep = min(keep, limit_runs)
    if len(rows) <= keep:
        return rows, True, False
    keep, whole = cut_at_commit(rows, _RECORDED, keep)
    return rows[:keep], whole, True


def _weights(connection: sqlite3.Connection, refs: list[int]) -> dict[int, int]:
    """The sizes of bodies (SQLite looks them up without reading the bytes)."""
    found: dict[int, int] = {}
    for part in some(refs):
        marks = ",".join(map(str, part))
        found.update(connection.execute(f"select id, length(bytes) from bodies where id in ({marks})").fetchall())
    return found


def some(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Some at a time, as many as a statement takes."""
    return (values[start : start + 500] for start in range(0, len(values), 500))


def _add_labels(connection: sqlite3.Connection, runs: list[RawRun], after: int, last: int) -> None:
    tags = "select position, tag from tags where position > ? and position <= ? order by position, tag"
    ranges = "select position, name, low, high from ranges where position > ? and position <= ?"
    label(runs, connection.execute(tags, (after, last)), connection.execute(ranges, (after, last)))


def _bodies(
    connection: sqlite3.Connection, refs: set[int | None], after: int, last: int, known: Container[int]
) -> dict[int, RawBody]:
    wanted = sorted(ref for ref in refs if ref is not None and (ref > 0 or ref not in known))
    found: dict[int, RawBody] = {}
    for part in some(wanted):
        for id, encoding, rows, data in connection.execute(
            f"select id, encoding, rows, bytes from bodies where id in ({','.join(map(str, part))})"
        ):
            # By hand, text may have been put there.
            found[id] = RawBody(encoding, rows, data if isinstance(data, bytes) else str(data).encode())
    check_found(found, wanted, after)
    return found


def _closed(connection: sqlite3.Connection, after: int, last: int) -> list[str]:
    """The closed streams whose last event lies in a stretch."""
    later = "select 1 from runs where stream = ? and version > ? limit 1"
    return [
        row[0]
        for row in connection.execute(
            "select s.name, max(r.version), s.id from runs r join streams s on s.id = r.stream"
            " where r.position > ? and r.position <= ? and s.closed group by s.id",
            (after, last),
        ).fetchall()
        if connection.execute(later, (row[2], row[1])).fetchone() is None
    ]


def _tables(connection: sqlite3.Connection) -> list[Carried]:
    names = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    return [table for table in CARRIED if table.name in names]


def _state_size(connection: sqlite3.Connection) -> int:
    total = 0
    for table in _tables(connection):
        sizes = " + ".join(f"coalesce(length({name}), 0)" for name, type in table.columns if type != "integer")
        total += connection.execute(f"select coalesce(sum({sizes}), 0) from {table.name}").fetchone()[0]
    return total


def read_state(connection: sqlite3.Connection, *, whole: bool = False) -> State | None:
    """The rows of the carried tables; None when they are too many and were not asked for whatever their size."""
    if not whole and _state_size(connection) > STATE_BYTES:
        return None
    found: State = {}
    for table in _tables(connection):
        where, params = condition(table)
        found[table.name] = connection.execute(
            f"select {table.names} from {table.name}{where} order by {table.key_names}", params
        ).fetchall()
    return found


def condition(table: Carried) -> tuple[str, list[str]]:
    """The condition on a carried table's rows."""
    if not table.prefixes:
        return "", []
    name = table.columns[0][0]
    return " where " + " or ".join([f"substr({name}, 1, {len(p)}) = ?" for p in table.prefixes]), list(table.prefixes)
