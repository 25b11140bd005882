"""Effects of projections on the outside: noted in the transaction of the rows, performed after it, held while a version
is built that only repeats what an older one has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..errors import StorageError
from ..log.checkpoints import peek, take
from ..personal import plain_text
from ..storage.database import Database
from .places import Target
from .projection import Placement

TABLE = "millstream_effects"
MARKS = "millstream_effect_marks"
TABLES = {
    TABLE: "name text not null, position bigint not null, n bigint not null, body text not null,"
    " primary key (name, position, n)",
    MARKS: "name text primary key, position bigint not null, building integer not null",
}
"""The tables of effects that are to be performed, and of the positions up to which none is: their columns by name."""

NONE = 1 << 62
"""Beyond any position: a replay apart has no effects at all."""

_AT_ONCE = 20
_LONGEST = 0.1
"""How many effects are performed, at most, and for how many seconds, before it is noted."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0


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
    order of events, by the one worker that keeps the read model. When ``perform`` raises, it is called again, after
    pauses that grow from 0.1 s to a minute; later effects wait, and the rows go on. A version that is built anew has no
    effects for the events that another version has been through, nor has a replay of the past, a comparison, or a copy
    that another projection carries. So each is performed once; again only when the worker is killed, or stands still
    until another takes over, between performing it and noting that. `Effect.id` tells such a repeat.

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
        db, name, text = self._db, self._name, msgspec.json.encode(body, enc_hook=plain_text).decode()
        # Numbered by what is noted: a position may have several events, as upcasters read it, of several handlers.
        db.execute(
            f"insert into {db.own(TABLE)} (name, position, n, body) select name, ?,"
            f" (select coalesce(max(n), 0) + 1 from {db.own(TABLE)} where name = ? and position = ?), ?"
            f" from {db.own(MARKS)} where name = ? and position < ?",
            (self._position, name, self._position, text, name, self._position),
        )


def prepare(db: Database, placement: Placement, held: int, *, building: bool) -> None:
    """Have what handlers add noted, but for events up to a position. Call inside a transaction."""
    for table, columns in TABLES.items():
        db.ensure_table(table, columns)
    if not placement.performs:
        return  # what it reads has effects: not here
    name = placement.name
    before = db.one(f"select position, building from {db.own(MARKS)} where name = ?", (name,))
    if before is not None and before["building"] and not building:
        # While it was built, nobody knew how far the one before would come.
        db.execute(f"delete from {db.own(TABLE)} where name = ? and position <= ?", (name, held))
    db.execute(f"delete from {db.own(MARKS)} where name = ?", (name,))
    mark = max(held, before["position"] if before is not None else 0)
    db.execute(f"insert into {db.own(MARKS)} (name, position, building) values (?, ?, ?)", (name, mark, int(building)))


def passed(db: Database, placement: Placement) -> int:
    """The position up to which the effects of a version's events are its own, or were another's before."""
    checkpoint = peek(db, placement.consumer)
    marked = None
    if db.has_table(MARKS):
        marked = db.one(f"select position from {db.own(MARKS)} where name = ?", (placement.name,))
    return max(checkpoint.position if checkpoint is not None else 0, marked["position"] if marked is not None else 0)


def passed_by(targets: Sequence[Target], placement: Placement) -> int:
    """The same of versions that do not answer any more, whose keepers find themselves fenced from here on."""
    found = [0]

    def work(db: Database) -> None:
        take(db, placement.consumer)
        found.append(passed(db, placement))

    for target in targets:
        target.transact(work)
    return max(found)


class Performer:
    """Performs the effects of a read model, for the one worker that keeps it.

    Args:
        targets: Where they are noted: what versions before have left over, then the one that answers.

    Attributes:
        error: Why the next one could not be performed, if it could not.
    """

    def __init__(self, placement: Placement, targets: Sequence[Target], perform: Callable[[Effect], object]) -> None:
        self._name = placement.name
        self._targets = list(targets)
        self._perform = perform
        self._due = 0.0
        self._pause = _FIRST_PAUSE
        self.error: str | None = None

    def __call__(self) -> None:
        """Perform what is noted, for a moment or until one fails."""
        if time.monotonic() < self._due:
            return
        deadline = time.monotonic() + _LONGEST
        while self._targets:
            found = self._noted(self._targets[0])
            done: list[Effect] = []
            try:
                for effect in found:
                    self._perform(effect)
                    done.append(effect)
                    if time.monotonic() >= deadline:
                        break
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                self._due = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            if done:
                self._note(self._targets[0], done)
            if len(done) < len(found) or time.monotonic() >= deadline:
                return
            self.error, self._pause = None, _FIRST_PAUSE
            if len(found) < _AT_ONCE:
                if len(self._targets) == 1:
                    return
                del self._targets[0]

    def _noted(self, target: Target) -> list[Effect]:
        with target.reading() as db:
            if not db.has_table(TABLE):
                return []
            rows = db.query(
                f"select position, n, body from {db.own(TABLE)} where name = ? order by position, n limit {_AT_ONCE}",
                (self._name,),
            )
        return [
            Effect(f"{self._name}:{row['position']}:{row['n']}", msgspec.json.decode(row["body"]), row["position"])
            for row in rows
        ]

    def _note(self, target: Target, done: list[Effect]) -> None:
        rows = [(self._name, each.position, int(each.id.rpartition(":")[2])) for each in done]
        target.transact(
            lambda db: db.executemany(f"delete from {db.own(TABLE)} where name = ? and position = ? and n = ?", rows)
        )


def is_waiting(target: Target, placement: Placement) -> bool:
    """Whether effects are noted there that nobody has performed."""
    with target.reading() as db:
        return (
            db.has_table(TABLE)
            and db.one(f"select 1 as one from {db.own(TABLE)} where name = ? limit 1", (placement.name,)) is not None
        )


def there(target: Target) -> bool:
    """Whether a version's database is there: to write to it would make it."""
    try:
        with target.reading():
            return True
    except StorageError:
        return False
