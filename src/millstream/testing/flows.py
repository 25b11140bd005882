"""What a flow gives of rows that a test writes down: row by row and all at once, on a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import msgspec
import polars as pl

from ..errors import StreamNotFound, UsageError
from ..log import open
from ..log.log import Log
from ..streams.flow import Flow
from ..streams.runner import Worker
from ..streams.tree import Source, sources_of
from ..time import Duration, Moment, to_micros
from .clock import FakeClock

Row = Mapping[str, Any]
Arrival = Row | tuple[str, Row] | str | timedelta
"""A row; one of a stream; or a time in which nothing comes."""

_OUT, _LATE = "assert-flow-out", "assert-flow-late"


class _Given(msgspec.Struct):
    """What came of it: the rows, and those that were late."""

    rows: list[dict[str, Any]]
    late: list[dict[str, Any]]


def assert_flow(
    flow: Flow,
    arrivals: pl.DataFrame | Iterable[Arrival],
    *,
    gives: pl.DataFrame | Sequence[Row],
    late: pl.DataFrame | Sequence[Row] | None = None,
    schema: Mapping[str, Any] | None = None,
    clock: Moment = "2024-01-01T00:00:00Z",
) -> None:
    """See that a flow gives these rows, in this order, of rows that arrive in that one; and which of them are late.

    It is run on a log in memory, once with a commit for each row and once with as few as can be: both must give the
    same. What is still open at the end is not given: let a later row come, or, of a source with ``idle=``, time pass.

    Args:
        flow: The flow, with or without an end.
        arrivals: The rows, in the order in which they come: of a flow with one source dicts, or a frame; of several,
            pairs of the stream and a dict. Between them, times in which nothing comes, such as ``"5m"``: the log's
            clock goes on by so much, and silent sources are noticed.
        gives: The rows that come out. Of their columns some are enough; a time may be ISO 8601 text, and floats may
            differ in their last digits.
        late: The rows that come late, likewise. By default not looked at.
        schema: Types of columns that the rows do not tell by themselves, such as those that are null.
        clock: When it begins.

    Raises:
        AssertionError: It gives something else; names the first row that differs.

    Example:
        >>> import millstream as ms
        >>> import polars as pl
        >>> from datetime import datetime
        >>> def at(second: int) -> datetime:
        ...     return datetime(2024, 1, 15, 12, 0, second)
        >>> flow = ms.stream("clicks", time="ts").group_by("user").window(ms.tumbling("10s")).agg(n=pl.len())
        >>> ms.testing.assert_flow(
        ...     flow,
        ...     [{"user": user, "ts": at(second)} for user, second in ((1, 3), (1, 9), (2, 20), (1, 4))],
        ...     gives=[{"user": 1, "n": 2, "window_end": "2024-01-15T12:00:10Z"}],
        ...     late=[{"user": 1, "ts": at(4)}],
        ... )
    """
    steps = list(_steps(flow, arrivals, schema or {}))
    single, whole = (_given(flow, steps, clock, at_once) for at_once in (False, True))
    if not (_alike(single.rows, whole.rows) and _alike(single.late, whole.late)):
        raise AssertionError(
            "the flow gives other rows when all come at once than when they come one by one"
            f"\nat once:    {_shown(whole.rows)}\none by one: {_shown(single.rows)}"
        )
    _compare("gives", single.rows, gives)
    if late is not None:
        _compare("leaves out as late", single.late, late)


def _steps(
    flow: Flow, arrivals: pl.DataFrame | Iterable[Arrival], schema: Mapping[str, Any]
) -> Iterator[Duration | tuple[str, pl.DataFrame]]:
    """Times that pass, and frames of one row with the stream that they come in."""
    if not isinstance(flow, Flow):
        raise UsageError(f"{flow!r:.60} is no flow", hint="Give what ms.stream(...) makes")
    if isinstance(arrivals, str | Mapping) or not isinstance(arrivals, pl.DataFrame | Iterable):
        raise UsageError(f"{arrivals!r:.60} is no list of arrivals", hint="Give a list of rows, or a frame")
    if flow.sink is not None:
        raise UsageError("the flow has an end", hint="Give the flow without its to(...)")
    sources = {source.stream: source for source in sources_of(flow) if isinstance(source, Source)}
    given: list[Any] = list(arrivals.iter_rows(named=True)) if isinstance(arrivals, pl.DataFrame) else list(arrivals)
    if isinstance(arrivals, pl.DataFrame):
        schema = {**arrivals.schema, **schema}
    rows: dict[str, list[Row]] = {}
    places: list[tuple[str, int] | Duration] = []
    for each in given:
        if isinstance(each, str | timedelta):
            places.append(each)
            continue
        pair = (next(iter(sources)), each) if isinstance(each, Mapping) and len(sources) == 1 else each
        stream, row = pair if isinstance(pair, Sequence) and len(pair) == 2 else (None, None)
        if not isinstance(stream, str) or not isinstance(row, Mapping):
            raise UsageError(
                f"{each!r:.60} is neither a row, a stream and its row, nor a time", hint=f"Streams: {sorted(sources)}"
            )
        if stream not in sources:
            raise UsageError(f"the flow reads no stream {stream!r}", hint=f"Streams: {sorted(sources)}")
        places.append((stream, len(rows.setdefault(stream, []))))
        rows[stream].append(row)
    # All rows of a stream have their types together, as the columns of one table.
    frames = {}
    for stream, held in rows.items():
        names = dict.fromkeys(name for row in held for name in row)
        types = {name: schema.get(name) for name in names}
        frames[stream] = pl.DataFrame(held, schema=types, infer_schema_length=None)
    for place in places:
        yield place if isinstance(place, str | timedelta) else (place[0], frames[place[0]][place[1]])


def _given(flow: Flow, steps: Sequence[Duration | tuple[str, pl.DataFrame]], start: Moment, at_once: bool) -> _Given:
    """What the flow gives of them, with a commit for each row, or for as many as come together."""
    clock = FakeClock(start)
    ended = flow.late_to(_LATE).to(_OUT, type="Given")
    types = {source.stream: min(source.types or {"Row"}) for source in sources_of(flow)}
    with open(clock=clock) as log, closing(Worker(log, ended, commit_every=0)) as worker:
        for stream, group in groupby(steps, key=lambda step: step[0] if isinstance(step, tuple) else None):
            for step in _joined(stream, group, at_once):
                if isinstance(step, pl.DataFrame):
                    assert stream is not None
                    log.append(stream, step, type=types.get(stream, "Row"))
                else:
                    _work(worker, log)
                    clock.advance(step)
                    worker.listen(log.head)
                if not at_once:
                    _work(worker, log)
        _work(worker, log)
        return _Given(_read(log, _OUT), _read(log, _LATE))


def _joined(stream: str | None, group: Iterable[Any], at_once: bool) -> list[Any]:
    """The frames of a stream that come one after the other, together if they are to be; times as they are."""
    if stream is None:
        return list(group)
    frames = [frame for _, frame in group]
    return [pl.concat(frames)] if at_once else frames


def _work(worker: Worker, log: Log) -> None:
    while worker.advance(log.head):
        pass
    worker.flush()


def _read(log: Log, stream: str) -> list[dict[str, Any]]:
    try:
        return log.scan(stream).collect().to_dicts()
    except StreamNotFound:
        return []


# --- comparing --------------------------------------------------------------------------------------------


def _compare(what: str, found: Sequence[Row], wanted: pl.DataFrame | Sequence[Row]) -> None:
    expected = wanted.to_dicts() if isinstance(wanted, pl.DataFrame) else list(wanted)
    for number, (row, like) in enumerate(zip(found, expected, strict=False)):
        unlike = [name for name, value in like.items() if name not in row or not _same(row[name], value)]
        if unlike:
            raise AssertionError(
                f"row {number} of what the flow {what} differs in {', '.join(unlike)}:"
                f"\n{dict(row)}\ninstead of {dict(like)}"
            )
    if len(found) != len(expected):
        raise AssertionError(f"the flow {what} {len(found)} rows instead of {len(expected)}: {_shown(found)}")


def _alike(some: Sequence[Row], others: Sequence[Row]) -> bool:
    return len(some) == len(others) and all(
        one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
        for one, other in zip(some, others, strict=True)
    )


def _same(value: Any, like: Any) -> bool:
    if isinstance(value, datetime) and isinstance(like, str | datetime):
        zoned = like if isinstance(like, str) or like.tzinfo is not None or value.tzinfo is None else None
        if zoned is None:
            return value.replace(tzinfo=None) == like
        return to_micros(zoned) == to_micros(value) if value.tzinfo is not None else value == like
    if isinstance(value, float) and isinstance(like, int | float) and not isinstance(like, bool):
        return math.isclose(value, like, rel_tol=1e-9) or (math.isnan(value) and math.isnan(like))
    if isinstance(value, Mapping) and isinstance(like, Mapping):
        return value.keys() == like.keys() and all(_same(value[name], like[name]) for name in value)
    if isinstance(value, list) and isinstance(like, list | tuple):
        return len(value) == len(like) and all(map(_same, value, like))
    return bool(value == like) and isinstance(value, bool) == isinstance(like, bool)


def _shown(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"{[dict(row) for row in rows[:10]]}{more}"
