"""Bodies put ahead of their headers, for appends too large for one short commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..base import StagedRun


def put(connection: sqlite3.Connection, run: StagedRun) -> int:
    """Store a run's body under the next number below 0, inside the writer's transaction; its number."""
    ref = next_number(connection)
    connection.execute(
        "insert into bodies (id, encoding, rows, bytes) values (?, ?, ?, ?)",
        (ref, int(run.encoding), run.count, run.body),
    )
    return ref


def next_number(connection: sqlite3.Connection) -> int:
    """The next number of a body that is not its header's own."""
    # They count down from -1 and are never used twice: caches go by them.
    row = connection.execute("select value from meta where key = 'last_merged_body'").fetchone()
    new = (row[0] if row else 0) - 1
    connection.execute("insert or replace into meta values ('last_merged_body', ?)", (new,))
    return int(new)


def drop(connection: sqlite3.Connection, refs: Sequence[int]) -> None:
    """Remove bodies that no header came to point to."""
    for ref in refs:
        connection.execute(
            "delete from bodies where id = ? and not exists (select 1 from runs where body_ref = ? and body_ref < 0)",
            (ref, ref),
        )
