"""Which columns of its source a flow reads."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import polars as pl

from .alerts import Alert
from .columns import ENVELOPE
from .flow import Flow
from .shaping import Filter, Select, WithColumns
from .trailing import SlidingWindows


class Needs(msgspec.Struct, frozen=True):
    """What is read of each row.

    Attributes:
        named: The columns that are asked for by name.
        all: Whether all others come out as well.
    """

    named: frozenset[str]
    all: bool

    @property
    def wanted(self) -> frozenset[str] | None:
        """The columns to read; None for all."""
        return None if self.all else self.named

    def reads(self, name: str) -> bool:
        """Whether a column is read."""
        return self.all or name in self.named


def needs_of(flow: Flow) -> Needs:
    """What a flow reads of its source: followed from its end to its beginning."""
    named: set[str] = set()
    # Late rows are put aside as they are.
    every = True
    for stage in reversed(flow.stages):
        if isinstance(stage, Filter | Alert):
            named |= stage.reads
        elif isinstance(stage, WithColumns):
            named = (named - set(_outputs(stage.expressions))) | stage.reads
            every = every or _many(stage.expressions)
        elif isinstance(stage, Select):
            named = set(stage.reads)
            every = _many(stage.expressions)
        elif isinstance(stage, SlidingWindows):
            named -= {"window_start", "window_end", *stage.aggregation.names}
            named |= stage.reads
        else:
            named, every = set(stage.reads), False
    if flow.source.time is not None:
        named.add(flow.source.time)
    return Needs(frozenset(named - set(ENVELOPE)), every or flow.late is not None)


def _outputs(expressions: Iterable[pl.Expr]) -> list[str]:
    return [e.meta.output_name() for e in expressions if not e.meta.has_multiple_outputs()]


def _many(expressions: Iterable[pl.Expr]) -> bool:
    """Whether there is one that may stand for any column, such as ``pl.all()``."""
    return any(expression.meta.has_multiple_outputs() for expression in expressions)
