"""Streams as lazy frames: only the runs that can matter are read, and only the columns that are asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

import polars as pl
from polars.io.plugins import register_io_source

from ..errors import InvalidTime, StreamNotFound, Trimmed
from ..frames import MAX_ROWS, Columns, join_columns
from ..storage.forked import check_frames
from ..time import Moment, from_micros, to_micros
from .following import grouped
from .framing import ENVELOPE, alike, frame_of
from .objects import union
from .quick import quick_frame
from .reading import scope_of
from .records import Run
from .singles import Singles, spread

if TYPE_CHECKING:
    from .reading import Reader, Types


def scan(
    log: Reader,
    stream: str,
    *,
    types: Types,
    since: Moment | None,
    until: Moment | None,
    by: str | None,
    envelope: bool,
) -> pl.LazyFrame:
    """See `Log.scan`."""
    check_frames()
    scope = scope_of(stream, types)
    low = to_micros(since) if since is not None else None
    high = to_micros(until) if until is not None else None
    kinds = log.store.kinds(scope)
    if not kinds and not _exists(log, stream):
        raise StreamNotFound(stream)
    head = log.head
    columns, json_kinds = _columns(log, stream, kinds)
    if json_kinds:
        # Objects have no stored columns: one pass over them fixes the shape of the whole.
        found = (run for run in spread(log.spans(scope, 0, head + 1)) if not run.is_frame)
        for group in chain.from_iterable(map(alike, grouped(found, MAX_ROWS))):
            if not columns:
                columns = dict(_framed(log, group[:1]).schema)
            if not _fits(group, columns):
                columns = union(columns, dict(_framed(log, group).schema))
    if by is not None and not isinstance(columns.get(by), pl.Datetime):
        raise InvalidTime(f"{by!r} is not a datetime column of {stream!r}", hint=f"It has {', '.join(columns)}")
    names = [*columns, *ENVELOPE] if envelope else list(columns)
    schema = {**columns, **ENVELOPE} if envelope else columns

    def runs() -> Iterator[Run | Singles]:
        if by is None:
            after = 0 if low is None else log.store.position_at(low)
            until = head if high is None else min(head, log.store.position_at(high))
            return spread(log.spans(scope, after, until + 1))
        found = spread(log.spans(scope, 0, head + 1))
        return found if low is None and high is None else _overlapping(log, found, by, low, high)

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = names if with_columns is None else [n for n in names if n in with_columns]
        needed = {n: t for n, t in columns.items() if n in wanted or n == by}
        with_envelope = any(n in ENVELOPE for n in wanted)

        def decode(group: list[Run | Singles]) -> pl.DataFrame:
            frame = _framed(log, group, needed, with_envelope)
            if by is not None:
                frame = _between(frame, by, low, high)
            if frame.columns != wanted:  # a frame without columns has rows all the same, until it is selected from
                frame = frame.select(wanted)
            # A limit counts rows before the predicate, so that with both the filter has to wait.
            return frame if predicate is None or n_rows is not None else frame.filter(predicate)

        left = n_rows
        for frame in _ahead(decode, grouped(runs(), batch_size or MAX_ROWS)):
            if left is None:
                yield frame
                continue
            frame = frame.head(left)
            left -= frame.height
            yield frame if predicate is None else frame.filter(predicate)
            if left <= 0:
                return

    return register_io_source(source, schema=schema)


def _fits(group: list[Run | Singles], columns: Columns) -> bool:
    """Whether a group is certain to have no other columns."""
    try:
        return quick_frame(group, columns, None) is not None
    except Trimmed:  # since its headers were read
        return False


def _framed(
    log: Reader, group: list[Run | Singles], columns: Columns | None = None, envelope: bool = False
) -> pl.DataFrame:
    """The frame of a group of runs, without those that were trimmed since their headers were read."""
    try:
        return frame_of(group, columns=columns, envelope=envelope)
    except Trimmed:
        runs = [run for run in group if isinstance(run, Run)]
        moved = {run.position: log.store.find_body(run.base or run.position) for run in runs}
        gone = log.bodies.trimmed({body[0] for body in moved.values() if body is not None})
        left = [run for run in group if (body := moved.get(run.position)) is None or body[0] not in gone]
        return frame_of(left, columns=columns, envelope=envelope)


def _exists(log: Reader, stream: str) -> bool:
    return stream.endswith("*") or log.store.stream(stream) is not None


def _columns(log: Reader, stream: str, kinds: list[int]) -> tuple[Columns, bool]:
    objects = False
    if not stream.endswith("*"):
        kinds, objects = log.store.stream_kinds(stream, kinds)
    shapes = [log.columns_of(kind) for kind in kinds]
    return join_columns(stream, shapes), objects or not all(shapes)


def _ahead(
    decode: Callable[[list[Run | Singles]], pl.DataFrame], groups: Iterator[list[Run | Singles]]
) -> Iterator[pl.DataFrame]:
    """Frames in order, the next few decoded on other threads while the caller works on this one."""
    first = next(groups, None)
    if first is None:
        return
    second = next(groups, None)
    if second is None:
        yield decode(first)
        return
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="millstream-scan") as threads:
        pending = deque([threads.submit(decode, first), threads.submit(decode, second)])
        try:
            while pending:
                while len(pending) <= workers and (group := next(groups, None)) is not None:
                    pending.append(threads.submit(decode, group))
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _overlapping(
    log: Reader, runs: Iterator[Run | Singles], by: str, low: int | None, high: int | None
) -> Iterator[Run | Singles]:
    for run in runs:
        bounds = None
        if isinstance(run, Run) and run.is_frame:
            bounds = log.store.range_of(run.base or run.position, by)
        if bounds is None or ((high is None or bounds[0] < high) and (low is None or bounds[1] >= low)):
            yield run


def _between(frame: pl.DataFrame, by: str, low: int | None, high: int | None) -> pl.DataFrame:
    dtype = frame.schema[by]
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    column = pl.col(by) if zone else pl.col(by).dt.replace_time_zone("UTC")
    if low is not None:
        frame = frame.filter(column >= pl.lit(from_micros(low)))
    if high is not None:
        frame = frame.filter(column < pl.lit(from_micros(high)))
    return frame
