"""Timers of processes: events that wait in the log's database until their time has come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ..errors import ConsumerFenced
from ..events import Plain
from ..log import Log
from ..storage.base import Receipt
from ..storage.database import Database
from .process import Timer

TABLE = "millstream_timers"
TABLES = {
    TABLE: "process text not null, due bigint not null, id text not null, stream text not null, type text not null,"
    " data text not null, correlation text not null, primary key (process, due, id)"
}
"""The table of the timers that run: its columns by its name."""

_AT_ONCE = 100


def keep(db: Database, process: str, stream: str, correlation: str, timers: Iterable[Timer]) -> None:
    """Keep timers that were set. Call in the commit of the reaction that set them."""
    rows = [
        (process, each.due, each.id, stream, each.type, msgspec.json.encode(each.data).decode(), correlation)
        for each in timers
    ]
    if rows:
        db.executemany(f"insert into {db.own(TABLE)} values (?, ?, ?, ?, ?, ?, ?)", rows)


def drop(db: Database, process: str, timers: Iterable[tuple[str, int]]) -> None:
    """Let timers, by id and time, not fire."""
    db.executemany(
        f"delete from {db.own(TABLE)} where process = ? and due = ? and id = ?",
        [(process, due, id) for id, due in timers],
    )


def fire(log: Log, process: str) -> int:
    """Append the events of timers that are due, in the order of their times; each in the commit that ends its timer.

    Returns:
        How many.
    """
    now = int(log.now().timestamp() * 1e6)
    with log.connect() as db:
        if not db.has_table(TABLE):
            return 0
        due = db.query(
            f"select * from {db.own(TABLE)} where process = ? and due <= ? order by due, id limit {_AT_ONCE}",
            (process, now),
        )
    fired = 0
    for row in due:
        staged = log.stage(
            row["stream"],
            Plain(row["type"], msgspec.json.decode(row["data"])),
            metadata={"timer": row["id"], "correlation": row["correlation"], "causation": row["id"]},
        )
        try:
            log.commit([staged], work=_ended(row))
        except ConsumerFenced:
            continue  # another process was quicker, or it was cancelled
        fired += 1
    return fired


def _ended(row: dict[str, Any]) -> Any:
    def work(db: Database, receipt: Receipt) -> None:
        done = db.execute(
            f"delete from {db.own(TABLE)} where process = ? and due = ? and id = ?",
            (row["process"], row["due"], row["id"]),
        ).rowcount
        if done != 1:
            raise ConsumerFenced(row["id"])

    return work
