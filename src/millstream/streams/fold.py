"""What a Python function makes of the rows of each key, one after the other, in order of time."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import msgspec
import polars as pl

from .columns import AT, SEQUENCE, key_column, need, ordered, shown, visible
from .distinct import settle
from .errors import FlowError
from .keyed import beside, held_of, marked, newest, put
from .keys import unsigned
from .state import Batch, OperatorState, Order, Parts, Step
from .windows import split_late

TOUCHED, GROUP = "__touched", "__group"

Plain = Callable[[Any], Any]


class FoldState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, and what has been made of each key's rows so far."""

    parts: Parts = Parts()
    waiting: Parts = Parts()
    held: Parts = Parts()


class _Settled(msgspec.Struct, frozen=True, eq=False):
    """A batch on its way in: its rows in time, all that waits, what is settled, in order, and what came late."""

    rows: pl.DataFrame
    waiting: Parts
    settled: pl.DataFrame | None
    late: pl.DataFrame | None


class Remembering(msgspec.Struct, frozen=True, eq=False):
    """An operator whose Python function is shown the rows of a key, and what is held of it."""

    keys: tuple[str, ...]
    types: Mapping[str, pl.DataType]
    """The columns that are held."""
    initial: Mapping[str, Any]
    asks: tuple[str, ...] | None
    """The columns that the function is shown; None for all."""
    forget: int | None
    errors: str | None
    """The column that says why the function failed; without one, its failure is the flow's."""

    order: ClassVar[Order] = "time"

    @property
    def reads(self) -> set[str]:
        """The columns that it reads by name."""
        return {*self.keys, *(self.asks or ())}

    @property
    def _keys(self) -> list[str]:
        return [key_column(i) for i in range(len(self.keys))]

    @property
    def _holds(self) -> str:
        return ", ".join(f"{name} {dtype}" for name, dtype in self.types.items())

    @property
    def _problem(self) -> dict[str, pl.DataType]:
        """The column that says why, if there is one."""
        return {self.errors: pl.String()} if self.errors else {}

    def _settled(self, waiting: Parts, batch: Batch, where: str) -> _Settled:
        """What waits for the watermark with the rows of a batch, which of them are settled, and which came late."""
        rows, late = split_late(batch.frame)
        if rows.height or batch.reshaped:
            rows = marked(rows, self.keys, "group_by")
            need(self.asks or (), rows.columns, where, visible(rows))
        waiting, settled = settle(waiting, rows, batch)
        return _Settled(rows, waiting, None if settled is None else ordered(settled), late)

    def _every(self, *frames: pl.DataFrame) -> pl.DataFrame:
        """Each key of some rows once, with its number."""
        found = pl.concat([frame.select(self._keys) for frame in frames], how="vertical_relaxed")
        return unsigned(found, self._keys).unique(maintain_order=True).with_row_index(GROUP)

    def _numbers(self, rows: pl.DataFrame, every: pl.DataFrame) -> list[int]:
        """The number of each row's key."""
        return beside(rows.select(self._keys), every, self._keys)[GROUP].to_list()

    def _held_by(self, held: Parts, every: pl.DataFrame) -> pl.DataFrame | None:
        """What is held of some keys, with their numbers; None when nothing is held at all."""
        found = held_of(held, every, self._keys)
        if found is None:
            return None
        return beside(found, every, self._keys, how="inner")

    def _remembered(self, held: Parts, watermark: int) -> Parts:
        # Rows to come are not before the watermark, so that a key of before is forgotten for all of them.
        return held if self.forget is None else held.expire(watermark - self.forget + 1)


class Fold(Remembering, frozen=True, eq=False):
    """The operator of ``fold``."""

    function: Callable[[dict[str, Any], dict[str, Any]], Any]

    @property
    def outputs(self) -> list[str]:
        """The columns that it gives."""
        return list(self._made)

    @property
    def _made(self) -> dict[str, pl.DataType]:
        return {**self.types, **self._problem}

    @property
    def shape(self) -> str:
        return f"fold by {self.keys} to {self._holds} forget {self.forget}"

    def start(self) -> FoldState:
        return FoldState()

    def restore(self, parts: Parts, watermark: int) -> FoldState:
        waiting, held = parts.apart(2)
        return self._state(waiting.expire(watermark, AT), self._remembered(held, watermark))

    def _state(self, waiting: Parts, held: Parts) -> FoldState:
        return FoldState(Parts.side_by_side(waiting, held), waiting, held)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, FoldState)
        found = self._settled(state.waiting, batch, "fold")
        rows = found.rows
        if batch.reshaped:
            keys = self._keys
            like = rows.select(*keys, *_empty(self.types), pl.col(AT).alias(TOUCHED))
            held = state.held.reshaped(like, lambda frame: newest(frame, keys)) if state.held.items else state.held
            return Step(self._state(found.waiting, held), rows.with_columns(_empty(self._made)))
        held, out = state.held, pl.DataFrame()
        if found.settled is not None:
            held, out = self._folded(held, found.settled)
        return Step(self._state(found.waiting, self._remembered(held, batch.after)), out, found.late)

    def _folded(self, held: Parts, rows: pl.DataFrame) -> tuple[Parts, pl.DataFrame]:
        """Settled rows, in order, with what has been made of each key's rows up to there."""
        keys, names = self._keys, list(self.types)
        every = self._every(rows)
        groups = self._numbers(rows, every)
        known: list[tuple[int, dict[str, Any]] | None] = [None] * every.height
        found = self._held_by(held, every)
        if found is not None:
            places = found[GROUP].to_list()
            times = found[TOUCHED].to_list()
            for place, at, values in zip(places, times, found.select(names).iter_rows(named=True), strict=True):
                known[place] = (at, values)
        plain = {name: plain_value(dtype) for name, dtype in self.types.items()}
        made: list[tuple[Any, ...]] = []
        for index, (group, at, row) in enumerate(zip(groups, rows[AT], shown(rows, self.asks), strict=True)):
            before = known[group]
            if before is None or (self.forget is not None and at - before[0] >= self.forget):
                before = (at, {name: plain[name](value) for name, value in self.initial.items()})
            problem = None
            # The function may change what it is given, and fail then.
            held_before = {name: plain[name](value) for name, value in before[1].items()} if self.errors else before[1]
            try:
                given = self.function(before[1], row)
                got = given if isinstance(given, Mapping) else {names[0]: given} if len(names) == 1 else dict(given)
                check_held(got, self.types)
                values = {name: plain[name](got[name]) for name in names}
            except Exception as error:
                values, problem = held_before, traceback.format_exc()
                if self.errors is None:
                    raise FlowError(
                        f"the function of fold fails for the row at position {rows[SEQUENCE][index]}"
                        f" ({type(error).__name__}: {error})",
                        hint="Make it take every row, and give all columns that schema= names, of their types; or say"
                        " errors='problem', and a column says which failed, and why",
                    ) from error
            known[group] = (at, values)
            # A copy, since the function may change what it is given.
            told = (problem,) if self.errors else ()
            made.append((*(plain[name](value) for name, value in values.items()), *told))
        columns = columns_of(made, self._made)
        rows = rows.with_columns(columns.get_columns())
        last = newest(rows.select(*keys, *names, pl.col(AT).alias(TOUCHED)), keys)
        return put(held, last, keys, TOUCHED), rows


def check_held(given: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """See that nothing is to be held that has no column: it would be forgotten without a word.

    Raises:
        KeyError: Something is.
    """
    for name in given:
        if name not in types:
            raise KeyError(f"schema= names no {name!r}")


def _empty(types: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    return [pl.lit(None, dtype).alias(name) for name, dtype in types.items()]


def columns_of(
    rows: Sequence[tuple[Any, ...]], types: Mapping[str, pl.DataType], where: str = "fold", said: str = "schema="
) -> pl.DataFrame:
    """Values as columns.

    Raises:
        FlowError: A value does not fit its column.
    """
    try:
        return pl.DataFrame(rows, schema=dict(types), orient="row", strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise FlowError(
            f"what the function of {where} gave is not as {said} says: {str(error).splitlines()[0]}",
            hint="Name the type that all its values have",
        ) from error


def plain_value(dtype: pl.DataType) -> Plain:
    """What makes of a value the very value that comes back from a column of this type.

    A value that is kept for the next row and one that was put away and taken up again then are the same, so that
    what comes of them does not depend on where a batch ended.

    Raises:
        FlowError: Values of the type do not come back as they were.
    """
    inner = _plain_value(dtype)
    return lambda value: None if value is None else inner(value)


def _plain_value(dtype: pl.DataType) -> Plain:
    if dtype.is_integer():
        return _whole
    if dtype == pl.Float64:
        return _number
    for kind, wanted in ((pl.String, str), (pl.Boolean, bool), (pl.Binary, bytes), (pl.Date, date)):
        if dtype == kind:
            return lambda value: _exactly(value, wanted)
    if isinstance(dtype, pl.Duration) and dtype.time_unit == "us":
        return lambda value: _exactly(value, timedelta)
    if isinstance(dtype, pl.Datetime) and dtype.time_unit == "us":
        zone = None if dtype.time_zone is None else ZoneInfo(dtype.time_zone)
        return lambda value: _moment(value, zone)
    if isinstance(dtype, pl.List):
        each = plain_value(dtype.inner)  # type: ignore[arg-type]
        return lambda value: [each(item) for item in value]
    if isinstance(dtype, pl.Struct):
        fields = {field.name: plain_value(field.dtype) for field in dtype.fields}  # type: ignore[arg-type]
        return lambda value: {name: convert(value[name]) for name, convert in fields.items()}
    raise FlowError(
        f"a fold cannot keep values of type {dtype}",
        hint="Cast to an integer, Float64, String, Boolean, Binary, Date, Datetime('us'), Duration('us'), List, Struct",
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("True and False are no numbers")
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _exactly(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _moment(value: Any, zone: ZoneInfo | None) -> datetime:
    if not isinstance(value, datetime) or (value.tzinfo is None) != (zone is None):
        raise TypeError(f"{value!r} is no datetime {'without' if zone is None else 'with'} a time zone")
    return value if zone is None else value.astimezone(zone)
