"""Windows whose results may come before they are final, and be corrected afterwards.

Time is cut into ticks. When the watermark passes one, each window in which a row has come since the one before gives
its result anew: ``early`` while it is open, ``corrected`` when it had closed. A row belongs to the tick that the
watermark stood in before it, which the log decides; so what is given does not depend on the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from .closing import Closing, is_much
from .columns import AT, END_OF_TIME, LATE, NO_TIME, SEQUENCE, names_of, need
from .errors import FlowError
from .keyed import among
from .keys import Ints, unsigned
from .lanes import hashes_of, lanes_of
from .latest import Latest
from .shaping import Filter, Mapped, Rowwise, Select, WithColumns
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .windows import PANE, WINDOW, PaneWindows, numbered

STATUS = "status"


class RevisingState(msgspec.Struct, frozen=True, eq=False):
    """Partials per pane and key: of the ticks that are over, and of the one at hand."""

    parts: Parts = Parts()
    settled: Parts = Parts()
    fresh: Parts = Parts()


class RevisingWindows(msgspec.Struct, frozen=True, eq=False):
    """The operator of tumbling and hopping windows with early results, or with an allowed lateness."""

    windows: PaneWindows
    tick: int
    early: bool
    allowed: int

    order: ClassVar[Order] = "time"
    timed: ClassVar[bool] = True
    """It looks at how the watermark moves through a batch."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The key columns."""
        return self.windows.keys

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return self.windows.reads

    @property
    def shape(self) -> str:
        early = " early" if self.early else ""
        return f"{self.windows.shape} each {self.tick}{early} allowed {self.allowed}"

    def start(self) -> RevisingState:
        return RevisingState()

    def restore(self, parts: Parts, watermark: int) -> RevisingState:
        settled, fresh = parts.apart(2)
        reached = self._reached(watermark)
        if reached is not None:
            settled = settled.expire(self._limit(reached), PANE)
        return _state(settled, fresh)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, RevisingState)
        if batch.reshaped:
            like = self.windows.partials(batch.frame)
            settled, fresh = (each.reshaped(like, self.windows.merge) for each in (state.settled, state.fresh))
            return Step(_state(settled, fresh), self._said(self.windows.nothing(like), "final"))
        rows, marks, late = self._accepted(batch)
        settled, fresh, found = self._through(state.settled, state.fresh, rows, marks, batch)
        return Step(_state(settled, fresh), found, late)

    def closing(self, state: OperatorState, batch: Batch) -> Closing | None:
        """The same, when what is told is too much for one frame."""
        assert isinstance(state, RevisingState)
        if batch.reshaped or not self._tells_much(state, batch):
            return None
        rows, marks, late = self._accepted(batch)
        settled, fresh = state.settled.in_lanes(self.keys), state.fresh.in_lanes(self.keys)
        beside = self._by_lane(rows, marks)
        left: list[tuple[Parts, Parts]] = []

        def results() -> Iterator[pl.DataFrame]:
            for lane in sorted({*settled, *fresh, *beside}):
                before = settled.get(lane, Parts((), state.settled.next)), fresh.get(lane, Parts((), state.fresh.next))
                *after, found = self._through(*before, *beside.get(lane, (rows.clear(), marks[:0])), batch)
                left.append((after[0], after[1]))
                yield found

        def afterwards() -> RevisingState:
            return _state(
                state.settled.joined((each for each, _ in left), self.keys),
                state.fresh.joined((each for _, each in left), self.keys),
            )

        return Closing(results(), afterwards, late)

    def _tells_much(self, state: RevisingState, batch: Batch) -> bool:
        """Whether ticks pass, and what they settle or close should not be in memory together."""
        now, to = self._reached(batch.before), self._reached(batch.after)
        if to is None or now == to:
            return False
        closes = self.windows.closes_much(state.settled, NO_TIME if now is None else now * self.tick, to * self.tick)
        return closes or is_much(state.fresh, END_OF_TIME)

    def _through(
        self, settled: Parts, fresh: Parts, rows: pl.DataFrame, marks: Ints, batch: Batch
    ) -> tuple[Parts, Parts, pl.DataFrame]:
        """The state after these rows of a batch and the ticks that pass in it, and what is given."""
        now, out = self._reached(batch.before), list[pl.DataFrame]()
        first = self._first(batch) if now is None else None
        for tick, part in (*self._by_tick(rows, marks), (self._reached(batch.after), None)):
            # What closes at the first tick that there ever is is final without the rows that come then.
            for to in (first, tick) if now is None and tick is not None else (tick,):
                settled, fresh, now = self._on(settled, fresh, now, to, out)
            if part is not None:
                fresh = fresh.add_by(self.windows.partials(part), PANE).compact(self.windows.merge, by=self.keys)
        return settled, fresh, concat(out) if out else pl.DataFrame()

    def _reached(self, watermark: int) -> int | None:
        """The number of ticks that a watermark has passed."""
        return None if watermark == NO_TIME else watermark // self.tick

    def _first(self, batch: Batch) -> int | None:
        """The tick of the first watermark that there ever is, if it comes in a batch: rows that do not come here, and
        what says that a source is silent, may have moved it on by the end of the batch."""
        assert batch.timeline is not None
        marks = batch.timeline.watermarks
        some = marks[marks > NO_TIME]
        return self._reached(int(some[0])) if len(some) else None

    def _limit(self, tick: int) -> int:
        """The first pane that may still be asked for."""
        return self.windows.limit(tick * self.tick - self.allowed)

    def _accepted(self, batch: Batch) -> tuple[pl.DataFrame, Ints, pl.DataFrame | None]:
        """The rows that count, the watermark before each of them, and the rows that are too late."""
        rows, timeline = batch.frame, batch.timeline
        assert timeline is not None
        if not rows.height:
            return rows, np.zeros(0, np.int64), None
        marks = timeline.before_positions(rows[SEQUENCE].to_numpy())
        if not rows[LATE].any():
            return rows, marks, None
        counts = (~rows[LATE] | (rows[AT] >= pl.Series(marks) - self.allowed)).fill_null(False)
        if counts.all():
            return rows, marks, None
        return rows.filter(counts), marks[counts.to_numpy()], rows.filter(~counts)

    def _by_tick(self, rows: pl.DataFrame, marks: Ints) -> Iterator[tuple[int | None, pl.DataFrame]]:
        """The rows, by the tick that the watermark stood in before them; None before it was anywhere."""
        ticks = np.where(marks == NO_TIME, NO_TIME, marks // self.tick)
        bounds = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(ticks)]
        for begin, end in pairwise(bounds):
            if begin < end:
                tick = int(ticks[begin])
                yield (None if tick == NO_TIME else tick), rows.slice(begin, end - begin)

    def _by_lane(self, rows: pl.DataFrame, marks: Ints) -> dict[int, tuple[pl.DataFrame, Ints]]:
        """The rows of each lane, and the watermark before each of them."""
        if not rows.height:
            return {}
        need(self.keys, rows.columns, "group_by")
        hashes = hashes_of(unsigned(rows, self.keys), self.keys)
        assert hashes is not None, "what has lanes has hashes"
        lanes = lanes_of(hashes)
        mine = {lane: np.flatnonzero(lanes == lane) for lane in np.unique(lanes).tolist()}
        return {lane: (rows[places], marks[places]) for lane, places in mine.items()}

    def _on(
        self, settled: Parts, fresh: Parts, now: int | None, to: int | None, out: list[pl.DataFrame]
    ) -> tuple[Parts, Parts, int | None]:
        """Let time go on to a tick; adds to what is given."""
        if to is None or (now is not None and to <= now):
            return settled, fresh, now
        closed_before = NO_TIME if now is None else now * self.tick
        if fresh.items:
            # Before the first watermark no time has passed: what came then is told as soon as there is one.
            tick = to if now is None else now + 1
            settled = self._revise(settled, fresh, closed_before, tick * self.tick, out)
            fresh, now = Parts((), fresh.next), tick
            closed_before = tick * self.tick
        closed = self.windows.closed(settled, closed_before, to * self.tick)
        if closed.height:
            out.append(self._said(closed, "final"))
        return settled.expire(self._limit(to), PANE), fresh, to

    def _revise(self, settled: Parts, fresh: Parts, before: int, at: int, out: list[pl.DataFrame]) -> Parts:
        """Give the results that a tick brings: of windows that close, and of those in which rows have come."""
        windows = self.windows
        came = windows.merge(concat(part.frame for part in fresh.items))
        known = settled
        settled = settled.add_by(came, PANE).compact(windows.merge, by=windows.keys)
        found = [self._said(windows.closed(settled, before, at), "final")]
        asked: list[tuple[str, Callable[[pl.Expr], pl.Expr]]] = [
            ("corrected", lambda window: windows.end(window) <= before)
        ]
        if self.early:
            asked.append(("early", lambda window: windows.end(window) > at))
        by = [WINDOW, *windows.keys]
        for status, wanted in asked:
            touched = windows.spread(came, wanted).select(by).unique()
            if not touched.height:
                continue
            near = concat(among(settled, touched, windows.keys))
            numbers = touched[WINDOW].unique().to_list()
            held = windows.spread(near, partial(pl.Expr.is_in, other=numbers))
            again = held.join(touched, on=by, how="semi", nulls_equal=True)
            if status == "corrected":
                # Of a window that had no row in time there is nothing to correct: this is its first result.
                told = (
                    windows.spread(concat(among(known, touched, windows.keys)), wanted)
                    if known.items
                    else touched.clear()
                )
                told = told.select(by).unique()
                new = again.join(told, on=by, how="anti", nulls_equal=True)
                found.append(self._said(windows.revised(new, at - 1), "final"))
                again = again.join(told, on=by, how="semi", nulls_equal=True)
            found.append(self._said(windows.revised(again, at - 1), status))
        found = [frame for frame in found if frame.height]
        if found:
            out.append(numbered(concat(found)))
        return settled

    def _said(self, frame: pl.DataFrame, status: str) -> pl.DataFrame:
        if not frame.width:
            return frame
        place = frame.columns.index("window_end") + 1
        return frame.insert_column(place, pl.lit(status).alias(STATUS))


def check_follows(stages: Sequence[object], stage: object) -> None:
    """Refuse a stage that would take results that may still change for final ones.

    Raises:
        FlowError: It is one.
    """
    revising = next((each for each in stages if isinstance(each, RevisingWindows)), None)
    if revising is None or isinstance(stage, Latest):
        return
    steady = {*revising.windows.keys, "window_start", "window_end", STATUS}
    for each in stages[stages.index(revising) + 1 :]:
        steady = _unchanged(steady, each)
    if isinstance(stage, Filter):
        odd = names_of([stage.condition]) - steady
        if not odd:
            return
        raise FlowError(
            f"a filter by {', '.join(sorted(odd))}: a window's later result may fail what an earlier one has met",
            hint="Filter by the keys and the window alone, or where the results are read",
        )
    if not isinstance(stage, Rowwise):
        raise FlowError(
            f"{type(stage).__name__.lower()} after results that may be corrected: what it has made of one stands",
            hint="Leave early= and allowed_lateness= out of the window, or end the flow with to() and latest() alone",
        )


def _unchanged(steady: set[str], stage: object) -> set[str]:
    """Those columns that a stage leaves as they are, of some."""
    if isinstance(stage, Mapped):
        return steady - set(stage.outputs)
    if not isinstance(stage, WithColumns | Select):
        return steady
    kept, made = set(), set()
    for expression in stage.expressions:
        plain = {name for name in steady if expression.meta.eq(pl.col(name))}
        kept |= plain
        if not plain:
            many = expression.meta.has_multiple_outputs()
            made |= steady if many else {expression.meta.output_name()}
    return kept if isinstance(stage, Select) else steady - made


def refuse_revised(stages: Sequence[object]) -> None:
    """Refuse to let results that may still change meet other flows."""
    if any(isinstance(each, RevisingWindows) for each in stages):
        raise FlowError(
            "results that may be corrected cannot meet other flows: what comes of one stands",
            hint="Leave early= and allowed_lateness= out of the window",
        )


def _state(settled: Parts, fresh: Parts) -> RevisingState:
    return RevisingState(Parts.side_by_side(settled, fresh), settled, fresh)
