"""A flow over the past: the same steps as a run, nothing written."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl

from ..errors import SchemaConflict, StreamNotFound, UsageError
from ..frames import MAX_ROWS, as_frame
from ..log.reading import Reader, scope_of
from ..log.records import Run
from ..log.singles import Singles, spread
from ..time import Moment
from .columns import SEQUENCE, is_hidden, visible
from .errors import FlowError
from .filesource import Files
from .flow import Flow
from .idle import TYPE, marks_of, silences, with_marks
from .naming import check_there, named
from .needs import Needs
from .pipeline import Pipeline
from .rows import frames_of
from .state import widened
from .steps import FlowState, SourceState
from .tree import Source

if TYPE_CHECKING:
    from ..log.log import Log

Labelled = tuple[int, Run | Singles]
"""A run, or many single events, and the number of the source; less than zero (``~number``) where it says that this one
is silent."""

_OWN = ("StreamClosed", TYPE)
"""What the log says of a stream, not what happened in it."""

BATCH = 2 * MAX_ROWS
"""The most rows of a batch: what every batch costs is divided among so many."""


def source_runs(log: Log, source: Source, after: int, end: int) -> Iterator[Run]:
    """The runs of a source strictly between two positions: those whose events are rows."""
    for run in log.runs(source.stream, types=source.types, after=after, until_position=end):
        if run.type not in _OWN:
            yield run


def source_spans(log: Log, source: Source, after: int, end: int) -> Iterator[Run | Singles]:
    """The same, with many single events as one where they stand alike."""
    for span in spread(log.spans(scope_of(source.stream, source.types), after, end)):
        if span.type not in _OWN:
            yield span


def batches(runs: Iterable[Labelled], rows: int = BATCH) -> Iterator[list[Labelled]]:
    """Runs in groups of at most so many rows (a run is never split, nor what was made of one stored event).

    Many single events are cut where they would be if they were read one by one: how a log is read may change with what
    becomes of its bodies meanwhile, and processes that share a flow must all have the same groups.
    """
    group: list[Labelled] = []
    count = 0
    for number, run in runs:
        while isinstance(run, Singles) and count + run.count > rows:
            if count < rows:
                first, run = run.split(rows - count)
                group.append((number, first))
            yield group
            group, count = [], 0
        if group and count + run.count > rows and run.position > group[-1][1].last:
            yield group
            group, count = [], 0
        group.append((number, run))
        count += run.count
    if group:
        yield group


def labelled(log: Log, sources: Sequence[Source], after: int, end: int) -> Iterator[Labelled]:
    """The runs of all sources between two positions, in the order of the log, each with its source's number."""
    if len(sources) == 1 and sources[0].idle is None:
        return ((0, span) for span in source_spans(log, sources[0], after, end))
    # Several are merged run by run.
    each = [_labelled(number, source_runs(log, source, after, end)) for number, source in enumerate(sources)]
    each += [
        _labelled(~number, silences(log, source, after, end))
        for number, source in enumerate(sources)
        if source.idle is not None
    ]
    return heapq.merge(*each, key=lambda found: found[1].position)


def _labelled(number: int, runs: Iterable[Run]) -> Iterator[tuple[int, Run]]:
    return ((number, run) for run in runs)


def frames(
    pipeline: Pipeline, sources: Sequence[SourceState], group: Sequence[Labelled]
) -> Iterator[pl.DataFrame | list[pl.DataFrame | None]]:
    """The rows of a group of runs as `Pipeline.step` takes them in: of each source, up to where a type widens."""
    needs = pipeline.needs
    marks = [
        None if source.idle is None else marks_of(run for of, run in group if of == ~number and isinstance(run, Run))
        for number, source in enumerate(pipeline.sources)
    ]
    if len(sources) == 1 and marks[0] is None:
        yield from frames_of([run for _, run in group], sources[0].columns, needs[0].wanted, pipeline.envelope)
        return
    each = [
        list(frames_of([run for of, run in group if of == number], source.columns, needs[number].wanted))
        for number, source in enumerate(sources)
    ]
    # Where the columns of one change, the rows of all are cut.
    cuts = sorted({frame[SEQUENCE].item(0) for found in each for frame in found[1:]})
    for low, high in pairwise([-1, *cuts, group[-1][1].last + 1]):
        yield [with_marks(_between(found, low, high), said, low, high) for found, said in zip(each, marks, strict=True)]


def _between(found: Sequence[pl.DataFrame], low: int, high: int) -> pl.DataFrame | None:
    for frame in found:
        place = frame[SEQUENCE]
        part = frame.slice(*_span(place.search_sorted(low), place.search_sorted(high)))
        if part.height:
            # Frames end where cuts are, so that no other has rows in between.
            return part
    return None


def _span(begin: int, end: int) -> tuple[int, int]:
    return begin, end - begin


def _past(history: Any) -> Any:
    return history if isinstance(history, Reader | Files) else as_frame(history)


def replay(
    flow: Flow,
    history: Log | Files | object,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    final: bool = True,
    rows: int = BATCH,
    pipeline: Pipeline | None = None,
) -> pl.DataFrame:
    """What a flow makes of the past; see `Flow.over`.

    Args:
        rows: The most rows of a batch. It makes no difference to the result.
        pipeline: What has it made; by default one of its own.
    """
    past: Log | Files | pl.DataFrame | None = _past(history)
    if past is None:
        raise UsageError(
            f"{history!r:.80} is no past of a flow", hint="Give the log, a frame of rows, or ms.files(...)"
        )
    pipeline = pipeline or Pipeline(flow)
    if isinstance(past, Reader):
        check_there(past, pipeline.sources)
        after = past.position_at(since) if since is not None else 0
        end = (past.position_at(until) if until is not None else past.head) + 1
        return played(pipeline, past, after, end, final=final, rows=rows)[0]
    if since is not None or until is not None:
        raise UsageError("since= and until= are times of the log", hint="Filter the rows, or append them to a log")
    if len(pipeline.sources) > 1:
        raise UsageError(
            "rows of one kind are no past of a flow with several sources",
            hint="Append the rows to a log, such as ms.open()",
        )
    state = pipeline.start()
    results: list[pl.DataFrame] = []
    # Of several files, some may lack a column.
    several = isinstance(past, Files)
    for whole in past.frames() if isinstance(past, Files) else [past]:
        for part in _slices(whole, rows):
            state, result, _ = pipeline.step(state, part, fill=several)
            results.append(result)
    if several and results:
        pipeline.check(state)
    if final:
        results.append(pipeline.finish(state)[1])
    return _together(results)


def played(
    pipeline: Pipeline,
    log: Log,
    after: int,
    end: int,
    *,
    final: bool,
    rows: int = BATCH,
    state: FlowState | None = None,
) -> tuple[pl.DataFrame, FlowState]:
    """What a flow makes of what stands strictly between two positions of a log, and its state then.

    Args:
        state: What it held at the first position; by default nothing.
    """
    state = state or pipeline.start()
    results: list[pl.DataFrame] = []
    with named(log):
        for group in batches(labelled(log, pipeline.sources, after, end), rows):
            for frame in frames(pipeline, state.sources, group):
                state, result, _ = pipeline.step(state, frame, fill=True)
                results.append(result)
        if results:
            pipeline.check(state)
    if final:
        state, result = pipeline.finish(state)
        results.append(result)
    return _together(results), state


def _together(results: Sequence[pl.DataFrame]) -> pl.DataFrame:
    shown = [result for result in results if result.width]
    # The last one, be it without a row, says which columns there are by then and of what types, as one batch would.
    return widened([shown[-1].clear(), *(result for result in shown if result.height)]) if shown else pl.DataFrame()


def schema(flow: Flow, log: Log) -> pl.Schema:
    """The columns that come out of a flow; see `Flow.schema`."""
    pipeline = Pipeline(flow)
    check_there(log, pipeline.sources)
    empty = [_empty(log, source, needs) for source, needs in zip(pipeline.sources, pipeline.needs, strict=True)]
    if not any(frame is not None for frame in empty):
        name = pipeline.sources[0].stream
        if not name.endswith("*") and next(log.streams(name), None) is None:
            raise StreamNotFound(name)
        raise FlowError(f"stream {name!r} has no event yet, so nobody knows its columns", hint="Append one first")
    with named(log):
        state, out, _ = pipeline.step(pipeline.start(), empty, fill=True)
        pipeline.check(state)
    return out.schema


def _empty(log: Log, source: Source, needs: Needs) -> pl.DataFrame | None:
    """The rows of a source without one of them; None where it has had none."""
    held = _columns_of(log, source, needs) if next(log.streams(source.stream), None) is not None else pl.Schema()
    if not visible(pl.DataFrame(schema=held)):
        return None
    return pl.DataFrame(schema={name: held[name] for name in held if is_hidden(name) or needs.reads(name)})


def _columns_of(log: Log, source: Source, needs: Needs) -> pl.Schema:
    """The columns of a source, by the events that are there."""
    try:
        held = log.scan(source.stream, types=source.types, envelope=True).collect_schema()
    except SchemaConflict:
        held = None  # Frames of several streams that no scan puts together.
    if held is not None and not any(dtype == pl.Null and needs.reads(name) for name, dtype in held.items()):
        return held
    # What a flow makes of these depends on their values, and on what classes say.
    frames = [frame.schema for frame in frames_of(source_spans(log, source, 0, log.head + 1), {}, needs.wanted)]
    return pl.Schema({**(held or {}), **frames[-1]}) if frames else held or pl.Schema()


def _slices(history: pl.DataFrame, rows: int) -> Iterator[pl.DataFrame]:
    placed = history
    if SEQUENCE not in history.columns:
        placed = history.with_columns(pl.int_range(1, history.height + 1, dtype=pl.Int64).alias(SEQUENCE))
    for start in range(0, max(placed.height, 1), rows):
        yield placed.slice(start, rows)
