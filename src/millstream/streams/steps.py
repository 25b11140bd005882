"""What a flow remembers, and what a step of it takes and gives."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import msgspec
import polars as pl

from ..frames import Columns
from ..log.framing import ENVELOPE
from .bodies import Body
from .columns import NO_TIME
from .flow import Flow
from .state import Batch, OperatorState


class SourceState(msgspec.Struct, frozen=True, eq=False):
    """What is remembered of a source.

    Attributes:
        high: The greatest event time so far; the watermark is this less the lateness.
        columns: The columns that are read, so far; rows that lack some have nulls there.
    """

    high: int = NO_TIME
    columns: Columns = {}


class FlowState(msgspec.Struct, frozen=True, eq=False):
    """All that a flow remembers.

    Attributes:
        sources: Of each source, its watermark and columns.
        late: How many rows came late.
        operators: The states of the operators that have one.
    """

    sources: tuple[SourceState, ...]
    late: int
    operators: tuple[OperatorState, ...]

    @property
    def bodies(self) -> Iterator[Body]:
        """The rows of all parts."""
        return (part.body for operator in self.operators for part in operator.parts.items)


class Prepared(msgspec.Struct, frozen=True, eq=False):
    """Rows as they go into the first stage that has a memory: so far nothing is asked of a flow's state but what it
    remembers of its sources.

    Attributes:
        heights: How many rows of each source there are.
        sources: What is remembered of the sources afterwards.
        empty: The rows of each source as they came, without one of them.
        batches: The rows with their times, of each source.
        behind: The number of stages that they have gone through.
    """

    heights: Sequence[int]
    sources: tuple[SourceState, ...]
    empty: Sequence[pl.DataFrame]
    batches: Sequence[Batch]
    behind: int = 0


Rows = pl.DataFrame | Sequence[pl.DataFrame | None] | Prepared
"""The rows of a flow's source, or of each of its sources."""

Stepping = Generator[pl.DataFrame, None, tuple[FlowState, list[pl.DataFrame]]]
"""A step on its way: the rows that come out, in order; in the end the state, and the rows that came late, in order."""


class Branch(msgspec.Struct, frozen=True, eq=False):
    """A part of a flow's tree: a flow, the branches that it begins with, and the numbers of its operators."""

    flow: Flow
    inputs: tuple[Branch, ...]
    sources: tuple[int, ...]
    """The sources that its watermark is of."""
    first: int
    """The number of its first operator; that of the meeting that it begins with, if it does."""


SILENT = pl.DataFrame(schema=ENVELOPE)
"""The rows of a source that has none."""


def in_one(stepping: Stepping) -> tuple[FlowState, pl.DataFrame, list[pl.DataFrame]]:
    """A step whose rows come out in one frame."""
    output = next(stepping)
    try:
        next(stepping)
    except StopIteration as done:
        state, late = done.value
        return state, output, late
    raise AssertionError("a step in pieces that nobody has asked for")
