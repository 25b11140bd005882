"""Time travel: points in an aggregate's life, what changed between them, and whole kinds as they stood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from ..errors import UsageError
from ..log import Log
from ..log.paging import END
from ..log.positions import Position
from ..log.records import Recorded
from ..storage.base import Receipt
from ..time import Moment, to_micros
from .codec import same
from .kinds import apply_as_true
from .model import Model
from .replay import Replay
from .root import PAST, Root

S = TypeVar("S")
Seen = TypeVar("Seen", covariant=True)

At = int | Position | Receipt | Moment
"""A point in an aggregate's life, inclusive: a version, a position of the log or a receipt, or a time."""


class Step(msgspec.Struct, Generic[Seen], frozen=True):
    """An event of an aggregate's history, and the state as it was right after it (read-only)."""

    recorded: Recorded
    state: Seen


class Changed(msgspec.Struct, frozen=True):
    """The value of an attribute at two points; None where it had none."""

    before: Any
    after: Any


class Difference(msgspec.Struct, frozen=True):
    """What is different about an aggregate between two points of its life.

    Attributes:
        stream: The aggregate's id.
        before: Its version at the first point.
        after: Its version at the second.
        changes: The attributes that differ.
        events: The events that lie between the two, in order.
    """

    stream: str
    before: int
    after: int
    changes: dict[str, Changed]
    events: tuple[Recorded, ...]


def resolve(log: Log, at: At | None) -> tuple[int | None, int | None]:
    """The version and the position to stop after.

    Raises:
        UsageError: A version below 0.
        InvalidTime: It is no time either.
    """
    if at is None:
        return None, None
    if isinstance(at, Receipt):
        return None, at.position
    if isinstance(at, Position):
        return None, min(int(at), END)
    if isinstance(at, int):
        if isinstance(at, bool) or at < 0:
            raise UsageError(f"at={at} is not a version", hint="Versions start at 1; 0 is before the first event")
        return min(at, END), None
    # position_at is exclusive, and at= is not; the log's times are whole microseconds.
    return None, log.store.position_at(to_micros(at) + 1)


def effective_bound(at: At | None) -> int:
    """The time that ``at`` names when ``known`` stands beside it: one of the world's, in microseconds.

    Raises:
        UsageError: It is no time.
    """
    if at is None or isinstance(at, int | Position | Receipt):
        raise UsageError(
            f"at={at!r:.40} is no time, which it must be beside known=",
            hint="Say at which time it was true: get(id, at='2024-01-31T23:59:59Z', known=log.now())",
        )
    return to_micros(at)


def as_true(replay: Replay, root: Root, until: int, version: int | None, position: int | None) -> None:
    """Apply the events known up to a point in the order in which they were true, up to a time."""
    apply_as_true(replay, root, [run for run in replay.runs(root, version, position) if run.when <= until])


def history(model: Model[S], replay: Replay, id: str) -> Iterator[Step[S]]:
    """Each event, with the state after it."""
    root = replay.begin(id)
    for recorded in replay.stepwise(root, replay.runs(root, None, None)):
        copy = model.copy(root)
        copy._sealed = PAST
        yield Step(recorded, model.state(copy))


def difference(log: Log, model: Model[Any], before: Root, after: Root) -> Difference:
    """What is different between an aggregate at two points."""
    old, new = model.fields(before), model.fields(after)
    changes = {
        name: Changed(old.get(name), new.get(name))
        for name in (*old, *(name for name in new if name not in old))
        if (name in old) != (name in new) or not same(old.get(name), new.get(name))
    }
    first, last = sorted((before.version, after.version))
    events: Iterator[Recorded] | tuple[()] = ()
    if first < last:
        events = log.read(before.id, since_version=first + 1, until_version=last + 1)
    return Difference(before.id, before.version, after.version, changes, tuple(events))


def blame(model: Model[Any], replay: Replay, id: str, version: int | None, position: int | None) -> dict[str, Recorded]:
    """For each attribute that events have changed, the last event that did."""
    root = replay.begin(id)
    before = model.fields(model.copy(root))
    found: dict[str, Recorded] = {}
    for recorded in replay.stepwise(root, replay.runs(root, version, position)):
        after = model.fields(root)
        changed = [n for n, value in after.items() if n not in before or not same(before[n], value)]
        changed += [name for name in before if name not in after]
        if changed:
            found.update(dict.fromkeys(changed, recorded))
            # What can be changed in place must be kept as it is now.
            before = model.fields(model.copy(root))
    return found
