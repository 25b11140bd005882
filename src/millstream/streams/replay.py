"""A flow over the past: the same steps as a run, nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import polars as pl

from ..errors import UsageError
from ..frames import MAX_ROWS
from ..log.reading import Reader
from ..log.records import Run
from ..time import Moment
from .columns import SEQUENCE
from .flow import Flow
from .pipeline import Pipeline
from .rows import frames_of
from .state import widened

if TYPE_CHECKING:
    from ..log.log import Log

_CLOSED = "StreamClosed"
"""What the log says of a stream, not what happened in it."""


def source_runs(log: Log, flow: Flow, after: int, end: int) -> Iterator[Run]:
    """The runs of a flow's source strictly between two positions: those whose events are rows."""
    source = flow.source
    for run in log.runs(source.stream, types=source.types, after=after, until_position=end):
        if run.type != _CLOSED:
            yield run


def batches(runs: Iterable[Run], rows: int = MAX_ROWS) -> Iterator[list[Run]]:
    """Runs in groups of at most so many rows (a run is never split, nor what was made of one stored event)."""
    group: list[Run] = []
    count = 0
    for run in runs:
        if group and count + run.count > rows and run.position > group[-1].last:
            yield group
            group, count = [], 0
        group.append(run)
        count += run.count
    if group:
        yield group


def replay(
    flow: Flow,
    history: Log | pl.DataFrame,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    final: bool = True,
    rows: int = MAX_ROWS,
) -> pl.DataFrame:
    """What a flow makes of the past; see `Flow.over`.

    Args:
        rows: The most rows of a batch. It makes no difference to the result.
    """
    if not isinstance(history, pl.DataFrame | Reader):
        raise UsageError(f"{history!r:.80} is no past of a flow", hint="Give the log, or a Polars frame of rows")
    pipeline = Pipeline(flow)
    state = pipeline.start()
    results: list[pl.DataFrame] = []
    if isinstance(history, pl.DataFrame):
        for frame in _slices(history, rows):
            state, result, _ = pipeline.step(state, frame)
            results.append(result)
    else:
        for group in _groups(flow, history, since, until, rows):
            for frame in frames_of(group, state.columns, pipeline.needs.wanted):
                state, result, _ = pipeline.step(state, frame, fill=True)
                results.append(result)
        if results:
            pipeline.check(state)
    if final:
        results.append(pipeline.finish(state)[1])
    some = [result for result in results if result.height] or [r for r in results if r.width][-1:]
    return widened(some) if some else pl.DataFrame()


def _slices(history: pl.DataFrame, rows: int) -> Iterator[pl.DataFrame]:
    placed = history
    if SEQUENCE not in history.columns:
        placed = history.with_columns(pl.int_range(1, history.height + 1, dtype=pl.Int64).alias(SEQUENCE))
    for start in range(0, max(placed.height, 1), rows):
        yield placed.slice(start, rows)


def _groups(flow: Flow, history: Log, since: Moment | None, until: Moment | None, rows: int) -> Iterator[list[Run]]:
    after = history.position_at(since) if since is not None else 0
    end = (history.position_at(until) if until is not None else history.head) + 1
    yield from batches(source_runs(history, flow, after, end), rows)
