"""Python functions called for each row of a key and whenever a time that they have set comes, with what is held of it.

The time of timers is that of the events: a timer rings once the watermark has passed it, after all rows of its key up
to that time. So what comes out follows from the log alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import polars as pl

from ..errors import MillstreamError
from ..time import Duration, Moment, duration_micros, from_micros, to_micros
from .columns import AT, END_OF_TIME, LATE, SEQUENCE, shown, tuples, utc
from .errors import FlowError
from .fold import GROUP, TOUCHED, Remembering, check_held, columns_of, plain_value
from .keyed import newest
from .state import Batch, OperatorState, Parts, Step
from .windows import numbered

TIME = "time"
"""The output column with the time of the row, or of the timer, for which a row was given."""

_TIMERS, _GONE = "__timers", "__gone"
_TIMERS_TYPE = pl.List(pl.Struct({"name": pl.String(), "at": pl.Int64()}))
_EARLIEST, _LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The first and the last moment that a datetime can be, microseconds since 1970."""

Coming = tuple[int, int, dict[str, Any]]
"""A row on its way to the function: its time, its place, its columns."""


class KeyContext:
    """What a function of `Grouped.process` is given: what is held of a key, its timers, and where its rows go.

    Attributes:
        key: The key's columns, by name.
        time: The event time of the row, or of the timer that rings, in UTC.
        held: What is held of the key, by the names of ``schema=`` (another name is refused): change it in place, or put
            another dict there.
    """

    __slots__ = ("_given", "_gone", "_micros", "_timers", "held", "key", "time")

    def __init__(self, key: dict[str, Any], held: dict[str, Any], timers: dict[str, int], micros: int) -> None:
        self.key = key
        self.held = held
        self.time: datetime = from_micros(min(max(micros, _EARLIEST), _LATEST))
        self._micros = micros
        self._timers = timers
        self._given: list[dict[str, Any]] = []
        self._gone = False

    @property
    def timers(self) -> dict[str, datetime]:
        """The timers of the key that have not rung, by name."""
        return {name: from_micros(at) for name, at in self._timers.items()}

    def timer(self, at: Moment | None = None, *, after: Duration | None = None, name: str = "") -> None:
        """Have ``on_timer`` called for this key once event time has passed a moment.

        A key has one timer of a name: setting it again moves it. One that is set for a time that has gone by rings at
        once, after the rows of the same time.

        Args:
            at: When, with its time zone. Or give ``after``.
            after: How long from `time` on, such as ``"15m"``.
            name: Tells several timers of a key apart.
        """
        if (at is None) == (after is None) or not isinstance(name, str):
            raise FlowError(
                "a timer is set at a time, or after one", hint="Give at= or after=, and a name that is text"
            )
        micros = to_micros(at) if at is not None else self._micros + duration_micros(after or "0s")
        if micros > _LATEST:
            raise FlowError("a timer is set behind the year 9999", hint="Give it an earlier time")
        self._timers[name] = max(micros, self._micros)

    def cancel(self, name: str = "") -> None:
        """Take back a timer; nothing happens when none is set."""
        self._timers.pop(name, None)

    def give(self, **row: Any) -> None:
        """Give a row, with the columns that ``gives=`` names; those that are left out are null."""
        self._given.append(row)

    def forget(self) -> None:
        """Drop what is held of the key, and its timers: with its next row it begins anew."""
        self._gone = True


class ProcessState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, what is held of each key, and when keys have timers."""

    parts: Parts = Parts()
    waiting: Parts = Parts()
    held: Parts = Parts()
    due: Parts = Parts()


class _Known(msgspec.Struct):
    """What is held of one key while its rows and timers are gone through."""

    touched: int
    values: dict[str, Any]
    timers: dict[str, int]
    gone: bool = False


class Processed(Remembering, frozen=True, eq=False):
    """The operator of ``process``."""

    on_row: Callable[[KeyContext, dict[str, Any]], object]
    on_timer: Callable[[KeyContext, str], object] | None
    gives: Mapping[str, pl.DataType]

    @property
    def shape(self) -> str:
        return f"process by {self.keys} holding {self._holds} forget {self.forget}"

    def start(self) -> ProcessState:
        return ProcessState()

    def restore(self, parts: Parts, watermark: int) -> ProcessState:
        waiting, held, due = parts.apart(3)
        return self._state(waiting.expire(watermark, AT), self._remembered(held, watermark), due.expire(watermark, AT))

    def _state(self, waiting: Parts, held: Parts, due: Parts) -> ProcessState:
        return ProcessState(Parts.side_by_side(waiting, held, due), waiting, held, due)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, ProcessState)
        found = self._settled(state.waiting, batch, "process")
        if batch.reshaped:
            return self._reshaped(state, found.waiting, found.rows)
        ringing = self._ringing(state.due, batch)
        held, due, out = state.held, state.due.expire(batch.after, AT), pl.DataFrame()
        if found.settled is not None or ringing is not None:
            held, due, out = self._gone_through(held, due, found.settled, ringing, batch.after)
        return Step(self._state(found.waiting, self._remembered(held, batch.after), due), out, found.late)

    def _reshaped(self, state: ProcessState, waiting: Parts, rows: pl.DataFrame) -> Step:
        keys = self._keys
        held, due = state.held, state.due
        if held.items:
            empty = [pl.lit(None, dtype).alias(name) for name, dtype in self._held_types.items()]
            held = held.reshaped(rows.select(*keys, *empty), lambda frame: newest(frame, keys))
        if due.items:
            due = due.reshaped(rows.select(*keys, AT), _once)
        return Step(self._state(waiting, held, due), self._given([], rows))

    @property
    def _held_types(self) -> dict[str, pl.DataType]:
        beside = {_TIMERS: _TIMERS_TYPE, _GONE: pl.Boolean(), TOUCHED: pl.Int64()}
        return {**self.types, **beside}

    def _ringing(self, due: Parts, batch: Batch) -> pl.DataFrame | None:
        """The keys that may have a timer that rings in a batch."""
        frames = [
            part.frame.filter(pl.col(AT).is_between(batch.before, batch.after - 1)).select(self._keys)
            for part in due.items
            if part.low < batch.after
        ]
        frames = [frame for frame in frames if frame.height]
        return pl.concat(frames, how="vertical_relaxed") if frames else None

    def _gone_through(
        self, held: Parts, due: Parts, rows: pl.DataFrame | None, ringing: pl.DataFrame | None, until: int
    ) -> tuple[Parts, Parts, pl.DataFrame]:
        """All rows that are settled and all timers up to the watermark; what is held then, and what was given."""
        keys = self._keys
        every = self._every(*(frame for frame in (rows, ringing) if frame is not None))
        known = self._known(held, every)
        calls = _Calls(self, until)
        named = [dict(zip(self.keys, values, strict=True)) for values in tuples(every.select(keys))]
        for group, rows_of_key in enumerate(self._coming(rows, every)):
            known[group] = calls.of_key(named[group], known[group], rows_of_key, group)
        kept = self._kept(known, every)
        if kept.height:
            held = held.add_by(kept, TOUCHED)
        # Keys that were forgotten only hide what is older.
        alive = ~pl.col(_GONE)
        held = held.compact(lambda frame: newest(frame, keys), by=keys, oldest=lambda frame: frame.filter(alive))
        timers = (
            kept.filter(~pl.col(_GONE))
            .select(*keys, pl.col(_TIMERS).list.eval(pl.element().struct.field("at")).alias(AT))
            .explode(AT)
            .drop_nulls(AT)
        )
        if timers.height:
            due = due.add_by(_once(timers), AT).compact(_once, by=keys)
        return held, due, self._given(calls.given, every)

    def _known(self, held: Parts, every: pl.DataFrame) -> list[_Known | None]:
        """What is held of some keys."""
        names = list(self.types)
        known: list[_Known | None] = [None] * every.height
        found = self._held_by(held, every)
        if found is None:
            return known
        found = found.filter(~pl.col(_GONE))
        places, touched, timers = (found[name].to_list() for name in (GROUP, TOUCHED, _TIMERS))
        values = list(found.select(names).iter_rows(named=True)) if names else [{} for _ in places]
        for place, at, each, pending in zip(places, touched, values, timers, strict=True):
            known[place] = _Known(at, each, {timer["name"]: timer["at"] for timer in pending})
        return known

    def _coming(self, rows: pl.DataFrame | None, every: pl.DataFrame) -> list[list[Coming]]:
        """The rows of each key, with their times and places, in order."""
        coming: list[list[Coming]] = [[] for _ in range(every.height)]
        if rows is None:
            return coming
        groups = self._numbers(rows, every)
        for group, at, place, row in zip(groups, rows[AT], rows[SEQUENCE], shown(rows, self.asks), strict=True):
            coming[group].append((at, place, row))
        return coming

    # --- frames ---------------------------------------------------------------------------------------

    def _kept(self, known: list[_Known | None], every: pl.DataFrame) -> pl.DataFrame:
        """What is held of the keys, as rows of the state."""
        places = [place for place, each in enumerate(known) if each is not None]
        kept = [each for each in known if each is not None]
        rows = [
            (
                *each.values.values(),
                [{"name": name, "at": at} for name, at in each.timers.items()],
                each.gone,
                each.touched,
            )
            for each in kept
        ]
        columns = columns_of(rows, self._held_types, "process")
        return every[places].select(self._keys).hstack(columns.get_columns())

    def _given(self, given: list[tuple[int, int, dict[str, Any]]], every: pl.DataFrame) -> pl.DataFrame:
        """Rows that were given, in the order of time, key, and giving."""
        types = {**self.gives, **self._problem}
        columns = columns_of(
            [tuple(row.get(name) for name in types) for _, _, row in given], types, "process", "gives="
        )
        keys = every[[group for _, group, _ in given]].select(self._keys)
        at = pl.Series(AT, [at for at, _, _ in given], dtype=pl.Int64)
        beside = [pl.lit(False).alias(LATE), *(pl.col(each) for each in self._keys)]
        frame = keys.hstack([at, *columns.get_columns()])
        keyed = [pl.col(hidden).alias(name) for hidden, name in zip(self._keys, self.keys, strict=True)]
        return numbered(frame.select(*keyed, utc(pl.col(AT)).alias(TIME), *types, AT, *beside))


class _Calls:
    """The calls of the functions of one batch, key by key, and the rows that they give."""

    def __init__(self, stage: Processed, until: int) -> None:
        self._stage = stage
        self._until = until
        self._plain = {name: plain_value(dtype) for name, dtype in stage.types.items()}
        self._giving = {name: plain_value(dtype) for name, dtype in stage.gives.items()}
        self.given: list[tuple[int, int, dict[str, Any]]] = []
        """Time, number of the key, and row."""

    def of_key(self, key: dict[str, Any], known: _Known | None, rows: Sequence[Coming], group: int) -> _Known | None:
        """Rows and timers of one key in order of time: at one time the rows first, then timers by name."""
        index = 0
        while True:
            name, rings = _next(known, self._until)
            if index < len(rows) and (name is None or rows[index][0] <= rings):
                at, place, row = rows[index]
                index += 1
                if known is None or known.gone or not self._lives(known, at):
                    known = _Known(at if known is None else max(known.touched, at), self._first(), {})
                context = KeyContext(dict(key), known.values, dict(known.timers), at)
                self._call(self._stage.on_row, context, row, place)
            elif known is None or name is None:
                return known
            else:
                context = self._ring(key, known, name, rings)
            self._settle(known, context, group)

    def _ring(self, key: dict[str, Any], known: _Known, name: str, at: int) -> KeyContext:
        del known.timers[name]
        pending = known.timers
        context = KeyContext(dict(key), known.values, dict(pending), at)
        assert self._stage.on_timer is not None
        self._call(self._stage.on_timer, context, name)
        if any(when <= at and pending.get(each) != when for each, when in context._timers.items()):
            raise FlowError(
                f"{_told(context, name)} sets one for no later time", hint="Set it for after the one that rings"
            )
        if self._until >= END_OF_TIME:
            # At the end of all time what was set rings, and what that sets is left: it might go on for ever.
            context._timers = {each: when for each, when in context._timers.items() if pending.get(each) == when}
        return context

    def _lives(self, known: _Known, at: int) -> bool:
        return self._stage.forget is None or at - known.touched < self._stage.forget

    def _first(self) -> dict[str, Any]:
        return self._copied(self._stage.initial)

    def _call(
        self, function: Callable[[KeyContext, Any], object], context: KeyContext, given: Any, place: int | None = None
    ) -> None:
        stage = self._stage
        # The function may change what is held, and fail then.
        before = (self._copied(context.held), dict(context._timers)) if stage.errors else None
        try:
            function(context, given)
            if not context._gone:
                check_held(context.held, stage.types)
                context.held = self._copied(context.held)
            for row in context._given:
                if not row.keys() <= stage.gives.keys():
                    raise KeyError(f"gives= names no {min(row.keys() - stage.gives.keys())!r}")
                row.update({name: plain(row.get(name)) for name, plain in self._giving.items()})
        except Exception as error:
            if before is not None:
                context.held, context._timers = before
                context._gone, context._given = False, [{str(stage.errors): traceback.format_exc()}]
                return
            if isinstance(error, MillstreamError):
                raise
            raise FlowError(
                f"the function of process fails for {_told(context, given, place)} ({type(error).__name__}: {error})",
                hint="Make it take every row and timer, and leave in held what schema= names, of their types; or say"
                " errors='problem', and a row says which failed, and why",
            ) from error
        if context._timers and stage.on_timer is None:
            raise FlowError(
                f"{_told(context, given, place)} sets a timer, and nothing takes it", hint="Give process on_timer="
            )

    def _copied(self, held: Mapping[str, Any]) -> dict[str, Any]:
        return {name: plain(held[name]) for name, plain in self._plain.items()}

    def _settle(self, known: _Known, context: KeyContext, group: int) -> None:
        self.given += [(context._micros, group, row) for row in context._given]
        known.timers = context._timers
        # Never less than before: of two rows of a key in the state, the newer must not run out first.
        known.touched = max([known.touched, context._micros, *known.timers.values()])
        known.gone = context._gone
        known.values = context.held
        if context._gone:
            known.values, known.timers = self._first(), {}


def _told(context: KeyContext, given: Any, place: int | None = None) -> str:
    if place is not None:
        return f"the row at position {place}"
    return f"timer {given!r} of {context.key} at {context.time.isoformat()}"


def _next(known: _Known | None, until: int) -> tuple[str | None, int]:
    """The timer of a key that rings next, if one does before a time."""
    if known is None or not known.timers:
        return None, 0
    at, name = min((at, name) for name, at in known.timers.items())
    return (name, at) if at < until else (None, 0)


def _once(timers: pl.DataFrame) -> pl.DataFrame:
    return timers.unique(maintain_order=True)
