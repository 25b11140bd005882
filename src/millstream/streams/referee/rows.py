"""What a flow was given: the rows of its sources up to a position, and how far their time had come at each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from ...frames import Columns
from ...log.objects import fitted, union
from ..columns import IDLE, SEQUENCE, micros
from ..errors import CannotCheck, FlowError, MissingColumn
from ..idle import marks_of, silences
from ..replay import source_spans
from ..rows import frames_of
from .engine import AT, END, LATE, NEVER, PLACE, Engine

if TYPE_CHECKING:
    from ...log.log import Log
    from ..needs import Needs
    from ..tree import Source


class Given:
    """The rows of a flow's sources.

    Args:
        end: The position after the last that counts.
        final: Whether time goes on for ever at the end.
    """

    def __init__(self, engine: Engine, log: Log, needs: dict[Source, Needs], end: int, *, final: bool) -> None:
        self._engine = engine
        self._final = final
        self.rows: dict[Source, pl.DataFrame] = {}
        self._clocks: dict[Source, pl.DataFrame] = {}
        for source, needed in needs.items():
            rows = _timed(source, _read(log, source, needed.wanted, end), needed.named)
            marks = marks_of(silences(log, source, 0, end))
            self.rows[source], self._clocks[source] = self._clocked(source, rows, marks)

    def watermark(self, sources: Sequence[Source]) -> int:
        """Where the watermark of some sources stands at the end."""
        if self._final:
            return END
        ends = [self._clocks[source]["mark"].max() if self._clocks[source].height else None for source in sources]
        return min(end if isinstance(end, int) else NEVER for end in ends)

    def before(self, sources: Sequence[Source], places: pl.DataFrame) -> pl.DataFrame:
        """Places (``row``, ``log``) with where the watermark of some sources stood before each (``reached``)."""
        tables = {f"c{number}": self._clocks[source] for number, source in enumerate(sources)}
        joins = " ".join(f"asof left join {name} on places.pos > {name}.pos" for name in tables)
        least = ", ".join(f"coalesce({name}.mark, {NEVER})" for name in tables)
        query = f"select places.rn, least({least}) as reached from places {joins} order by places.rn"
        return self._engine.ask(query, places=places, **tables)

    def passed(self, sources: Sequence[Source], times: pl.DataFrame) -> pl.DataFrame:
        """Times (``row``, ``at``) with the position at which the watermark of some sources passed each (``log``)."""
        places = pl.concat(self._clocks[source].select("pos") for source in sources).unique().sort("pos")
        asked = places.with_row_index("rn").select(pl.col("rn").cast(pl.Int64), pl.col("pos") + 1)
        marks = self.before(sources, asked).with_columns(places["pos"]).rename({"reached": "mark"})
        query = f"""
            with first as (select mark, min(pos) as pos from marks group by mark)
            select times.rn, coalesce(first.pos, {END}) as pos
            from times asof left join first on times.ts < first.mark order by times.rn
        """
        return self._engine.ask(query, times=times, marks=marks)

    def _clocked(
        self, source: Source, rows: pl.DataFrame, marks: pl.DataFrame | None
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows with whether each is late, and where the watermark stood after each position."""
        seen = rows.select(pl.col(SEQUENCE).alias("pos"), pl.col(AT).alias("ts"), pl.lit(True).alias("real"))
        if marks is not None:
            said = marks.select(pl.col(SEQUENCE).alias("pos"), pl.col(IDLE).alias("ts"), pl.lit(False).alias("real"))
            seen = pl.concat([seen, said]).sort("pos", maintain_order=True)
        seen = seen.with_row_index("rn").with_columns(pl.col("rn").cast(pl.Int64))
        late = f"""
            select ts is null or ts < coalesce(max(ts) over (order by rn rows between unbounded preceding
                   and 1 preceding) - {source.lateness}, {NEVER}) as late, real from seen order by rn
        """
        told = self._engine.ask(late, seen=seen).filter("real")["late"]
        clock = f"""
            select pos, max(mark) as mark from (
                select pos, max(ts) over (order by rn rows between unbounded preceding and current row)
                       - {source.lateness} as mark from seen
            ) where mark is not null group by pos order by pos
        """
        return rows.with_columns(told.alias(LATE)), self._engine.ask(clock, seen=seen)


def _read(log: Log, source: Source, wanted: frozenset[str] | None, end: int) -> pl.DataFrame:
    """The rows as they are decoded, as one frame."""
    frames = list(frames_of(source_spans(log, source, 0, end), {}, wanted))
    columns: Columns = {}
    for frame in frames:
        wider = union(columns, dict(frame.schema))
        for name, known in columns.items():
            if wider[name] == pl.String and not isinstance(known, pl.String | pl.Null):
                raise CannotCheck(
                    f"column {name!r} of {source.stream!r}",
                    f"the log holds it as {known} and as text, and what it is read as depends on the rows before",
                )
        columns = wider
    if not frames:
        return pl.DataFrame(schema=_EMPTY)
    return pl.concat([fitted(frame, columns) for frame in frames])


_EMPTY = {
    SEQUENCE: pl.Int64(),
    "_stream": pl.String(),
    "_version": pl.Int64(),
    "_type": pl.String(),
    "_time": pl.Datetime("us", "UTC"),
}


def _timed(source: Source, rows: pl.DataFrame, named: frozenset[str]) -> pl.DataFrame:
    """The rows with their event time and their place."""
    absent = sorted(named - set(rows.columns))
    name = source.time or "_time"
    if name in absent and rows.height:
        raise MissingColumn(name, f"stream({source.stream!r}, time=...)", rows.columns, source)
    rows = rows.with_columns(pl.lit(None).alias(each) for each in absent)
    at = micros(name, rows.schema[name])
    if at is None:
        raise FlowError(f"column {name!r} of stream {source.stream!r} is no time", hint="Name a column of times")
    at = at.cast(pl.Int64)
    if source.ahead is not None:
        at = pl.when(at <= pl.col("_time").dt.epoch("us") + source.ahead).then(at)
    rows = rows.with_columns(at.alias(AT))
    return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(PLACE))
