"""Moving in: pages of another log placed in SQLite, as they are."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Any

import msgspec

from ..base import Head, category_of
from ..chain import FRAME_FORMAT
from ..raw import CARRIED, RawPage, Role, State, check_bodies, check_chain, check_target
from .names import Names
from .raw import condition, read_raw_head, some

# While a new copy is filled it does without these, which would take half the time; once level, it has them.
_INDEXES = {
    "runs_stream": "create unique index if not exists runs_stream on runs (stream, version)",
    "runs_kind": "create index if not exists runs_kind on runs (kind)",
}
_TYPES = {"integer": "bigint"}
"""What a carried table's columns are called here, where that differs."""
_INSERT_RUN = (
    "insert into runs (position, count, stream, version, kind, recorded, effective, format, body_hash, hash,"
    " metadata, body, body_ref, body_offset) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_ROWS = 16
"""Headers per statement: each statement gives the interpreter away and takes it again."""
_INSERT_RUNS = _INSERT_RUN + ", (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)" * (_ROWS - 1)


def write_role(connection: sqlite3.Connection, role: Role | None) -> None:
    """Note what the log is; None for a home like any other."""
    if role is None:
        connection.execute("delete from meta where key = 'role'")
        _complete(connection)
    else:
        connection.execute("insert or replace into meta values ('role', ?)", (msgspec.json.encode(role).decode(),))


def place(connection: sqlite3.Connection, names: Names, page: RawPage, source: str, path: str) -> tuple[Head, Role]:
    """See `RawTarget.place_raw`. Call inside the writer's transaction; gives the head and role afterwards."""
    found = read_raw_head(connection)
    wanted = check_target(found, page, path)
    role = found.role or Role("replica", source)
    if found.role is None:
        connection.execute("insert or replace into meta values ('log_id', ?)", (page.log_id,))
        if page.runs and not page.level:
            for index in _INDEXES:
                connection.execute(f"drop index if exists {index}")
    if wanted:
        check_chain(page)
        _place_bodies(connection, page)
        _place_runs(connection, names, page)
    connection.executemany(
        "insert into appends (id, digest, first, last, result) values (?, ?, ?, ?, ?) on conflict (id) do nothing",
        ((each.id, each.digest, each.first, each.last, each.result) for each in page.appends),
    )
    if page.state is not None:
        _place_state(connection, page.state)
    if page.level or not page.runs:
        _complete(connection)
    role = page.role_after(role)
    if role != found.role:
        write_role(connection, role)
    return page.head, role


def _complete(connection: sqlite3.Connection) -> None:
    for statement in _INDEXES.values():
        connection.execute(statement)


def _place_bodies(connection: sqlite3.Connection, page: RawPage) -> None:
    connection.executemany(
        "insert into bodies (id, encoding, rows, bytes) values (?, ?, ?, ?) on conflict (id) do nothing",
        ((ref, body.encoding, body.rows, body.data) for ref, body in page.bodies.items()),
    )
    shared = page.shared
    others = shared - page.bodies.keys()
    check_bodies(
        page, {ref for ref in others if connection.execute("select 1 from bodies where id = ?", (ref,)).fetchone()}
    )
    if shared:
        # Numbers of shared bodies are the source's; once this is a home, its own count on from them.
        connection.execute(
            "insert into meta values ('last_merged_body', ?)"
            " on conflict (key) do update set value = min(value, excluded.value)",
            (min(shared),),
        )


def _place_runs(connection: sqlite3.Connection, names: Names, page: RawPage) -> None:
    streams = _stream_ids(connection, {run.stream for run in page.runs})
    kinds: dict[tuple[str, str, str], int] = {}
    rows: list[tuple[Any, ...]] = []
    catalogue: set[tuple[int, int]] = set()
    for run in page.runs:
        key = (run.stream, run.type, run.schema)
        kind = kinds.get(key)
        if kind is None:
            kind = kinds[key] = names.kind_id(connection, category_of(run.stream), run.type, run.schema)
        stream = streams[run.stream]
        rows.append(
            (run.position, run.count, stream, run.version, kind, run.recorded, run.effective, run.format,
             run.body_hash, run.hash, run.metadata, run.body, run.ref, run.offset)
        )  # fmt: skip
        if run.format == FRAME_FORMAT:
            catalogue.add((stream, kind))
    whole = len(rows) - len(rows) % _ROWS
    for start in range(0, whole, _ROWS):
        connection.execute(_INSERT_RUNS, list(chain.from_iterable(rows[start : start + _ROWS])))
    connection.executemany(_INSERT_RUN, rows[whole:])
    connection.executemany(
        "insert into tags (tag, position) values (?, ?)", ((tag, r.position) for r in page.runs for tag in r.tags)
    )
    connection.executemany(
        "insert into ranges (position, name, low, high) values (?, ?, ?, ?)",
        ((run.position, *span) for run in page.runs for span in run.ranges),
    )
    connection.executemany("insert or ignore into catalogue (stream, kind) values (?, ?)", catalogue)
    connection.executemany("update streams set closed = 1 where id = ?", ((streams[name],) for name in page.closed))


def _stream_ids(connection: sqlite3.Connection, wanted: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in some(sorted(wanted)):
        marks = ",".join("?" * len(part))
        ids = connection.execute(f"select name, id from streams where name in ({marks})", part).fetchall()
        found.update(ids)
        for name in part:
            if name not in found:
                cursor = connection.execute("insert into streams (name) values (?)", (name,))
                assert cursor.lastrowid is not None
                found[name] = cursor.lastrowid
    return found


def _place_state(connection: sqlite3.Connection, state: State) -> None:
    for table in CARRIED:
        rows = state.get(table.name)
        if rows is None:
            continue
        columns = ", ".join(f"{name} {_TYPES.get(type, type)} not null" for name, type in table.columns)
        key = f"primary key ({table.key_names})"
        connection.execute(f"create table if not exists {table.name} ({columns}, {key}) without rowid")
        where, params = condition(table)
        connection.execute(f"delete from {table.name}{where}", params)
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f"insert into {table.name} ({table.names}) values ({marks})", rows)
