"""Sources that have fallen silent: events of the log that say how far their time has come without a row.

The clock of a running flow decides nothing by itself. It has the log say that a source is silent, and the flow acts on
what the log says: so a replay, a backtest and another worker see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..events import Plain
from ..log.framing import ENVELOPE
from ..log.records import Run
from ..log.singles import Singles
from ..time import from_micros, to_micros
from .columns import IDLE, NO_TIME, SEQUENCE
from .pipeline import Pipeline
from .steps import FlowState

if TYPE_CHECKING:
    from ..log.log import Log
    from .tree import Source

STREAM, TYPE = "$idle", "SourceIdle"


def silences(log: Log, source: Source, after: int, end: int) -> Iterator[Run]:
    """What the log says of a source's silence strictly between two positions."""
    if source.idle is None:
        return
    for run in log.runs(STREAM, types=[TYPE], after=after, until_position=end):
        if _said(run)["source"] == source.rows_shape:
            yield run


def marks_of(runs: Iterable[Run]) -> pl.DataFrame | None:
    """Silences as rows of a source: with a place and a time, and nothing else. None when there is none."""
    held = list(runs)
    if not held:
        return None
    return pl.DataFrame(
        {
            SEQUENCE: [run.position for run in held],
            IDLE: [to_micros(_said(run)["reached"]) for run in held],
        },
        schema_overrides={SEQUENCE: pl.Int64, IDLE: pl.Int64},
    ).select(
        *(pl.lit(None, dtype).alias(name) for name, dtype in ENVELOPE.items() if name != SEQUENCE),
        SEQUENCE,
        IDLE,
    )


def with_marks(rows: pl.DataFrame | None, marks: pl.DataFrame | None, low: int, high: int) -> pl.DataFrame | None:
    """The rows of a source with the silences from one position up to another in between."""
    if marks is None:
        return rows
    some = marks.filter(pl.col(SEQUENCE).is_between(low, high, closed="left"))
    if not some.height:
        return rows
    if rows is None:
        return some
    return pl.concat([rows, some], how="diagonal").sort(SEQUENCE, maintain_order=True)


class Listener:
    """What a running flow knows of the silence of its sources.

    Args:
        log: The log.
        pipeline: The flow at work.
        waits: Tells whether a result of a state waits for the time of some sources to go on; by default the pipeline.
    """

    def __init__(
        self, log: Log, pipeline: Pipeline, waits: Callable[[FlowState, list[int]], bool] | None = None
    ) -> None:
        self._log = log
        self._pipeline = pipeline
        self._waits = waits or pipeline.waits
        self._asked: tuple[FlowState, list[int]] | None = None
        """What closing these sources was found to bring nothing for."""
        self._heard: dict[int, int] = {}
        self.look()

    def look(self) -> None:
        """Learn from the log itself when each source was last heard of."""
        self._heard = {
            number: heard
            for number, source in enumerate(self._pipeline.sources)
            if source.idle is not None and (heard := self._last(source)) is not None
        }

    def hear(self, group: Sequence[tuple[int, Run | Singles]]) -> None:
        """Take note of runs of the sources, and of what says that one is silent."""
        if all(source.idle is None for source in self._pipeline.sources):
            return
        for label, run in group:
            number = label if label >= 0 else ~label
            if self._pipeline.sources[number].idle is not None and isinstance(run, Run):
                self._heard[number] = max(run.recorded, self._heard.get(number, 0))

    def tell(self, state: FlowState) -> bool:
        """Have the log say which sources are silent now, where a result waits for them; whether any was."""
        now = to_micros(self._log.now())
        silent = [
            number
            for number, heard in sorted(self._heard.items())
            if now - heard >= (self._pipeline.sources[number].idle or 0) and state.sources[number].high > NO_TIME
        ]
        if not silent or (self._asked is not None and self._asked[0] is state and self._asked[1] == silent):
            return False
        if not self._waits(state, silent):
            self._asked = (state, silent)
            return False
        said = []
        for number in silent:
            try:
                reached = from_micros(state.sources[number].high + now - self._heard[number]).isoformat()
            except (OverflowError, ValueError):  # a stamp at the end of the calendar
                continue
            said.append(Plain(TYPE, {"source": self._pipeline.sources[number].rows_shape, "reached": reached}))
            self._heard[number] = now
        # One append each, so that each has a run of its own.
        for event in said:
            self._log.append(STREAM, event)
        return bool(said)

    def _last(self, source: Source) -> int | None:
        """When the source's last row, or that it is silent, was recorded."""
        found = next(self._log.read(source.stream, types=source.types, backwards=True, limit=1), None)
        if found is None:
            return None
        heard = found.recorded
        for event in self._log.read(STREAM, types=[TYPE], backwards=True):
            if event.recorded <= heard:
                break
            if event.data["source"] == source.rows_shape:
                return event.recorded
        return heard


def _said(run: Run) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.json.decode(run.lines()[0])
    return said
