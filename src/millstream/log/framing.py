"""Runs as frames, with the log's envelope."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, overload

import numpy as np
import polars as pl

from ..errors import DamagedLog
from ..frames import Columns, union_columns
from .objects import columns_of, frame_of_objects, shaped, union, values_of
from .quick import quick_frame
from .records import Run
from .singles import Singles, one_by_one

ENVELOPE: Columns = {
    "_position": pl.Int64(),
    "_stream": pl.String(),
    "_version": pl.Int64(),
    "_type": pl.String(),
    "_time": pl.Datetime("us", "UTC"),
}


def frame_of(runs: Iterable[Run | Singles], *, columns: Columns | None = None, envelope: bool = False) -> pl.DataFrame:
    """One frame of many runs: the union of their columns, nulls where a run lacks one.

    Args:
        runs: The runs, in the order of the rows.
        columns: The columns to give, with their types; by default all that occur.
        envelope: Add ``_position``, ``_stream``, ``_version``, ``_type`` and ``_time`` (UTC, microseconds).
    """
    wanted = list(columns) if columns is not None else None
    groups: list[tuple[Sequence[Run | Singles], pl.DataFrame | list[dict[str, Any]]]] = []
    for group in alike(runs):
        first = group[0]
        if isinstance(first, Run) and first.is_frame:
            groups.append((group, first.frame(wanted)))
        else:
            quick = None if columns is None else quick_frame(group, columns, frozenset(columns))
            groups.append((group, objects_of(group) if quick is None else quick))
    if columns is None:
        columns = {}
        for each, part in groups:
            if isinstance(part, pl.DataFrame):
                columns = union_columns(each[0].stream, columns, dict(part.schema))
            else:
                columns = union(columns, columns_of(part))
    parts = [
        (each, shaped(part, columns) if isinstance(part, pl.DataFrame) else frame_of_objects(part, columns))
        for each, part in groups
    ]
    frames = [enveloped(each, frame) if envelope else frame for each, frame in parts]
    if not frames:
        empty = {**columns, **ENVELOPE} if envelope else columns
        return pl.DataFrame(schema=empty)
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def objects_of(group: Sequence[Run | Singles]) -> list[dict[str, Any]]:
    """The data of JSON runs of one kind."""
    lines = [line for run in group for line in run.lines()]
    try:
        return values_of(lines, group[0].decodes_as, group[0].position)
    except DamagedLog:
        for run in one_by_one(group):
            run.data()  # says which of them
        raise


@overload
def alike(runs: Iterable[Run]) -> Iterator[list[Run]]: ...
@overload
def alike(runs: Iterable[Run | Singles]) -> Iterator[list[Run | Singles]]: ...
def alike(runs: Iterable[Run | Singles]) -> Iterator[Any]:
    """Neighbouring JSON runs of one kind together; each frame alone, and so are many single events."""
    group: list[Run | Singles] = []
    for run in runs:
        if group and not (_alone(run) or _alone(group[0])) and run.kind_id == group[0].kind_id:
            group.append(run)
            continue
        if group:
            yield group
        group = [run]
    if group:
        yield group


def _alone(run: Run | Singles) -> bool:
    return run.is_frame or isinstance(run, Singles)


def enveloped(
    group: Sequence[Run | Singles], frame: pl.DataFrame, names: Collection[str] = tuple(ENVELOPE)
) -> pl.DataFrame:
    """The rows of runs with the log's envelope beside them.

    Args:
        names: Those of its columns that are wanted.
    """
    if len(group) == 1:
        run = group[0]
        if isinstance(run, Singles):
            return frame.with_columns(run.envelope(names))
        count = run.count
        # As columns at once: for the few rows of an append, an expression would take longer than its work.
        columns: dict[str, Callable[[], pl.Series]] = {
            "_position": lambda: pl.Series(np.arange(run.position, run.position + count)),
            "_stream": lambda: pl.Series([run.stream]).new_from_index(0, count),
            "_version": lambda: pl.Series(np.arange(run.version, run.version + count)),
            "_type": lambda: pl.Series([run.type]).new_from_index(0, count),
            "_time": lambda: pl.Series([run.recorded]).cast(ENVELOPE["_time"]).new_from_index(0, count),
        }
        return frame.hstack([columns[name]().alias(name) for name in ENVELOPE if name in names])
    runs = [run for run in group if isinstance(run, Run)]  # all of them: other rows come alone
    counts = np.array([run.count for run in runs])
    of = np.repeat(np.arange(len(runs)), counts)
    places = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    each: dict[str, Callable[[], pl.Series]] = {
        "_position": lambda: pl.Series(np.array([run.position for run in runs], np.int64)[of] + places),
        "_stream": lambda: _texts(runs, "stream_id", "stream").gather(of),
        "_version": lambda: pl.Series(np.array([run.version for run in runs], np.int64)[of] + places),
        "_type": lambda: _texts(runs, "kind_id", "type").gather(of),
        "_time": lambda: pl.Series(np.array([run.recorded for run in runs], np.int64)[of]).cast(ENVELOPE["_time"]),
    }
    return frame.hstack([each[name]().alias(name) for name in ENVELOPE if name in names])


def _texts(runs: Sequence[Run], number: str, text: str) -> pl.Series:
    """What a number of each run stands for; looked up once for each number, where runs are read as they are stored."""
    numbers, say = list(map(attrgetter(number), runs)), attrgetter(text)
    if {type(run) for run in runs} != {Run}:
        return pl.Series(map(say, runs), dtype=pl.String)
    told = {each: say(run) for each, run in dict(zip(numbers, runs, strict=True)).items()}
    return pl.Series(map(told.__getitem__, numbers), dtype=pl.String)
