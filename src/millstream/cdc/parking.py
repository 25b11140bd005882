"""Changes that a sink could not take: kept aside in the log's database, so that those after them can go on.

A change is parked in the very commit that moves the sink's checkpoint past it. A later change of the same row is parked
behind it, so that rows never see their changes in another order; so is a TRUNCATE, which is about every row, and all
that comes after that. Rows of the table hold positions, not changes: the changes stay where they are, in the log.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..errors import UsageError
from ..time import from_micros
from .capture import stream_of
from .change import Change
from .shape import Shape

if TYPE_CHECKING:
    from ..log import Log
    from ..storage.base import Receipt
    from ..storage.database import Database

TABLE = "millstream_parked"
TABLES = {
    TABLE: "stream text not null, sink text not null, position bigint not null, keys text not null,"
    " error text not null, attempts bigint not null, since bigint not null, state text not null,"
    " primary key (stream, sink, position)"
}
"""The table of what is parked: its columns by its name."""

State = Literal["parked", "waiting", "retry"]

EVERY_ROW = "*"
"""Stands for the keys of a change that is about all rows."""

_LONGEST = 200
_ERROR_LENGTH = 2_000


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A change that a sink has not taken.

    Attributes:
        position: Its position in the log.
        stream: The captured table's stream.
        sink: The sink's name.
        error: What the sink said; empty for one that waits.
        attempts: How often it was tried.
        since: When it was parked (UTC).
        state: ``parked``: it is at fault. ``waiting``: an earlier change of its row is. ``retry``: it is to be tried.
    """

    position: int
    stream: str
    sink: str
    error: str
    attempts: int
    since: datetime
    state: State


def parked(log: Log, table: str | None = None, sink: str | None = None, *, prefix: str = "") -> list[Parked]:
    """The changes that sinks could not take, in order of stream, sink and position.

    Args:
        table: Only of this table.
        sink: Only of the sink of this name.
        prefix: As in `capture`.
    """
    where, values = _where(table, sink, (), prefix)
    with log.connect() as db:
        if not db.has_table(TABLE):
            return []
        rows = db.query(
            f"select position, stream, sink, error, attempts, since, state from {db.own(TABLE)}{where}"
            " order by stream, sink, position",
            values,
        )
    return [Parked(**{**row, "since": from_micros(row["since"])}) for row in rows]


def retry(log: Log, *positions: int, table: str | None = None, sink: str | None = None, prefix: str = "") -> int:
    """Have parked changes tried again: by the sink's follower if it runs, or else when it runs next.

    Changes that wait behind them follow by themselves, in order.

    Args:
        positions: Which; all by default.

    Returns:
        How many are to be tried.
    """
    where, values = _where(table, sink, positions, prefix)
    where += " and state = 'parked'" if where else " where state = 'parked'"
    return _change(log, lambda db: f"update {db.own(TABLE)} set state = 'retry'{where}", values)


def skip(log: Log, *positions: int, table: str | None = None, sink: str | None = None, prefix: str = "") -> int:
    """Give up parked changes: the sink will never see them. In the log they stay; what waits behind them follows.

    Args:
        positions: Which.

    Returns:
        How many were given up.

    Raises:
        UsageError: No position is given.
    """
    if not positions:
        raise UsageError("no position is given", hint="Say which changes to give up; `parked` lists them")
    where, values = _where(table, sink, positions, prefix)
    return _change(log, lambda db: f"delete from {db.own(TABLE)}{where}", values)


def _where(table: str | None, sink: str | None, positions: tuple[int, ...], prefix: str) -> tuple[str, list[Any]]:
    terms: list[str] = []
    values: list[Any] = []
    if table is not None:
        terms.append("stream = ?")
        values.append(prefix + stream_of(table))
    if sink is not None:
        terms.append("sink = ?")
        values.append(sink)
    if positions:
        terms.append(f"position in ({', '.join('?' * len(positions))})")
        values.extend(positions)
    return (" where " + " and ".join(terms) if terms else ""), values


def _change(log: Log, statement: Callable[[Database], str], values: list[Any]) -> int:
    counts: list[int] = []

    def work(db: Database, receipt: Receipt) -> None:
        counts.append(db.execute(statement(db), values).rowcount if db.has_table(TABLE) else 0)

    log.commit(work=work)
    return counts[-1]


def keys_of(change: Change, shape: Shape | None) -> tuple[str, ...]:
    """The rows that a change is about, each by a text that stands for its key (or for all of it, without one)."""
    if change.operation == "TRUNCATE":
        return (EVERY_ROW,)
    key = shape.key if shape is not None else ()
    found = {_key_text(row, key) for row in (change.before, change.after) if row is not None}
    return tuple(sorted(found))


def _key_text(row: dict[str, Any], key: tuple[str, ...]) -> str:
    names = key if key and all(name in row for name in key) else sorted(row)
    text = repr(tuple(row[name] for name in names))
    return text if len(text) <= _LONGEST else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Place(msgspec.Struct):
    """A parked change as its follower knows it."""

    position: int
    keys: tuple[str, ...]
    state: State
    error: str = ""
    attempts: int = 0
    since: int = 0


class Shelf:
    """What one sink has parked, as its follower knows it; the table is the truth."""

    def __init__(self, stream: str, sink: str) -> None:
        self.stream = stream
        self.sink = sink
        self.places: dict[int, Place] = {}
        self._keys: Counter[str] = Counter()

    def load(self, db: Database) -> None:
        """Read what the table says."""
        rows = db.query(
            f"select position, keys, error, attempts, since, state from {db.own(TABLE)}"
            " where stream = ? and sink = ? order by position",
            (self.stream, self.sink),
        )
        self.places, self._keys = {}, Counter()
        for row in rows:
            self.add(Place(**{**row, "keys": tuple(msgspec.json.decode(row["keys"]))}))

    def differs(self, db: Database) -> bool:
        """Whether someone else has changed what is parked, or asked for a retry."""
        row = db.one(
            f"select count(*) as n, count(case when state = 'retry' then 1 end) as retries from {db.own(TABLE)}"
            " where stream = ? and sink = ?",
            (self.stream, self.sink),
        )
        assert row is not None
        return bool(row["n"] != len(self.places) or row["retries"])

    def add(self, place: Place) -> None:
        """Note a change as parked."""
        self.places[place.position] = place
        self._keys.update(place.keys)

    def drop(self, position: int) -> None:
        """Note a change as dealt with."""
        self._keys.subtract(self.places.pop(position).keys)

    def holds(self, keys: Iterable[str]) -> bool:
        """Whether a change of these rows would overtake one that is parked."""
        if not self.places:
            return False
        return self._keys[EVERY_ROW] > 0 or any(key == EVERY_ROW or self._keys[key] > 0 for key in keys)

    def write(self, db: Database, places: Iterable[Place]) -> None:
        """Park changes, inside the commit that moves the checkpoint past them."""
        rows = [
            (
                self.stream, self.sink, place.position, msgspec.json.encode(place.keys).decode(),
                place.error, place.attempts, place.since, place.state,
            )
            for place in places
        ]  # fmt: skip
        db.executemany(
            f"insert into {db.own(TABLE)} (stream, sink, position, keys, error, attempts, since, state)"
            " values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (stream, sink, position) do update set"
            " error = excluded.error, attempts = excluded.attempts, state = excluded.state",
            rows,
        )

    def erase(self, db: Database, positions: Iterable[int]) -> None:
        """Remove those that were taken after all."""
        db.executemany(
            f"delete from {db.own(TABLE)} where stream = ? and sink = ? and position = ?",
            [(self.stream, self.sink, position) for position in positions],
        )


def error_text(error: BaseException) -> str:
    """What is kept of an error; PostgreSQL's text holds no NUL."""
    text = f"{type(error).__name__}: {error}".replace("\0", "")
    return text.encode("utf-8", "replace").decode()[:_ERROR_LENGTH]
