"""Sequences of rows by patterns in full: the operator of ``match`` for those that `Match` does not know.

Rows are read per key in order of time (ties in order of the log), once the watermark has passed them. What is kept of
a key are its rows from the first that may yet begin a match. In the state, a *barrier* says up to which row a key is
done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec
import polars as pl

from .columns import AT, LATE, SEQUENCE, key_column, names_of, need, tuples, utc
from .conditions import Columns, Trail, Value, reference, split_condition, value_of
from .errors import FlowError, UnsupportedExpression
from .expressions import apply
from .grammar import Program
from .history import Pending
from .keys import unsigned
from .matched import reference_of, references_in
from .seek import KeyRows, Seeker
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .windows import numbered, split_late

_MASK, _ALL, _END = "__mask", "__all", "__end"
_BARRIER = -1
_SPARE = 10_000
"""So many rows may be kept that are done with, where none runs out by its time."""
_NOTHING = KeyRows([], [], [], [])
_NAN = float("nan")

Key = tuple[Any, ...]


class SequencesState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, those of keys that may yet have a part in a match, and what time decides."""

    parts: Parts
    pending: Pending
    held: dict[Key, KeyRows]
    deadlines: dict[Key, int]
    schema: Mapping[str, pl.DataType]
    """The types of the columns that are kept."""
    alive: int = 0
    """How many rows had been kept when what is done with was last left out."""


class Sequences:
    """The operator of a pattern.

    Args:
        keys: The columns that tell keys apart.
        program: The pattern.
        define: For each of its variables, the condition.
        within: The longest time from the first row of a match to its last, in microseconds; None for any.
        relaxed: Rows that fit no variable are passed over.
        measures: What is told of each match.
        skip: Where the next match may begin; see `Seeker`.
    """

    order: ClassVar[Order] = "time"

    def __init__(
        self,
        keys: tuple[str, ...],
        program: Program,
        define: Mapping[str, pl.Expr],
        within: int | None,
        relaxed: bool,
        measures: Mapping[str, pl.Expr],
        skip: tuple[str, int],
    ) -> None:
        self.keys = keys
        self.program = program
        self.within = within
        self.relaxed = relaxed
        self.define = dict(define)
        self.measures = dict(measures)
        columns = Columns()
        alone: list[pl.Expr | None] = []
        back: list[Value | None] = []
        for variable in program.variables:
            row, trail = split_condition(define[variable])
            alone.append(row)
            back.append(None if trail is None else value_of(trail, program.text, program.variables, columns))
        self._alone = tuple(alone)
        self._references: dict[str, Value] = {}
        for name, measure in self.measures.items():
            if ordinary := sorted(set(measure.meta.root_names()) - set(references_in(measure))):
                raise UnsupportedExpression(
                    f"{name}={measure}".replace("\0", ""),
                    "match",
                    f"column {ordinary[0]!r} is of no one row of the match",
                    hint=f"Say which: ms.matched.last('{program.variables[-1]}.{ordinary[0]}')",
                )
            for each in references_in(measure):
                self._references[each] = reference(each, program.text, program.variables, columns)
        self.columns = columns
        self.seeker = Seeker(program, within, tuple(back), *skip)
        self._skip = skip
        self._define = dict(define)

    def __reduce__(self) -> tuple[Any, ...]:
        # What is made of the conditions cannot go to another process; they can.
        given = (self.keys, self.program, self._define, self.within, self.relaxed, self.measures, self._skip)
        return type(self), given

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *names_of(e for e in (*self._alone, *self.columns.expressions) if e is not None)}

    @property
    def shape(self) -> str:
        kind = "relaxed" if self.relaxed else "strict"
        skip = "" if self._skip == ("past", 0) else f" skip {self._skip}"
        kept = ",".join(map(str, self.columns.expressions))
        return f"match [{self.program.text}] within {self.within} {kind}{skip} by {self.keys} keeping [{kept}]"

    def start(self) -> SequencesState:
        return SequencesState(Parts(), Pending(), {}, {}, {})

    def restore(self, parts: Parts, watermark: int) -> SequencesState:
        if self.within is not None:
            parts = parts.expire(watermark - self.within, AT)
        state = msgspec.structs.replace(self.start(), parts=parts)
        if not parts.items:
            return state
        frame = concat(part.frame for part in parts.items)
        state = msgspec.structs.replace(state, schema=dict(frame.schema))
        settled, pending = Pending().add(frame).settle(watermark)
        held: dict[Key, KeyRows] = {}
        deadlines: dict[Key, int] = {}
        if settled is not None:
            for key, rows in self._by_key(settled, {}).items():
                done = max((i for i, mask in enumerate(rows.mask) if mask == _BARRIER), default=-1)
                left = rows.since(done + 1)
                # What can be decided was; a match that is not must not be told twice, so nothing is told here.
                outcome = self.seeker.seek(left, watermark)
                if outcome.deadline is not None:
                    held[key] = left.since(outcome.start)
                    deadlines[key] = outcome.deadline
        alive = sum(len(rows.at) for rows in held.values()) + sum(piece.height for piece in pending.pieces)
        return msgspec.structs.replace(state, pending=pending, held=held, deadlines=deadlines, alive=alive)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, SequencesState)
        if batch.reshaped:
            return self._reshaped(state, batch)
        rows, late = split_late(batch.frame)
        parts, pending, schema = state.parts, state.pending, state.schema
        if rows.height:
            rows = self._masked(rows)
            schema = dict(rows.schema)
        if rows.height:
            pending = pending.add(rows)
            parts = parts.add(rows, pending.lows[-1], pending.highs[-1]).gather()
        settled, pending = pending.settle(batch.after)
        held, deadlines = dict(state.held), dict(state.deadlines)
        touched: dict[Key, KeyRows] = {}
        if settled is not None:
            touched = self._by_key(settled, held)
        for key, deadline in deadlines.items():
            if deadline < batch.after and key not in touched:
                touched[key] = held[key]
        results, barriers = self._sought(touched, batch.after, held, deadlines)
        if barriers:
            frame = self._barriers(barriers, schema)
            low, high = frame[AT].min(), frame[AT].max()
            assert isinstance(low, int)
            assert isinstance(high, int)
            parts = parts.add(frame, low, high).gather()
        alive = state.alive
        if self.within is not None:
            parts = parts.expire(batch.after - self.within)
        elif parts.rows > 2 * alive + _SPARE:
            parts = self._thinned(parts, held, pending)
            alive = parts.rows
        frame = numbered(self._described(results, schema)) if results else pl.DataFrame()
        return Step(SequencesState(parts, pending, held, deadlines, schema, alive), frame, late)

    def _sought(
        self,
        touched: Mapping[Key, KeyRows],
        watermark: int,
        held: dict[Key, KeyRows],
        deadlines: dict[Key, int],
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Search the rows of keys: what was found, and the barriers to set. What is held of them changes."""
        results: list[tuple[Any, ...]] = []
        barriers: list[tuple[Any, ...]] = []
        for key, rows in touched.items():
            outcome = self.seeker.seek(rows, watermark)
            for hit in outcome.hits:
                last = hit.first + len(hit.taken) - 1
                trail = Trail(rows.values)
                trail.start, trail.taken = hit.first, hit.taken
                told = [value(trail, last) for value in self._references.values()]
                results.append((*key, rows.at[hit.first], rows.at[last], len(hit.taken), hit.decided, *told))
            if outcome.hits:  # else whoever seeks anew comes to the same place
                barriers.append((*key, rows.at[outcome.start - 1], rows.sequence[outcome.start - 1]))
            if outcome.deadline is None:
                held.pop(key, None)
                deadlines.pop(key, None)
            else:
                held[key] = rows.since(outcome.start)
                deadlines[key] = outcome.deadline
        return results, barriers

    def _reshaped(self, state: SequencesState, batch: Batch) -> Step:
        rows = self._masked(batch.frame)
        nothing = numbered(self._described([], dict(rows.schema)))
        parts = state.parts.reshaped(rows, lambda held: held)
        if parts is state.parts:
            return Step(msgspec.structs.replace(state, schema=dict(rows.schema)), nothing)
        return Step(self.restore(parts, batch.before), nothing)

    # --- rows in --------------------------------------------------------------------------------------

    def _masked(self, rows: pl.DataFrame) -> pl.DataFrame:
        need(self.keys, rows.columns, "group_by")
        for key in self.keys:
            if rows.schema[key].is_nested():
                raise FlowError(
                    f"column {key!r} is {rows.schema[key]}, which this pattern cannot be grouped by",
                    hint="Group by text or numbers",
                )
        mask = pl.lit(0, pl.Int64)
        for bit, condition in enumerate(self._alone):
            fits = pl.lit(True) if condition is None else condition.fill_null(False)
            mask = mask + fits.cast(pl.Int64) * (1 << bit)
        frame = apply(
            "match",
            rows.columns,
            lambda: rows.select(
                *(pl.col(key).alias(key_column(i)) for i, key in enumerate(self.keys)),
                AT,
                SEQUENCE,
                mask.alias(_MASK),
                *(each.alias(f"__value{i}") for i, each in enumerate(self.columns.expressions)),
            ),
        )
        frame = unsigned(frame, [key_column(i) for i in range(len(self.keys))])
        return frame.filter(pl.col(_MASK) > 0) if self.relaxed else frame

    def _by_key(self, frame: pl.DataFrame, held: Mapping[Key, KeyRows]) -> dict[Key, KeyRows]:
        """Rows by key, in order of time, after those that are held of it."""
        frame = frame.sort([AT, SEQUENCE, _MASK], descending=[False, False, True], maintain_order=True)
        width = len(self.keys)
        floats = any(frame.schema[key_column(i)].is_float() for i in range(width))
        found: dict[Key, KeyRows] = {}
        for row in tuples(frame):
            key = row[:width]
            if floats:
                key = tuple(_NAN if value != value else value for value in key)
            rows = found.get(key)
            if rows is None:
                known = held.get(key, _NOTHING)
                rows = KeyRows(list(known.at), list(known.sequence), list(known.mask), list(known.values))
                found[key] = rows
            rows.at.append(row[width])
            rows.sequence.append(row[width + 1])
            rows.mask.append(row[width + 2])
            rows.values.append(row[width + 3 :])
        return found

    def _barriers(self, barriers: list[tuple[Any, ...]], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
        names = [*(key_column(i) for i in range(len(self.keys))), AT, SEQUENCE]
        frame = pl.DataFrame(barriers, schema={name: schema[name] for name in names}, orient="row")
        rest = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in (*names, _MASK)]
        return frame.with_columns(pl.lit(_BARRIER, pl.Int64).alias(_MASK), *rest).select(list(schema))

    def _thinned(self, parts: Parts, held: Mapping[Key, KeyRows], pending: Pending) -> Parts:
        """Only the rows that may yet have a part in a match: where no time says which."""
        keys = [key_column(i) for i in range(len(self.keys))]
        place = [AT, SEQUENCE]
        frame = concat(part.frame for part in parts.items).with_columns(pl.lit(0).alias(_ALL))
        barriers = frame.filter(pl.col(_MASK) == _BARRIER).sort(place)
        ends = barriers.group_by(_ALL, *keys).agg(pl.struct(place).last().alias(_END))
        at, sequence = (pl.col(_END).struct.field(name) for name in place)
        after = (pl.col(AT) > at) | ((pl.col(AT) == at) & (pl.col(SEQUENCE) > sequence))
        rest = (
            frame.filter(pl.col(_MASK) != _BARRIER)
            .join(ends, on=[_ALL, *keys], how="left", nulls_equal=True, maintain_order="left")
            .filter(pl.col(_END).is_null() | after)
            .drop(_ALL, _END)
        )
        waiting: dict[str, list[int]] = {
            AT: [at for rows in held.values() for at in rows.at],
            SEQUENCE: [number for rows in held.values() for number in rows.sequence],
        }
        schema = {name: rest.schema[name] for name in place}
        places = [pl.DataFrame(waiting, schema=schema), *(piece.select(place) for piece in pending.pieces)]
        # Rows behind a barrier that are not held are done with, too; that some of them stay would do no harm.
        rest = rest.join(pl.concat(places), on=place, how="semi", maintain_order="left")
        emptied = Parts((), parts.next)
        return emptied.add_by(rest, AT) if rest.height else emptied

    # --- matches out ----------------------------------------------------------------------------------

    def _described(self, results: list[tuple[Any, ...]], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
        keys = [key_column(i) for i in range(len(self.keys))]
        types: dict[str, Any] = {name: schema[name] for name in keys}
        types.update(dict.fromkeys(("match_start", "match_end", "events", AT), pl.Int64()))
        types.update({name: self._type_of(name, schema) for name in self._references})
        frame = pl.DataFrame(results, schema=types, orient="row")
        measured = [measure.alias(name) for name, measure in self.measures.items()]
        told = apply("match", [], lambda: frame.with_columns(measured).select(list(self.measures)))
        return frame.select(
            *(pl.col(key_column(i)).alias(key) for i, key in enumerate(self.keys)),
            utc(pl.col("match_start")),
            utc(pl.col("match_end")),
            "events",
            *told.get_columns(),
            AT,
            pl.lit(False).alias(LATE),
            *keys,
        )

    def _type_of(self, name: str, schema: Mapping[str, pl.DataType]) -> pl.DataType:
        """The type of a value of matched rows."""
        found = reference_of(name)
        assert found is not None
        kind, _, column = found
        if kind == "count" or column is None:
            return pl.Int64()
        dtype = schema[f"__value{self.columns.place(pl.col(column))}"]
        if kind == "mean":
            return pl.Float64()
        if kind == "sum":
            if isinstance(dtype, pl.Decimal):
                return pl.Decimal(38, dtype.scale)
            return pl.Int64() if dtype.is_integer() or dtype == pl.Boolean else dtype
        return dtype


def skip_of(skip: str, variables: Iterable[str]) -> tuple[str, int] | None:
    """Where the next match may begin, as `Seeker` has it; None for words that say nothing of it."""
    words = skip.split()
    names = list(variables)
    if words == ["past", "last", "row"]:
        return "past", 0
    if words == ["to", "next", "row"]:
        return "next", 0
    if len(words) == 3 and words[0] == "to" and words[1] in ("first", "last") and words[2] in names:
        return words[1], names.index(words[2])
    return None
