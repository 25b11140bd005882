"""The very events behind a row of a flow, by replay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..errors import NotFound, UsageError
from ..log.records import Recorded
from ..time import to_micros
from .columns import AT, ID, visible
from .errors import FlowError
from .lookback import lookback
from .pipeline import Pipeline
from .replay import played
from .savepoints import kept
from .state import widened
from .tracing import Tracer

if TYPE_CHECKING:
    from ..log.log import Log
    from .flow import Flow


class Explanation(msgspec.Struct, frozen=True, eq=False):
    """What a row of a flow was made of.

    Attributes:
        row: The row.
        inputs: The rows of each source that made it, in the order of the log, with ``_position``, ``_stream``,
            ``_version``, ``_type`` and ``_time`` and the columns that the flow reads.
        alike: How many rows the flow has given that are equal to it, with itself. Of several an event is explained by
            the one whose turn it is, in their order; a row of `over` by the first.
    """

    row: dict[str, Any]
    inputs: dict[str, pl.DataFrame]
    alike: int = 1

    @property
    def positions(self) -> list[int]:
        """Where the events stand in the log, in order."""
        found = [position for rows in self.inputs.values() for position in rows["_position"].to_list()]
        return sorted(set(found))


def explain(flow: Flow, log: Log, row: Recorded | Mapping[str, Any] | pl.DataFrame) -> Explanation:
    """See `Flow.explain`."""
    if isinstance(row, Recorded) and (found := _from_savepoint(flow, log, row)) is not None:
        return found
    # What an event of the log was made of stands before it.
    end = row.position if isinstance(row, Recorded) else log.head + 1
    tracer = Tracer(flow)
    played(tracer, log, 0, end, final=not isinstance(row, Recorded))
    rows = _found(tracer, row)
    return _explained(tracer, rows, _turn(log, row, rows.height))


def _turn(log: Log, row: Recorded | Mapping[str, Any] | pl.DataFrame, count: int) -> int:
    """Of several rows that are equal, which one it is: rows come out in the order in which events are appended."""
    if not isinstance(row, Recorded) or count == 1:
        return 0
    before = log.read(row.stream, types=[row.type], until_position=row.position)
    return min(sum(event.data == row.data for event in before if event.position < row.position), count - 1)


def _from_savepoint(flow: Flow, log: Log, row: Recorded) -> Explanation | None:
    """The events behind a row, all of which came after a savepoint; None when there is none like that.

    What came up to the savepoint is in the state that it holds. That will do when all of it is older than what the row
    can be made of.
    """
    reach = lookback(flow)
    if flow.sink is None or reach is None:
        return None
    oldest: int | None = None
    for state, position in kept(Pipeline(flow), log, flow.sink.name, row.position - 1):
        if oldest is not None and any(source.high >= oldest for source in state.sources):
            continue  # The row's time is known from a later one: this one is too late for it as well.
        tracer = Tracer(flow)
        played(tracer, log, position, row.position, final=False, state=state)
        try:
            found = _found(tracer, row)
        except (NotFound, UsageError):
            continue
        if found.height > 1:
            return None  # Which of them it is, is known from the beginning alone.
        oldest = found[AT].item() - reach
        if all(source.high < oldest for source in state.sources):
            return _explained(tracer, found, 0)
    return None


def _found(tracer: Tracer, row: Recorded | Mapping[str, Any] | pl.DataFrame) -> pl.DataFrame:
    """The row that came out and is like what is asked for; all of them, if they do not differ.

    Raises:
        NotFound, FlowError: There is none, or there are several.
    """
    asked = _asked(row)
    out = widened(tracer.out) if tracer.out else pl.DataFrame()
    known = [name for name in asked if name in visible(out)]
    if out.width and (unknown := sorted(set(asked) - set(known))):
        raise UsageError(
            f"the flow gives no column {unknown[0]!r}; it gives {', '.join(map(repr, visible(out)))}",
            hint="Give a row of the flow, or some of its columns",
        )
    found = out
    for name in known:
        found = found.filter(_is(found[name], asked[name]))
    if not found.height:
        raise NotFound(
            "the flow gives no such row of this log", hint="Give a row as it came out, such as an event of its stream"
        )
    shown = found.select(visible(found))
    if shown.n_unique() > 1:
        raise FlowError(
            f"{found.height} rows of the flow are like that",
            hint="Name more of the columns, such as the window's start",
        )
    return found


def _explained(tracer: Tracer, found: pl.DataFrame, turn: int) -> Explanation:
    shown = found.select(visible(found))
    origins = tracer.origins(found[ID][turn : turn + 1])
    inputs: dict[str, pl.DataFrame] = {}
    for number, rows in origins.items():
        stream = tracer.sources[number].stream
        inputs[stream] = rows if stream not in inputs else widened([inputs[stream], rows]).unique(maintain_order=True)
    return Explanation(shown.row(turn, named=True), inputs, found.height)


def _asked(row: Recorded | Mapping[str, Any] | pl.DataFrame) -> dict[str, Any]:
    if isinstance(row, Recorded):
        data = row.data
        return dict(data) if isinstance(data, Mapping) else dict(msgspec.structs.asdict(data))
    if isinstance(row, pl.DataFrame):
        if row.height != 1:
            raise UsageError(f"a frame of {row.height} rows", hint="Give one row: frame.row(0, named=True)")
        return row.row(0, named=True)
    if not isinstance(row, Mapping) or not row:
        raise UsageError(f"{row!r:.60} is no row", hint="Give an event of the flow's stream, or a dict of columns")
    return dict(row)


def _is(column: pl.Series, value: Any) -> pl.Series:
    """Which values of a column are a value; floats may differ in their last digits."""
    if value is None:
        return column.is_null()
    if column.dtype.is_temporal() and isinstance(value, str) and isinstance(column.dtype, pl.Datetime):
        return (column.dt.epoch("us") == to_micros(value)).fill_null(False)
    if column.dtype.is_float() and isinstance(value, int | float) and math.isfinite(value):
        near = (column - float(value)).abs() <= 1e-9 * abs(float(value))
        return (near | column.eq_missing(pl.Series([float(value)]))).fill_null(False)
    if column.dtype.is_nested():
        return pl.Series([each == value for each in column.to_list()], dtype=pl.Boolean)
    try:
        return column.eq_missing(pl.Series([value]).cast(column.dtype))
    except (pl.exceptions.PolarsError, TypeError):
        return pl.Series([str(each) == str(value) for each in column.to_list()], dtype=pl.Boolean)
