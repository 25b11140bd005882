"""Events by the frame: what `on_batch` handlers take, made of runs without a Python object where that is possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import polars as pl

from ..errors import InvalidEvent
from ..events import Plain
from ..frames import Columns, union_columns
from ..log.framing import ENVELOPE, alike, enveloped, frame_of
from ..log.records import Run
from ..log.shapes import Shape
from ..log.singles import Singles, one_by_one
from ..storage.forked import check_frames


def frame_of_runs(
    runs: Sequence[Run] | Singles, classes: dict[str, type[Any]], shapes: dict[str, Shape | None]
) -> pl.DataFrame:
    """One frame of runs, with the envelope: the union of their columns, null where an event lacks one.

    Args:
        classes: Type → the class to decode as.
        shapes: Type → how that becomes columns at once; None where it does not.

    Raises:
        InvalidEvent: What is stored does not fit its class.
    """
    check_frames()
    spans = [runs] if isinstance(runs, Singles) else runs
    parts = [_part(group, classes[group[0].type], shapes[group[0].type]) for group in _alike(spans)]
    if len(parts) == 1:
        return parts[0]
    columns: Columns = {}
    for part in parts:
        columns = union_columns("a batch", columns, {n: t for n, t in part.schema.items() if n not in ENVELOPE})
    columns |= ENVELOPE
    return pl.concat([_conformed(part, columns) for part in parts])


def _conformed(part: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    if part.schema == columns:
        return part
    return part.select(
        pl.col(name).cast(dtype) if name in part.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in columns.items()
    )


def _part(group: Sequence[Run | Singles], cls: type[Any], found: Shape | None) -> pl.DataFrame:
    """Runs of one kind as a frame: one run of a frame, or neighbouring ones of JSON."""
    first = group[0]
    if isinstance(first, Run) and first.is_frame:
        return _declared(enveloped(group, first.frame()), found)
    if found is None or not {type(run) for run in group} <= {Run, Singles}:
        if cls is not Plain:
            for run in one_by_one(group):
                run.events(cls)  # what does not fit its class is refused, by columns as by rows
        return frame_of(group, envelope=True)
    try:
        events = found.events(group)
        series = [found.column(name, events) for name in found.columns]
    except msgspec.DecodeError as error:
        for run in one_by_one(group):
            run.events(cls)  # says which of them
        raise InvalidEvent(f"an event of type {first.type!r} does not fit: {error}") from error
    except (OverflowError, TypeError, pl.exceptions.PolarsError):
        return frame_of(group, envelope=True)  # such as whole numbers beyond 64 bits
    return enveloped(group, pl.DataFrame(series))


def _declared(frame: pl.DataFrame, found: Shape | None) -> pl.DataFrame:
    """A frame with the columns that the class of its events has and it lacks, as nulls."""
    if found is None:
        return frame
    lacking = [
        pl.lit(None, dtype or pl.Null()).alias(name)
        for name, dtype in found.columns.items()
        if name not in frame.columns
    ]
    return frame.with_columns(lacking) if lacking else frame


def cut(run: Run, rows: int) -> Iterator[Run]:
    """A run in parts of at most so many events."""
    for first in range(run.position, run.last + 1, rows):
        part = run.cut(first - 1, first + rows)
        assert part is not None
        yield part


def _alike(runs: Sequence[Run | Singles]) -> Iterator[Sequence[Run | Singles]]:
    """Neighbouring JSON runs of one kind together; each frame alone."""
    if len({(run.kind_id, run.is_frame) for run in runs}) == 1 and not runs[0].is_frame:
        yield runs
    else:
        yield from alike(runs)
