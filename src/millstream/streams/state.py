"""What operators remember: immutable parts, so that a checkpoint writes only what a batch made.

An operator's state is a tuple of `Part`: a frame with an id that is never used for other content. A step
gives a new tuple that shares the parts it did not touch. Saving a state is then the difference of two sets
of ids: new parts are inserted, gone ones deleted. A part whose rows have *partly* run out stays as it is in
the store; its dead rows are cut again when it is read, by the same limit, which is a function of the
watermark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import msgspec
import numpy as np
import polars as pl

from ..frames import Columns
from ..log.objects import fitted, union
from .keys import Ints

FAN_IN = 8
"""So many parts of one order of magnitude become one."""


Order = Literal["log", "settled", "time"]
"""How rows leave a part of a flow: as they stand in the log; in order of time from batch to batch, but not yet
within one; in the order that is promised of the output."""


class Part(msgspec.Struct, frozen=True, eq=False):
    """A piece of an operator's state.

    Attributes:
        id: Its name within the operator; the same id is always the same rows, but for those that ran out.
        low: The least value by which its rows run out (a pane, a time).
        high: The greatest one.
        frame: The rows.
    """

    id: int
    low: int
    high: int
    frame: pl.DataFrame


class Parts(msgspec.Struct, frozen=True, eq=False):
    """The parts of one operator's state, oldest first, and the id that the next one gets."""

    items: tuple[Part, ...] = ()
    next: int = 1

    def add(self, frame: pl.DataFrame, low: int, high: int) -> Parts:
        """With one more part."""
        return Parts((*self.items, Part(self.next, low, high, frame)), self.next + 1)

    def add_by(self, frame: pl.DataFrame, column: str) -> Parts:
        """With one more part, whose rows run out by a column."""
        low, high = frame.select(pl.col(column).min().alias("low"), pl.col(column).max().alias("high")).row(0)
        return self.add(frame, low, high)

    def expire(self, limit: int, column: str | None = None) -> Parts:
        """Without the parts that are all below a limit; and, given the column, without the rows below it."""
        if all(part.low >= limit for part in self.items):
            return self
        kept = []
        for part in self.items:
            if part.high < limit:
                continue
            if column is not None and part.low < limit:
                alive = part.frame.filter(pl.col(column) >= limit)
                part = Part(part.id, limit, part.high, alive)
            kept.append(part)
        return Parts(tuple(kept), self.next)

    def compact(self, merge: Callable[[pl.DataFrame], pl.DataFrame], fan_in: int = FAN_IN) -> Parts:
        """With the newest parts merged while there are ``fan_in`` of one order of magnitude.

        Each row is merged a number of times that grows with the logarithm of the state, and the number of
        parts stays logarithmic too.
        """
        items, following = self.items, self.next
        while len(items) >= fan_in:
            tail = items[-fan_in:]
            if max(p.frame.height for p in tail) > fan_in * max(tail[-1].frame.height, 16):
                break
            merged = merge(concat(p.frame for p in tail))
            part = Part(following, min(p.low for p in tail), max(p.high for p in tail), merged)
            items, following = (*items[:-fan_in], part), following + 1
        return self if items is self.items else Parts(items, following)

    def reshaped(self, like: pl.DataFrame, merge: Callable[[pl.DataFrame], pl.DataFrame]) -> Parts:
        """With the columns of a frame, whose types are wider than those of the parts.

        What is held is merged before and after: so what comes of it does not depend on how far it was merged.
        """
        if all(part.frame.schema == like.schema for part in self.items):
            return self
        low, high = min(part.low for part in self.items), max(part.high for part in self.items)
        held = merge(concat(part.frame for part in self.items))
        return Parts((), self.next).add(merge(fitted(held, dict(like.schema))), low, high)

    @staticmethod
    def side_by_side(*several: Parts) -> Parts:
        """Parts of several kinds as those of one operator; `apart` tells them apart again, by their ids."""
        items = tuple(
            Part(part.id * len(several) + kind, part.low, part.high, part.frame)
            for kind, parts in enumerate(several)
            for part in parts.items
        )
        return Parts(items, max(parts.next for parts in several) * len(several))

    def apart(self, kinds: int) -> tuple[Parts, ...]:
        """The parts of each kind."""
        found: list[list[Part]] = [[] for _ in range(kinds)]
        for part in sorted(self.items, key=lambda part: part.id):
            found[part.id % kinds].append(Part(part.id // kinds, part.low, part.high, part.frame))
        return tuple(Parts(tuple(items), max((p.id for p in items), default=0) + 1) for items in found)

    @property
    def low(self) -> int | None:
        """The least value of all parts; None when there is none."""
        return min((part.low for part in self.items), default=None)

    @property
    def rows(self) -> int:
        """How many rows all parts hold."""
        return sum(part.frame.height for part in self.items)


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
    alike = all(frame.columns == held[0].columns for frame in held)
    return pl.concat(held, how="vertical_relaxed" if alike else "diagonal_relaxed")


def widened(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Frames below one another, whatever their types: what has no common type is text."""
    held = list(frames)
    columns: Columns = {}
    for frame in held:
        columns = union(columns, dict(frame.schema))
    return pl.concat([fitted(frame, columns) for frame in held])
