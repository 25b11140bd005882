"""A flow as a whole, from its sources to its end, in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..columns import is_hidden
from ..flow import Flow
from ..needs import Demand
from ..tree import Source, sources_of
from .engine import Engine
from .meetings import Encounter
from .rows import Given
from .stages import Passage

if TYPE_CHECKING:
    from ...log.log import Log


class Recomputed(msgspec.Struct, frozen=True, eq=False):
    """What a flow should have given.

    Attributes:
        rows: The rows, in no order.
        late: How many rows came late.
        engine: What computed it.
        queries: What it was asked.
    """

    rows: pl.DataFrame
    late: int
    engine: str
    queries: tuple[str, ...]


def recompute(flow: Flow, log: Log, end: int, *, final: bool) -> Recomputed:
    """What a flow should give of the log's rows before a position.

    Args:
        final: As if time then went on for ever.

    Raises:
        CannotCheck: A part of the flow cannot be said in SQL.
        MissingExtra: DuckDB is not installed.
    """
    with Engine() as engine:
        given = Given(engine, log, Demand(flow).needs, end, final=final)
        whole = _Whole(engine, given)
        rows = whole.passage(flow)[0].rows
        shown = rows.select(name for name in rows.columns if not is_hidden(name))
        return Recomputed(shown, whole.late, engine.name, tuple(engine.asked))


class _Whole:
    def __init__(self, engine: Engine, given: Given) -> None:
        self._engine = engine
        self._given = given
        self.late = 0

    def passage(self, flow: Flow) -> tuple[Passage, Sequence[Source]]:
        """The rows that leave a flow, and the sources that its watermark is of."""
        source = flow.source
        sources: list[Source]
        if isinstance(source, Source):
            sources = [source]
            passage = Passage(
                self._engine, self._given.rows[source], log=True, watermark=self._given.watermark(sources)
            )
        else:
            inputs = [self.passage(each) for each in source.inputs]
            heeded = {each for number, (_, of) in enumerate(inputs) if source.heeds(number) for each in of}
            sources = [each for each in sources_of(flow) if each in heeded]
            encounter = Encounter(self._engine, self._given, sources, self._given.watermark(sources))
            passage = encounter.meet(source, [each for each, _ in inputs])
            self.late += encounter.late
        for stage in flow.stages:
            passage.take(stage)
        self.late += passage.late
        return passage, sources
