"""A flow put to work on frames: one pure step from state and rows to state, output and late rows."""

from __future__ import annotations

import msgspec
import polars as pl

from ..frames import Columns
from ..log.objects import fitted, union
from .alerts import Alert
from .columns import AT, END_OF_TIME, ENVELOPE, LATE, NO_TIME, SEQUENCE, micros, ordered, visible
from .errors import FlowError, MissingColumn
from .flow import Flow
from .needs import needs_of
from .shaping import Filter, Select, WithColumns
from .state import Batch, Operator, OperatorState, concat
from .trailing import SlidingWindows


class FlowState(msgspec.Struct, frozen=True, eq=False):
    """All that a flow remembers.

    Attributes:
        high: The greatest event time so far; the watermark is this less the lateness.
        late: How many rows came late.
        columns: The columns of the source that are read, so far; rows that lack some have nulls there.
        operators: The states of the operators that have one.
    """

    high: int
    late: int
    columns: Columns
    operators: tuple[OperatorState, ...]


class Pipeline:
    """A flow's stages, ready to run."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.operators: list[Operator] = [
            stage for stage in flow.stages if not isinstance(stage, Filter | Select | WithColumns)
        ]
        windows = [stage for stage in self.operators if not isinstance(stage, Alert)]
        # Windows and patterns give rows in order; a sliding window leaves that to the end, when there may be
        # fewer. Rows that went through neither stay in the order of the log.
        self._unordered = bool(windows) and isinstance(windows[-1], SlidingWindows)
        self.needs = needs_of(flow)
        self._told = False  # A state that was stored may be of other types: a cast may have been added since.
        self._asked = {name for stage in flow.stages for name in stage.reads}

    @property
    def shape(self) -> str:
        """What the flow's state depends on."""
        source = self.flow.source
        head = f"{source.stream} by {source.time} lateness {source.lateness}"
        return "; ".join([head, *(operator.shape for operator in self.operators)])

    def start(self) -> FlowState:
        """The state before the first row."""
        return FlowState(NO_TIME, 0, {}, tuple(operator.start() for operator in self.operators))

    def watermark(self, state: FlowState) -> int:
        """The time below which rows are late."""
        return state.high - self.flow.source.lateness if state.high > NO_TIME else NO_TIME

    def step(
        self, state: FlowState, rows: pl.DataFrame, *, fill: bool = False
    ) -> tuple[FlowState, pl.DataFrame, pl.DataFrame | None]:
        """Take in rows, in the order of the log, with the log's envelope beside them.

        Args:
            state: The state before.
            rows: The rows.
            fill: A column that no row has had yet is null, not missing; `check` says when that is wrong.

        Returns:
            The state afterwards; the rows that come out, in order; the rows that came late.
        """
        known = {name: dtype for name, dtype in state.columns.items() if self.needs.reads(name)}
        columns = union(known, {n: rows.schema[n] for n in visible(rows) if self.needs.reads(n)})
        absent = sorted(self.needs.named - set(columns)) if fill else []
        shown = {**columns, **dict.fromkeys(absent, pl.Null())}
        envelope = {name: ENVELOPE_TYPES[name] for name in ENVELOPE if name in rows.columns}
        if dict(rows.schema) != {**shown, **envelope}:
            rows = fitted(rows, {**shown, **envelope})
        nothing = pl.DataFrame()
        if columns != state.columns or not self._told:
            self._told = True
            state, nothing = self._reshaped(msgspec.structs.replace(state, columns=columns), rows.clear())
        frame, high = self._timed(rows, state.high)
        before, after = self.watermark(state), max(high - self.flow.source.lateness, NO_TIME)
        state, out, aside = self._run(msgspec.structs.replace(state, high=high), Batch(frame, before, after))
        return state, out if out.width else nothing, aside

    def _reshaped(self, state: FlowState, rows: pl.DataFrame) -> tuple[FlowState, pl.DataFrame]:
        """What is held, with the types of rows to come; and what goes out, without a row.

        It follows from the columns alone: so when it happens does not depend on the batches.
        """
        frame, _ = self._timed(rows, state.high)
        watermark = self.watermark(state)
        state, nothing, _ = self._run(state, Batch(frame, watermark, watermark, reshaped=True))
        return state, nothing

    def absent(self, state: FlowState) -> str | None:
        """A column that the flow asks for by name, and no row so far has had."""
        absent = self.needs.named - set(state.columns)
        time = self.flow.source.time
        return time if time in absent else min(absent, default=None)

    def check(self, state: FlowState) -> None:
        """Refuse to go on without a column that no row so far has had.

        Raises:
            MissingColumn: There is one.
        """
        name = self.absent(state)
        if name is not None:
            raise MissingColumn(name, f"the flow over {self.flow.source.stream!r}", list(state.columns))

    def finish(self, state: FlowState) -> tuple[FlowState, pl.DataFrame]:
        """Close all that is open, as if time had gone on for ever."""
        state, frame, _ = self._run(state, Batch(pl.DataFrame(), self.watermark(state), END_OF_TIME))
        return state, frame

    def _run(self, state: FlowState, batch: Batch) -> tuple[FlowState, pl.DataFrame, pl.DataFrame | None]:
        operators = list(state.operators)
        late: list[pl.DataFrame] = []
        frame, number = batch.frame, 0
        for stage in self.flow.stages:
            if isinstance(stage, Filter | Select | WithColumns):
                # A frame without columns is what an operator gives when it has nothing to say.
                frame = stage.apply(frame) if frame.width else frame
                continue
            step = stage.step(operators[number], Batch(frame, batch.before, batch.after, batch.reshaped))
            operators[number], frame = step.state, step.frame
            if step.late is not None:
                late.append(step.late.select(visible(step.late)))
            number += 1
        aside = concat(late) if late else None
        state = msgspec.structs.replace(
            state, operators=tuple(operators), late=state.late + (aside.height if aside is not None else 0)
        )
        return state, self._published(frame) if frame.width else frame, aside

    def _published(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows in the order that is promised, whatever the batches, without the hidden columns."""
        if self._unordered:
            frame = ordered(frame)
        return frame.select(visible(frame))

    def _timed(self, rows: pl.DataFrame, high: int) -> tuple[pl.DataFrame, int]:
        """The rows with their time and whether they are late; and the greatest time so far."""
        source = self.flow.source
        name = source.time or "_time"
        if name not in rows.columns:
            raise MissingColumn(name, f"stream({source.stream!r}, time=...)", visible(rows))
        at = micros(name, rows.schema[name])
        if at is None:
            raise FlowError(
                f"column {name!r} of stream {source.stream!r} is {rows.schema[name]}, which is no time",
                hint="Name a column of datetimes, or of ISO 8601 text",
            )
        keep = [n for n in rows.columns if n not in ENVELOPE or n in self._asked or n == SEQUENCE]
        rows = rows.select(*keep, at.cast(pl.Int64).alias(AT))
        known = pl.col(AT).fill_null(NO_TIME)
        if not rows.height:
            return rows.with_columns(pl.lit(False).alias(LATE)), high
        # The running maximum of the rows before: what the watermark is when a row comes.
        reached = pl.max_horizontal(known.cum_max().shift(1, fill_value=high), pl.lit(high, pl.Int64))
        late = pl.col(AT).is_null() | (pl.col(AT) < reached - source.lateness)
        rows = rows.with_columns(late.alias(LATE))
        greatest = rows[AT].max()
        return rows, max(high, greatest) if isinstance(greatest, int) else high


ENVELOPE_TYPES: Columns = {
    "_position": pl.Int64(),
    "_stream": pl.String(),
    "_version": pl.Int64(),
    "_type": pl.String(),
    "_time": pl.Datetime("us", "UTC"),
}
