"""What operators remember: immutable parts, so that a checkpoint writes only what a batch made.

An operator's state is a tuple of `Part`: a frame with an id that is never used for other content. A step
gives a new tuple that shares the parts it did not touch. Saving a state is then the difference of two sets
of ids: new parts are inserted, gone ones deleted. A part whose rows have *partly* run out stays as it is in
the store; its dead rows are cut again when it is read, by the same limit, which is a function of the
watermark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import msgspec
import numpy as np
import polars as pl

from ..frames import Columns
from ..log.objects import fitted, union
from .bodies import HASH, Body
from .columns import times_of
from .keys import Ints
from .lanes import FRESH, Asked, by_lane, cut, hashes_of, lane_of, ordered_by, plain

FAN_IN = 8
"""So many parts of one order of magnitude become one."""

PACE = 4
"""So many times the rows that a step adds it merges in lanes: more than come in, and no more than takes as long."""

Merge = Callable[[pl.DataFrame], pl.DataFrame]

Order = Literal["log", "settled", "time"]
"""How rows leave a part of a flow: as they stand in the log; in order of time from batch to batch, but not yet
within one; in the order that is promised of the output."""


class Part:
    """A piece of an operator's state. It never changes.

    Attributes:
        id: Its name within the operator; the same id is always the same rows, but for those that ran out.
        low: The least value by which its rows run out (a pane, a time).
        high: The greatest one.
        body: Its rows as they are kept, in memory or not.
        since: Rows below this have run out, by the column; they are cut when the part is read. None for all.
    """

    __slots__ = ("body", "high", "id", "low", "since")

    def __init__(
        self, id: int, low: int, high: int, rows: pl.DataFrame | Body, *, since: tuple[str, int] | None = None
    ) -> None:
        self.id = id
        self.low = low
        self.high = high
        self.body = rows if isinstance(rows, Body) else Body(rows, lane_of(rows))
        self.since = since

    @property
    def frame(self) -> pl.DataFrame:
        """The rows."""
        return self.stored if self.lane is None else plain(self.stored)

    @property
    def stored(self) -> pl.DataFrame:
        """The rows as they are stored: in a lane with their hashes."""
        frame = self.body.frame
        return frame if self.since is None else frame.filter(pl.col(self.since[0]) >= self.since[1])

    @property
    def height(self) -> int:
        """How many rows it has, with those that have run out."""
        return self.body.height

    @property
    def lane(self) -> int | None:
        """The range of hashes that all its keys are in; None when it is fresh."""
        return self.body.lane

    @property
    def schema(self) -> Columns:
        """The columns of its rows."""
        return {name: dtype for name, dtype in self.body.schema.items() if name != HASH}

    def among(self, asked: Asked) -> pl.DataFrame | None:
        """Of a part in a lane, the rows whose key has a hash that is asked for, with their hashes; None without one."""
        assert self.lane is not None
        places = asked.places(self.lane, self.body.hashes())
        if not len(places):
            return None
        frame = self.body.at(places)
        return frame if self.since is None else frame.filter(pl.col(self.since[0]) >= self.since[1])

    def below(self, column: str, limit: int) -> int:
        """How many rows run out below a limit, by the column; of those in a file it reads only that."""
        since = 0 if self.since is None else self.body.below(column, self.since[1])
        return self.body.below(column, limit) - since

    def numbered(self, id: int) -> Part:
        """The same under another id."""
        return Part(id, self.low, self.high, self.body, since=self.since)

    def cut(self, column: str, limit: int) -> Part | None:
        """Without the rows below a limit; None when that is all of them."""
        least = self.body.least(column, limit)
        if least is None:
            return None
        if self.body.spilled:
            # To cut it now would be to have it in memory again.
            return Part(self.id, least, self.high, self.body, since=(column, limit))
        return Part(self.id, least, self.high, Body(self.body.frame.filter(pl.col(column) >= limit), self.lane))


class Parts(msgspec.Struct, frozen=True, eq=False):
    """The parts of one operator's state, and the id that the next one gets.

    Those in lanes come first; the fresh ones, and those of each lane, stand oldest first.
    """

    items: tuple[Part, ...] = ()
    next: int = 1

    def add(self, frame: pl.DataFrame, low: int, high: int) -> Parts:
        """With one more part."""
        return Parts((*self.items, Part(self.next, low, high, frame)), self.next + 1)

    def add_by(self, frame: pl.DataFrame, column: str) -> Parts:
        """With one more part, whose rows run out by a column."""
        return self.add(frame, *times_of(frame, column))

    def expire(self, limit: int, column: str | None = None) -> Parts:
        """Without the parts that are all below a limit; and, given the column, without the rows below it."""
        if all(part.low >= limit for part in self.items):
            return self
        kept = []
        for part in self.items:
            if part.high < limit:
                continue
            alive = part.cut(column, limit) if column is not None and part.low < limit else part
            if alive is not None:
                kept.append(alive)
        return Parts(tuple(kept), self.next)

    def compact(self, merge: Merge, *, by: Sequence[str] = (), oldest: Merge | None = None) -> Parts:
        """With the newest parts merged while there are `FAN_IN` of one order of magnitude.

        Each row is merged a number of times that grows with the logarithm of the state, and the number of
        parts stays logarithmic too.

        Args:
            merge: Makes one frame of several that stand below one another.
            by: The keys, where rows of different keys have nothing to do with one another: then large parts are cut
                into lanes, and a step merges only as many rows as its batch is worth.
            oldest: Leaves out, of what was merged with nothing older behind it, what only hides what is older.
        """
        oldest = oldest or _all
        items, following = list(self.items), self.next
        first = next((place for place, part in enumerate(items) if part.lane is None), len(items))
        lanes, fresh = items[:first], items[first:]
        following = _merged(fresh, following, merge, _all if lanes else oldest)
        if by and sum(part.height for part in fresh) > FRESH:
            whole = merge(concat(part.frame for part in fresh))
            hashes = hashes_of(whole, by)
            if hashes is not None:
                low, high = min(part.low for part in fresh), max(part.high for part in fresh)
                fresh = []
                for lane, frame in cut(whole, hashes):
                    lanes.append(Part(following, low, high, Body(frame, lane)))
                    following += 1
        if lanes:
            pace = PACE * (self.items[-1].height if self.items else 0)
            following = _advanced(lanes, following, merge, by, pace, oldest)
        if following == self.next and len(lanes) + len(fresh) == len(self.items):
            return self
        return Parts((*lanes, *fresh), following)

    def gather(self) -> Parts:
        """With small parts below one another, where rows are kept as they came."""
        items, following = list(self.items), self.next
        following = _merged(items, following, _all, _all, FRESH)
        return self if following == self.next else Parts(tuple(items), following)

    def pieces(self, keys: Sequence[str], end: int) -> Iterator[pl.DataFrame]:
        """The rows of the parts that begin below an end, so that those of a key are in one piece: of a state in lanes
        each lane for itself, read when its turn comes."""
        asked = [part for part in self.items if part.low < end]
        lanes: dict[int, list[Part]] = {}
        for part in asked:
            if part.lane is not None:
                lanes.setdefault(part.lane, []).append(part)
        fresh = [part.frame for part in asked if part.lane is None]
        if not lanes:
            if fresh:
                yield concat(fresh)
            return
        beside = by_lane(fresh, keys)
        for lane in sorted({*lanes, *beside}):
            yield concat([*(part.frame for part in lanes.get(lane, ())), *beside.get(lane, ())])

    def in_lanes(self, keys: Sequence[str]) -> dict[int, Parts]:
        """The state by the lanes that its keys are in: each is a state for itself, until they are `joined`."""
        found: dict[int, list[Part]] = {}
        following = self.next
        for part in self.items:
            if part.lane is not None:
                found.setdefault(part.lane, []).append(part)
                continue
            for piece in _in_lane(part, keys):
                assert piece.lane is not None
                found.setdefault(piece.lane, []).append(piece.numbered(following))
                following += 1
        return {lane: Parts(tuple(found[lane]), following) for lane in sorted(found)}

    def joined(self, lanes: Iterable[Parts], keys: Sequence[str]) -> Parts:
        """What has become of the lanes that this state was cut into, as one state."""
        items, following = [], self.next
        for parts in lanes:
            for part in parts.items:
                if part.lane is not None and part.id < self.next:
                    items.append(part)
                    continue
                pieces = [part] if part.lane is not None else _in_lane(part, keys)
                items += [piece.numbered(following + number) for number, piece in enumerate(pieces)]
                following += len(pieces)
        return Parts(tuple(items), following)

    def reshaped(self, like: pl.DataFrame, merge: Merge) -> Parts:
        """With the columns of a frame, whose types are wider than those of the parts.

        What is held is merged before and after: so what comes of it does not depend on how far it was merged.
        """
        wanted = dict(like.schema)
        if all(list(part.schema.items()) == list(wanted.items()) for part in self.items):
            return self
        low, high = min(part.low for part in self.items), max(part.high for part in self.items)
        held = merge(concat(part.frame for part in self.items))
        return Parts((), self.next).add(merge(fitted(held, wanted)), low, high)

    @staticmethod
    def side_by_side(*several: Parts) -> Parts:
        """Parts of several kinds as those of one operator; `apart` tells them apart again, by their ids."""
        items = tuple(
            part.numbered(part.id * len(several) + kind) for kind, parts in enumerate(several) for part in parts.items
        )
        return Parts(items, max(parts.next for parts in several) * len(several))

    def apart(self, kinds: int) -> tuple[Parts, ...]:
        """The parts of each kind."""
        found: list[list[Part]] = [[] for _ in range(kinds)]
        for part in self.items:
            found[part.id % kinds].append(part.numbered(part.id // kinds))
        return tuple(Parts.of(items) for items in found)

    @staticmethod
    def of(items: Iterable[Part]) -> Parts:
        """Parts in whatever order, as they were taken from a store."""
        held = sorted(items, key=lambda part: (part.lane is None, part.id))
        return Parts(tuple(held), max((part.id for part in held), default=0) + 1)

    @property
    def low(self) -> int | None:
        """The least value of all parts; None when there is none."""
        return min((part.low for part in self.items), default=None)

    @property
    def rows(self) -> int:
        """How many rows all parts hold."""
        return sum(part.height for part in self.items)


def _in_lane(part: Part, keys: Sequence[str]) -> list[Part]:
    """The rows of a fresh part as parts of the lanes that they are in."""
    hashes = hashes_of(part.frame, keys)
    assert hashes is not None, "what has lanes has hashes"
    return [Part(part.id, part.low, part.high, Body(rows, lane)) for lane, rows in cut(part.frame, hashes)]


def _all(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


def _merged(items: list[Part], following: int, merge: Merge, oldest: Merge, most: int | None = None) -> int:
    """Merge the newest of some parts; the id that comes next."""
    while len(items) >= FAN_IN:
        tail = items[-FAN_IN:]
        heights = [part.height for part in tail]
        if max(heights) > FAN_IN * max(heights[-1], 16) or (most is not None and sum(heights) > most):
            break
        merged = merge(concat(part.frame for part in tail))
        if len(items) == FAN_IN:
            merged = oldest(merged)
        low, high = min(part.low for part in tail), max(part.high for part in tail)
        items[-FAN_IN:] = [Part(following, low, high, merged)] if merged.height else []
        following += 1
    return following


def _advanced(lanes: list[Part], following: int, merge: Merge, by: Sequence[str], pace: int, oldest: Merge) -> int:
    """Merge the newest parts of the lanes that have most of them, about so many rows; the id that comes next."""
    held: dict[int, list[Part]] = {}
    for part in lanes:
        assert part.lane is not None
        held.setdefault(part.lane, []).append(part)
    due = [lane for lane, parts in held.items() if _is_due(parts)]
    if not due:
        return following
    for lane in sorted(due, key=lambda lane: -len(held[lane])):
        tail = _tail(held[lane])
        merged = merge(concat(part.frame for part in tail))
        if len(tail) == len(held[lane]):
            merged = oldest(merged)
        hashes = hashes_of(merged, by)
        assert hashes is not None, "what has lanes has hashes"
        low, high = min(part.low for part in tail), max(part.high for part in tail)
        one = [Part(following, low, high, Body(ordered_by(merged, hashes), lane))] if merged.height else []
        held[lane][-len(tail) :] = one
        following += 1
        pace -= sum(part.height for part in tail)
        if pace <= 0:
            break
    lanes[:] = [part for parts in held.values() for part in parts]
    return following


def _is_due(parts: list[Part]) -> bool:
    """Whether the newest parts of a lane are of one order of magnitude."""
    tail = parts[-FAN_IN:]
    return len(tail) == FAN_IN and max(part.height for part in tail) <= FAN_IN * max(tail[-1].height, 16)


def _tail(parts: list[Part]) -> list[Part]:
    """The newest parts of a lane that become one: while it was waiting, there may have come more of them."""
    tail = parts[-FAN_IN:]
    limit = max(part.height for part in tail)
    count = len(tail)
    while count < len(parts) and parts[-count - 1].height <= limit:
        count += 1
    return parts[-count:]


class Timeline(msgspec.Struct, frozen=True, eq=False):
    """A watermark on its way through a batch.

    Attributes:
        before: Where it stood before.
        positions: The positions of the log that had a say in it, each once, in order.
        watermarks: Where it stood once each of them was taken in.
    """

    before: int
    positions: Ints
    watermarks: Ints

    def before_positions(self, positions: Ints) -> Ints:
        """Where it stood before each of some positions."""
        if not len(self.positions):
            return np.full(len(positions), self.before, np.int64)
        known = self.positions.searchsorted(positions) - 1
        found: Ints = np.where(known < 0, self.before, self.watermarks[np.maximum(known, 0)])
        return found


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Rows on their way through a flow, and the watermark before and after them."""

    frame: pl.DataFrame
    before: int
    after: int
    reshaped: bool = False
    """Whether it says only what columns the rows to come have: it has none, and no time passes."""
    timeline: Timeline | None = None
    """How the watermark moved in between; only where flows meet, or an operator asks for it (``timed``)."""
    more: bool = False
    """Whether more rows follow in other batches before time passes."""


class Step(msgspec.Struct, frozen=True, eq=False):
    """What an operator makes of a batch: its state then, the rows that go on, the rows that came late."""

    state: OperatorState
    frame: pl.DataFrame
    late: pl.DataFrame | None = None


class OperatorState(Protocol):
    """The state of an operator: whatever it wants, as long as its parts are all that has to be kept."""

    @property
    def parts(self) -> Parts: ...


class Kept(msgspec.Struct, frozen=True, eq=False):
    """A state that is nothing but its parts."""

    parts: Parts = Parts()


class Operator(Protocol):
    """A pure function from state and batch to state and batch."""

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        ...

    @property
    def shape(self) -> str:
        """What its state depends on; a flow goes on only with state of the same shape."""
        ...

    def start(self) -> OperatorState:
        """The state before the first row."""
        ...

    def step(self, state: OperatorState, batch: Batch) -> Step:
        """Take in a batch. Changes nothing that it is given.

        When the batch is `Batch.reshaped`, what is held takes the new types, and the frame that goes on has all
        its columns, and no rows.
        """
        ...

    def restore(self, parts: Parts, watermark: int) -> OperatorState:
        """The state that these parts are of, as it was when the watermark stood there."""
        ...


def concat(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Frames below one another: types widened where need be, nulls where one lacks a column."""
    held = list(frames)
    if len(held) == 1:
        return held[0]
    if any(frame.columns != held[0].columns for frame in held):
        return pl.concat(held, how="diagonal_relaxed")
    # Where types are the same, too, there is nothing to plan.
    return pl.concat(
        held, how="vertical" if all(frame.dtypes == held[0].dtypes for frame in held) else "vertical_relaxed"
    )


def widened(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Frames below one another, whatever their types: what has no common type is text."""
    held = list(frames)
    columns: Columns = {}
    for frame in held:
        columns = union(columns, dict(frame.schema))
    return pl.concat([fitted(frame, columns) for frame in held])
