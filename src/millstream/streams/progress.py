"""How a running flow is getting on: counted beside its work, read from any thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from ..time import from_micros
from .columns import NO_TIME
from .pipeline import Pipeline
from .spilling import Sizes, sizes
from .steps import FlowState

T = TypeVar("T")

_SPAN = 10.0
"""Rates are those of so many seconds."""


class FlowProgress(msgspec.Struct, frozen=True):
    """How a running flow is getting on.

    Attributes:
        position: Up to which position of the log it has worked.
        behind: How many positions are beyond that.
        rows: How many rows of each source it has taken in, since it was started.
        rows_per_second: The same, of the last ten seconds.
        watermarks: Of each source, the time below which its rows are late, as of the last commit; None before its
            first row.
        given: How many rows it has given, since it was started.
        given_per_second: The same, of the last ten seconds.
        late: How many rows have come late, or had no time, ever.
        held: How many rows the state of each operator holds, in their order from the sources on.
        paused: Whether it is paused.
        memory: How many bytes of its state are in memory, about.
        spilled: How many are on disk, beyond the limit that it was given.
    """

    position: int
    behind: int
    rows: dict[str, int]
    rows_per_second: dict[str, float]
    watermarks: dict[str, datetime | None]
    given: int
    given_per_second: float
    late: int
    held: tuple[int, ...]
    paused: bool = False
    memory: int = 0
    spilled: int = 0


class Meter:
    """Counts, and how fast they have grown of late."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.counts = [0] * len(names)
        self._seen: deque[tuple[float, tuple[int, ...]]] = deque([(time.monotonic(), tuple(self.counts))])

    def add(self, *more: int) -> None:
        """So many more of each."""
        for number, count in enumerate(more):
            self.counts[number] += count
        now = time.monotonic()
        if now - self._seen[-1][0] >= 0.25:
            self._seen.append((now, tuple(self.counts)))
        while len(self._seen) > 2 and now - self._seen[1][0] > _SPAN:
            self._seen.popleft()

    def rates(self) -> list[float]:
        """How many a second of each, in the last ten seconds."""
        now, seen = time.monotonic(), list(self._seen)
        since = next((each for each in reversed(seen) if now - each[0] >= _SPAN), seen[0])
        span = max(now - since[0], 1e-3)
        return [(count - before) / span for count, before in zip(self.counts, since[1], strict=True)]


def told(pipeline: Pipeline, state: FlowState, meter: Meter, position: int, head: int, paused: bool) -> FlowProgress:
    """What there is to say of a flow at work."""
    *counts, given = meter.counts
    *rates, rate = meter.rates()
    names = meter.names[:-1]
    size = size_of(state)
    return FlowProgress(
        position,
        max(head - position, 0),
        _of_each(names, counts),
        _of_each(names, rates),
        {name: moment(mark) for name, mark in pipeline.watermarks(state).items()},
        given,
        rate,
        state.late,
        tuple(operator.parts.rows for operator in state.operators),
        paused,
        size.held,
        size.spilled,
    )


def size_of(state: FlowState) -> Sizes:
    """How many bytes a state takes, with the indexes that operators keep beside it."""
    found = sizes(state.bodies)
    beside = sum(getattr(operator, "beside", 0) for operator in state.operators)
    return Sizes(found.held + beside, found.spilled)


def _of_each(names: Sequence[str], values: Sequence[T]) -> dict[str, T]:
    """By stream; of a stream that is read in two ways, the way that is read first."""
    return dict(reversed(list(zip(names, values, strict=True))))


def moment(watermark: int) -> datetime | None:
    """A watermark as a time; None where there is none yet, or none that a calendar has."""
    if watermark <= NO_TIME:
        return None
    try:
        return from_micros(watermark)
    except (OverflowError, ValueError):
        return None
