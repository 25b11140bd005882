"""Timers of processes: events that wait in the log's database until their time has come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from ..errors import ConstraintViolated, ConsumerFenced, Rejected, StreamClosed
from ..events import Plain
from ..log import Log
from ..storage.base import Receipt
from ..storage.database import Database
from . import failures
from .failures import Failure, FailureState
from .process import Timer

_LOG = logging.getLogger("millstream.workers")

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


def fire(log: Log, process: str, check: Callable[[Database], None]) -> int:
    """Append the events of timers that are due, in the order of their times; each in the commit that ends its timer.

    One whose event is refused (its stream was closed, an inline projection rejects it) is set aside with the reason:
    among the failures, under `aside` of its id. The next one fires.

    Args:
        check: Called in each commit; raises when it is for another process to fire them.

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
            log.commit([staged], work=_ended(row, check))
        except _Ended:
            continue
        except (StreamClosed, Rejected, ConstraintViolated) as error:
            _set_aside(log, row, str(error), now, check)
        fired += 1
    return fired


def aside(id: str) -> str:
    """The name under which the failures tell of a timer that was set aside."""
    return f"timer:{id}"


def _set_aside(log: Log, row: dict[str, Any], reason: str, now: int, check: Callable[[Database], None]) -> None:
    # Its id tells which reaction has set it: "stream:position.t0".
    position = int(row["id"].rpartition(":")[2].partition(".")[0])
    failure = Failure(aside(row["id"]), position, row["type"], row["stream"], FailureState.SKIPPED, reason, now)
    with suppress(_Ended):
        log.commit(work=_ended(row, check, lambda db: failures.note(db, failure)))
        _LOG.warning("timer %s (%s) of process %s was set aside: %s", row["id"], row["type"], row["process"], reason)


class _Ended(ConsumerFenced):
    """A timer is not there any more: it was cancelled."""


def _ended(
    row: dict[str, Any], check: Callable[[Database], None], more: Callable[[Database], None] = lambda db: None
) -> Any:
    def work(db: Database, receipt: Receipt) -> None:
        check(db)
        done = db.execute(
            f"delete from {db.own(TABLE)} where process = ? and due = ? and id = ?",
            (row["process"], row["due"], row["id"]),
        ).rowcount
        if done != 1:
            raise _Ended(row["id"])
        more(db)

    return work
