"""What a flow is made of: a source, or several flows that meet, and how their watermarks become one.

A flow is a tree. Its leaves are sources, each with a watermark of its own; where flows meet, the watermark is the
least of theirs at each position of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from .columns import NO_TIME
from .keys import Ints
from .state import Batch, OperatorState, Order, Parts, Step, Timeline

if TYPE_CHECKING:
    from .flow import Flow


class Source(msgspec.Struct, frozen=True):
    """Where a flow's rows come from, and what their time is."""

    stream: str
    time: str | None
    lateness: int
    types: frozenset[str] | None = None
    """The types of its events that are rows; None for all but the log's own."""
    ahead: int | None = None
    """How far a row's time may be ahead of when it was recorded; None for any."""
    idle: int | None = None
    """After how long without a row time goes on by itself; None for never."""

    @property
    def shape(self) -> str:
        """What state depends on."""
        guard = "" if self.ahead is None else f" ahead {self.ahead}"
        silence = "" if self.idle is None else f" idle {self.idle}"
        return f"{self.stream} by {self.time} lateness {self.lateness}{guard}{silence}"

    @property
    def rows_shape(self) -> str:
        """What its greatest time depends on."""
        types = "" if self.types is None else f" of {', '.join(sorted(self.types))}"
        return f"{self.stream}{types} by {self.time} ahead {self.ahead} idle {self.idle}"

    def reads(self, stream: str) -> bool:
        """Whether a stream is this one, or in this category."""
        return stream.startswith(self.stream[:-1]) if self.stream.endswith("*") else stream == self.stream

    def overlaps(self, other: Source) -> bool:
        """Whether one event may be a row of both."""
        if self.types is not None and other.types is not None and not self.types & other.types:
            return False
        return self.reads(other.stream.removesuffix("*")) or other.reads(self.stream.removesuffix("*"))


class Meeting(Protocol):
    """An operator in which several flows meet: a pure function like the others, of a batch of each of them."""

    @property
    def inputs(self) -> tuple[Flow, ...]:
        """The flows that meet."""
        ...

    @property
    def order(self) -> Order:
        """How its rows leave it."""
        ...

    @property
    def shape(self) -> str:
        """What its state depends on, but for its inputs."""
        ...

    @property
    def gives(self) -> tuple[str, ...]:
        """The columns that it makes, which come from none of its inputs."""
        ...

    def heeds(self, number: int) -> bool:
        """Whether the watermark of an input holds back what comes out; that of the first always does."""
        ...

    def reads(self, number: int) -> set[str]:
        """The columns that it reads of one of its inputs."""
        ...

    def whole(self, number: int) -> bool:
        """Whether all columns of an input come out, whatever they are called."""
        ...

    def origin(self, name: str, number: int) -> str | None:
        """Which column of an input may come out under a name; None when none does."""
        ...

    def start(self) -> OperatorState:
        """The state before the first row."""
        ...

    def meet(self, state: OperatorState, batches: Sequence[Batch], joint: Batch) -> Step:
        """Take in a batch of each input. ``joint`` has the watermarks of all of them together, and no rows."""
        ...

    def restore(self, parts: Parts, watermark: int) -> OperatorState:
        """The state that these parts are of, as it was when the watermark stood there."""
        ...


def sources_of(flow: Flow) -> list[Source]:
    """All sources of a flow, each once, from left to right."""
    if isinstance(flow.source, Source):
        return [flow.source]
    found: dict[Source, None] = {}
    for each in flow.source.inputs:
        found.update(dict.fromkeys(sources_of(each)))
    return list(found)


def order_of(flow: Flow) -> Order:
    """How a flow's rows leave it."""
    order: Order = "log" if isinstance(flow.source, Source) else flow.source.order
    for stage in flow.stages:
        order = getattr(stage, "order", order)
    return order


def timeline(before: int, positions: Ints, watermarks: Ints) -> Timeline:
    """A source's watermark through its rows: those of one position as one."""
    if len(positions) < 2:
        return Timeline(before, positions, watermarks)
    last = np.append(positions[1:] != positions[:-1], True)
    return Timeline(before, positions[last], watermarks[last])


def together(timelines: Sequence[Timeline]) -> Timeline:
    """The least of several watermarks, at each position."""
    if len(timelines) == 1:
        return timelines[0]
    positions = np.unique(np.concatenate([each.positions for each in timelines]))
    least = np.min([each.before_positions(positions + 1) for each in timelines], axis=0)
    return Timeline(min(each.before for each in timelines), positions, least.astype(np.int64))


NOWHERE = Timeline(NO_TIME, np.zeros(0, np.int64), np.zeros(0, np.int64))
"""The timeline of no rows."""
