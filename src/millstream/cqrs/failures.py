"""Events whose handlers raised: noted with the reason beside the read model, and tried again or left out by command."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from ..storage.database import Database
from ..time import from_micros

TABLE = "millstream_failures"
TABLES = {
    TABLE: "name text not null, position bigint not null, type text not null, stream text not null,"
    " state text not null, error text not null, failed bigint not null, primary key (name, position)"
}
"""The table of failures: its columns by its name."""


class FailureState(StrEnum):
    """What has become of an event whose handler raised.

    Attributes:
        STOPPED: The projection stands right before it.
        PARKED: The projection went on.
        BEHIND: It did not fail: it waits behind an event of its stream that is parked.
        SKIPPED: It was left out.
    """

    STOPPED = "stopped"
    PARKED = "parked"
    BEHIND = "behind"
    SKIPPED = "skipped"


class Failure(msgspec.Struct, frozen=True):
    """An event that a projection could not apply.

    Attributes:
        name: The projection's name.
        position: The event's position.
        type: Its type.
        stream: Its stream.
        state: What has become of it.
        error: Why.
        failed: When that was, in microseconds since 1970.
    """

    name: str
    position: int
    type: str
    stream: str
    state: FailureState
    error: str
    failed: int

    @property
    def time(self) -> datetime:
        """When it failed (UTC)."""
        return from_micros(self.failed)


def note(db: Database, failure: Failure) -> None:
    """Note a failure, or what has become of it. Call inside a transaction."""
    db.ensure_table(TABLE, TABLES[TABLE])
    db.execute(
        f"insert into {db.own(TABLE)} (name, position, type, stream, state, error, failed) values (?, ?, ?, ?, ?, ?, ?)"
        " on conflict (name, position) do update set state = excluded.state, error = excluded.error,"
        " failed = excluded.failed",
        (
            failure.name,
            failure.position,
            failure.type,
            failure.stream,
            str(failure.state),
            failure.error,
            failure.failed,
        ),
    )


def all_of(db: Database, name: str, *, stream: str | None = None) -> list[Failure]:
    """The failures of a projection, in order of position."""
    if not db.has_table(TABLE):
        return []
    chosen, values = ("", [name]) if stream is None else (" and stream = ?", [name, stream])
    rows = db.query(
        "select name, position, type, stream, state, error, failed"
        f" from {db.own(TABLE)} where name = ?{chosen} order by position",
        values,
    )
    return [Failure(**{**row, "state": FailureState(row["state"])}) for row in rows]


def stopped_at(db: Database, name: str) -> Failure | None:
    """The event that a projection stands before."""
    return next((each for each in all_of(db, name) if each.state is FailureState.STOPPED), None)


def blocked_streams(db: Database, name: str) -> dict[str, int]:
    """The streams whose later events wait, each with the position of the last one that does."""
    return {each.stream: each.position for each in all_of(db, name) if each.state in WAITING}


def waits_at(db: Database, name: str, position: int) -> bool:
    """Whether the event at a position waits: by the key of the table."""
    row = db.one(f"select state from {db.own(TABLE)} where name = ? and position = ?", (name, position))
    return row is not None and row["state"] in WAITING


def last_waiting(db: Database, name: str, stream: str) -> int | None:
    """The position of the last event of a stream that waits; None when none does."""
    row = db.one(
        f"select max(position) as last from {db.own(TABLE)} where name = ? and stream = ? and state in ({_STATES})",
        (name, stream),
    )
    return None if row is None else row["last"]


def count_waiting(db: Database, name: str) -> int:
    """How many events wait."""
    if not db.has_table(TABLE):
        return 0
    found = db.one(f"select count(*) as n from {db.own(TABLE)} where name = ? and state in ({_STATES})", (name,))
    return int(found["n"]) if found is not None else 0


def settle(db: Database, name: str, position: int) -> None:
    """Forget a failure. Call inside a transaction."""
    if db.has_table(TABLE):
        db.execute(f"delete from {db.own(TABLE)} where name = ? and position = ?", (name, position))


WAITING = (FailureState.PARKED, FailureState.BEHIND)
_STATES = ", ".join(f"'{state}'" for state in WAITING)
