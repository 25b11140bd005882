"""Effects of projections on the outside: noted in the transaction of the rows, performed after it, held while a version
is built that only repeats what an older one has seen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from ..log.checkpoints import parts_of, take
from ..personal import plain_text
from ..storage.database import Database
from ..storage.sqlite.database import MEMORY
from . import failures
from .places import OnServer, Target
from .projection import Placement

TABLE = "millstream_effects"
MARKS = "millstream_effect_marks"
GAPS = "millstream_effect_gaps"
TABLES = {
    TABLE: "name text not null, position bigint not null, n bigint not null, body text not null,"
    " primary key (name, position, n)",
    MARKS: "name text primary key, position bigint not null, building integer not null",
    GAPS: "name text not null, position bigint not null, primary key (name, position)",
}
"""The tables of effects to be performed, and of what other versions have been through: their columns by name."""


class Passed(msgspec.Struct, frozen=True):
    """The events that a version has been through.

    Attributes:
        position: Up to which position.
        but: Those before it that failed there, and were parked or left out.
    """

    position: int = 0
    but: frozenset[int] = frozenset()

    def __or__(self, other: Passed) -> Passed:
        """What at least one of two has been through."""
        but = [
            each
            for each in self.but | other.but
            if all(each > one.position or each in one.but for one in (self, other))
        ]
        return Passed(max(self.position, other.position), frozenset(but))


NONE = Passed(1 << 62)
"""Beyond any position: a replay apart has no effects at all."""


class Effect(msgspec.Struct, frozen=True):
    """What an event is to bring about outside.

    Attributes:
        id: The same each time that it is performed, and in each version of the read model, and of no other effect.
        body: What the handler gave: values as JSON has them.
        position: The event's position.
    """

    id: str
    body: Any
    position: int


class Effects:
    """Takes what a projection's handler wants done outside: ``effects: ms.Effects``.

    It is noted in the transaction that applies the event, and given to the projection's ``perform`` after it, in the
    order of events, by the one worker that keeps the read model, in a thread beside the rows, which go on meanwhile.
    When ``perform`` raises, it is called again, after pauses that grow from 0.1 s to a minute; later effects wait. A
    version that is built anew has no effects for the events that another version has been through, nor has a replay of
    the past, a comparison, or a copy that another projection carries. So each is performed once, in order, also while
    rebuilds and rollbacks follow one another; again only when the worker is killed, or stands still until another takes
    over, between performing it and noting that. `Effect.id` tells such a repeat.

    Example:
        >>> import millstream as ms
        >>> class Taken(ms.Event, type="EffectTaken"):
        ...     sku: str
        ...     left: int
        >>> class Stock(ms.Projection):
        ...     schema = "create table stock (sku text primary key, n integer)"
        ...
        ...     @ms.on
        ...     def taken(self, event: Taken, db: ms.Database, effects: ms.Effects) -> None:
        ...         db.execute("insert or replace into stock values (?, ?)", (event.sku, event.left))
        ...         if event.left < 5:
        ...             effects.add({"order": event.sku})
        ...
        ...     def perform(self, effect: ms.Effect) -> None:
        ...         print("to the supplier:", effect.body)
    """

    def __init__(self, db: Database, name: str, position: int) -> None:
        self._db = db
        self._name = name
        self._position = position

    def add(self, body: Any) -> None:
        """Have something done, once the event has taken effect here.

        Args:
            body: What ``perform`` is to know: JSON-like values, structs, Decimals, times.
        """
        db, name, text = self._db.unwatched(), self._name, msgspec.json.encode(body, enc_hook=plain_text).decode()
        # Numbered by what is noted: a position may have several events, as upcasters read it, of several handlers.
        db.execute(
            f"insert into {db.own(TABLE)} (name, position, n, body) select name, ?,"
            f" (select coalesce(max(n), 0) + 1 from {db.own(TABLE)} where name = ? and position = ?), ?"
            f" from {db.own(MARKS)} where name = ? and (position < ? or exists"
            f" (select 1 from {db.own(GAPS)} where name = ? and position = ?))",
            (self._position, name, self._position, text, name, self._position, name, self._position),
        )


def prepare(db: Database, placement: Placement, held: Passed, *, building: bool) -> None:
    """Have what handlers add noted, but for events up to a position. Call inside a transaction."""
    for table, columns in TABLES.items():
        db.ensure_table(table, columns)
    if not placement.performs:
        return  # what it reads has effects: not here
    name = placement.name
    before = db.one(f"select building from {db.own(MARKS)} where name = ?", (name,))
    mark = held | _marked(db, name)
    if before is not None and before["building"] and not building:
        # While it was built, nobody knew how far the one before would come.
        rows = db.query(
            f"select distinct position from {db.own(TABLE)} where name = ? and position <= ?", (name, held.position)
        )
        seen = [(name, row["position"]) for row in rows if row["position"] not in held.but]
        if seen:
            db.executemany(f"delete from {db.own(TABLE)} where name = ? and position = ?", seen)
    for table in (MARKS, GAPS):
        db.execute(f"delete from {db.own(table)} where name = ?", (name,))
    db.execute(
        f"insert into {db.own(MARKS)} (name, position, building) values (?, ?, ?)",
        (name, mark.position, int(building)),
    )
    if mark.but:
        gaps = [(name, each) for each in sorted(mark.but)]
        db.executemany(f"insert into {db.own(GAPS)} (name, position) values (?, ?)", gaps)


def passed(db: Database, placement: Placement) -> Passed:
    """The events whose effects a version has had itself, or another one before it."""
    position = min((each.position for each in parts_of(db, placement.consumer)), default=0)
    own = Passed()
    if position:
        failed = (each.position for each in failures.all_of(db, placement.name))
        own = Passed(position, frozenset(each for each in failed if each <= position))
    return own | _marked(db, placement.name)


def _marked(db: Database, name: str) -> Passed:
    found = db.one(f"select position from {db.own(MARKS)} where name = ?", (name,)) if db.has_table(MARKS) else None
    if found is None:
        return Passed()
    gaps = db.query(f"select position from {db.own(GAPS)} where name = ?", (name,)) if db.has_table(GAPS) else []
    return Passed(found["position"], frozenset(row["position"] for row in gaps))


def passed_by(targets: Sequence[Target], placement: Placement) -> Passed:
    """The same of versions that do not answer any more, whose keepers find themselves fenced from here on."""
    found = [Passed()]

    def work(db: Database) -> None:
        for each in parts_of(db, placement.consumer):
            take(db, each.name)
        found.append(passed(db, placement))

    for target in targets:
        target.transact(work)
    return reduce(or_, found)


def is_waiting(target: Target, placement: Placement) -> bool:
    """Whether effects are noted there that nobody has performed."""
    with target.reading() as db:
        return (
            db.has_table(TABLE)
            and db.one(f"select 1 as one from {db.own(TABLE)} where name = ? limit 1", (placement.name,)) is not None
        )


def is_unsettled(target: Target, placement: Placement) -> bool:
    """Whether a version has noted effects there that others may have seen to, as one that is being built does."""
    if not there(target):
        return False
    with target.reading() as db:
        found = (
            db.one(f"select building from {db.own(MARKS)} where name = ?", (placement.name,))
            if db.has_table(MARKS)
            else None
        )
    return found is not None and bool(found["building"])


def there(target: Target) -> bool:
    """Whether a version's database is there: to write to it would make it."""
    if isinstance(target, OnServer):
        return target.is_there()
    path = getattr(target, "path", "")
    return not path or path.startswith(MEMORY) or os.path.exists(path)
