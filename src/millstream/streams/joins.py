"""Joins of two flows by key and time: pairs within an interval, and the last row of the other side as of a time.

Rows take part once the watermark of both sides has passed them, so what comes out is final and in order of time. Null
is no key here: as in SQL it equals nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec
import numpy as np
import polars as pl

from ..errors import UsageError
from ..frames import Columns
from ..log.objects import fitted, union
from .columns import AT, GONE, ID, LATE, OTHER, SEQUENCE, followed, key_column, names_of, need, visible
from .errors import FlowError
from .expressions import apply
from .keyed import among, beside
from .keys import Ints
from .merging import relate
from .state import Batch, OperatorState, Order, Parts, Step, concat, widened

if TYPE_CHECKING:
    from .flow import Flow

How = Literal["inner", "left", "full", "semi", "anti"]

Strategy = Literal["backward", "forward", "nearest"]


class JoinState(msgspec.Struct, frozen=True, eq=False):
    """The rows of both sides that may yet be needed, and their columns."""

    parts: Parts = Parts()
    left: Parts = Parts()
    right: Parts = Parts()
    columns: tuple[Columns, Columns] = ({}, {})


class Join(msgspec.Struct, frozen=True, eq=False):
    """What both joins share: two inputs, the keys, and what is kept of each side."""

    inputs: tuple[Flow, Flow]
    on: tuple[str, ...]
    how: How
    prefix: str

    order: ClassVar[Order] = "time"

    @property
    def gives(self) -> tuple[str, ...]:
        return ()

    def heeds(self, number: int) -> bool:
        return True

    def reads(self, number: int) -> set[str]:
        return set(self.on)

    def whole(self, number: int) -> bool:
        return number == 0 or self.how not in ("semi", "anti")

    def origin(self, name: str, number: int) -> str | None:
        if name in self.on or number == 0:
            return name
        if self.how in ("semi", "anti") or not name.startswith(self.prefix):
            return None
        return name[len(self.prefix) :]

    def start(self) -> JoinState:
        return JoinState()

    def limits(self, watermark: int) -> tuple[int, int]:
        """The least time of rows of each side that may yet be needed."""
        raise NotImplementedError

    def restore(self, parts: Parts, watermark: int) -> JoinState:
        left, right = parts.apart(2)
        low, other = self.limits(watermark)
        return self._state(left.expire(low, AT), right.expire(other, AT), ({}, {}))

    def _state(self, left: Parts, right: Parts, columns: tuple[Columns, Columns]) -> JoinState:
        return JoinState(Parts.side_by_side(left, right), left, right, columns)

    def meet(self, state: OperatorState, batches: Sequence[Batch], joint: Batch) -> Step:
        assert isinstance(state, JoinState)
        frames = [self._prepared(number, batch.frame) for number, batch in enumerate(batches)]
        if joint.reshaped:
            columns = (dict(frames[0].schema), dict(frames[1].schema))
            left = state.left.reshaped(frames[0], lambda held: held) if state.left.items else state.left
            right = state.right.reshaped(frames[1], lambda held: held) if state.right.items else state.right
            nothing = self._joined(frames[0], frames[1], _NONE, _NONE, _NONE)
            return Step(self._state(left, right, columns), nothing)
        sides, late = [state.left, state.right], []
        for number, frame in enumerate(frames):
            if not frame.height:
                continue
            frame = fitted(frame, state.columns[number])
            if not self.inputs[number]._ordered:
                frame = relate(frame, joint.timeline)
                aside = frame.filter(LATE)
                if aside.height:
                    late.append(aside)
                    frame = frame.filter(~pl.col(LATE))
            if frame.height:
                sides[number] = sides[number].add_by(frame, AT)
        sides = [self._compacted(number, side, joint.before) for number, side in enumerate(sides)]
        lefts, rights = (
            concat(frames) if frames else pl.DataFrame(schema=columns)
            for frames, columns in zip(self._near(sides, joint), state.columns, strict=True)
        )
        out = self._pairs(lefts, rights, joint.before, joint.after)
        low, other = self.limits(joint.after)
        state = self._state(sides[0].expire(low), sides[1].expire(other), state.columns)
        return Step(state, out, widened(late) if late else None)

    def delays(self, number: int) -> tuple[int, ...] | None:
        """How long after the time of a row of a side something is decided about it, and of its key with it; None where
        that says nothing."""
        return None

    def _near(self, sides: Sequence[Parts], joint: Batch) -> list[list[pl.DataFrame]]:
        """The settled rows of both sides that matter to a step: those of the keys of which it decides something."""
        delays = [self.delays(number) for number in range(2)]
        settled = pl.col(AT) < joint.after
        if not self.on or any(each is None for each in delays):
            return [[part.frame.filter(settled) for part in side.items] for side in sides]
        asked = []
        for side, after in zip(sides, delays, strict=True):
            for delay in after or ():
                low, high = joint.before - delay, joint.after - delay
                rows = pl.col(AT).is_between(low, high, closed="left")
                asked += [
                    part.frame.filter(rows).select(self.on)
                    for part in side.items
                    if part.low < high and part.high >= low
                ]
        if not any(frame.height for frame in asked):
            return [[part.frame.clear() for part in side.items[:1]] for side in sides]
        keys = widened(asked)

        def near(side: Parts) -> list[pl.DataFrame]:
            if any(part.schema[key] != keys.schema[key] for part in side.items[:1] for key in self.on):
                return [part.frame for part in side.items]
            return among(side, keys, self.on)

        return [[frame.filter(settled) for frame in near(side)] for side in sides]

    def _coming(self, left: pl.DataFrame, right: pl.DataFrame) -> tuple[list[str], list[str]]:
        """The columns of each side that come out, beside the keys.

        A column that is asked for after the join may be of either side, and is null where it is not: so of two of one
        name, one that never had a value gives way.
        """
        others = [name for name in visible(left) if name not in self.on]
        more = [name for name in visible(right) if name not in self.on]
        if self.how in ("semi", "anti"):
            return others, []
        for name in list(more):
            same = self.prefix + name
            if same not in left.columns:
                continue
            if right.schema[name] == pl.Null:
                more.remove(name)
            elif left.schema[same] == pl.Null and same in others:
                others.remove(same)
            else:
                raise FlowError(
                    f"both sides of the join have a column {same!r}",
                    hint="Give prefix='...' for the columns of the other side, or select fewer",
                )
        return others, more

    def _compacted(self, number: int, parts: Parts, watermark: int) -> Parts:
        # What has run out goes when parts are merged: who asks looks at times, and does not see it.
        low = self.limits(watermark)[number]
        return parts.compact(lambda frame: frame.filter(pl.col(AT) >= low))

    def _prepared(self, number: int, frame: pl.DataFrame) -> pl.DataFrame:
        if not frame.width:
            return frame
        need(self.on, frame.columns, "join", visible(frame))
        return frame.select(*visible(frame), AT, LATE, SEQUENCE, *followed(frame))

    def _pairs(self, left: pl.DataFrame, right: pl.DataFrame, before: int, after: int) -> pl.DataFrame:
        """What comes out when all of these rows are settled, and those before ``before`` were already."""
        raise NotImplementedError

    def _joined(self, left: pl.DataFrame, right: pl.DataFrame, lefts: Ints, rights: Ints, at: Ints) -> pl.DataFrame:
        """Rows of both sides beside one another (-1 for none), with their time, in order."""
        a = taken(left, lefts)
        others, more = self._coming(left, right)
        columns = [a[name] for name in others]
        b = taken(right, rights)
        keys = [a[key] for key in self.on]
        if self.how not in ("semi", "anti"):
            columns += [b[name].alias(self.prefix + name) for name in more]
            if self.how == "full":
                keys = [_either(mine, b[key]) for key, mine in zip(self.on, keys, strict=True)]
        frame = pl.DataFrame([*keys, *columns]) if keys or columns else pl.DataFrame(height=len(at))
        frame = frame.with_columns(
            *(key.alias(key_column(i)) for i, key in enumerate(keys)),
            pl.Series(AT, at, pl.Int64),
            pl.lit(False).alias(LATE),
            a[AT].alias("__left"),
            a[SEQUENCE].alias("__left_place"),
            b[AT].alias("__right"),
            b[SEQUENCE].alias("__right_place"),
        )
        if ID in a.columns:
            frame = frame.with_columns(a[ID], b[ID].alias(OTHER))
        by = [AT, *(key_column(i) for i in range(len(keys))), "__left", "__left_place", "__right", "__right_place"]
        frame = frame.sort(by, nulls_last=False, maintain_order=True).drop(by[-4:])
        return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE))


class IntervalJoin(Join, frozen=True, eq=False):
    """The operator of ``join``: pairs whose times are near one another."""

    back: int
    """How far before a row of the left its partners may be."""
    ahead: int

    @property
    def shape(self) -> str:
        return f"join {self.how} on {self.on} within -{self.back} {self.ahead}"

    def limits(self, watermark: int) -> tuple[int, int]:
        # A row is needed until its own interval has closed, and until those of all its partners have.
        reach = self.back + self.ahead
        return watermark - reach, watermark - reach

    def delays(self, number: int) -> tuple[int, ...]:
        if number == 0:
            return (0,) if self.how == "inner" else (0, self.ahead)
        return (0, self.back) if self.how == "full" else (0,)

    def _pairs(self, left: pl.DataFrame, right: pl.DataFrame, before: int, after: int) -> pl.DataFrame:
        begins, ends, order = spans(left, right, self.on, -self.back, self.ahead)
        counts = ends - begins
        at, other = left[AT].to_numpy(), right[AT].to_numpy()
        found: list[tuple[Ints, Ints, Ints]] = []
        if self.how not in ("semi", "anti"):
            # Rows that were settled before matter only where a partner is new.
            lefts = np.repeat(np.arange(len(at)), counts)
            rights = order[np.arange(len(lefts)) - np.repeat(np.cumsum(counts) - counts - begins, counts)]
            times = np.maximum(at[lefts], other[rights])
            new = times >= before
            found.append((lefts[new], rights[new], times[new]))
        if self.how != "inner":
            decided = at + self.ahead
            alone = (counts > 0) if self.how == "semi" else (counts == 0)
            which = np.flatnonzero(alone & (decided >= before) & (decided < after))
            found.append((which, np.full(len(which), -1), decided[which]))
        if self.how == "full":
            begins, ends, _ = spans(right, left, self.on, -self.ahead, self.back)
            decided = other + self.back
            which = np.flatnonzero((ends == begins) & (decided >= before) & (decided < after))
            found.append((np.full(len(which), -1), which, decided[which]))
        lefts, rights, times = (np.concatenate(each).astype(np.int64) for each in zip(*found, strict=True))
        return self._joined(left, right, lefts, rights, times) if len(times) else pl.DataFrame()


class AsOfJoin(Join, frozen=True, eq=False):
    """The operator of ``join_asof``: each row with the last row of the other side at or before its time, or near it."""

    within: int | None
    delete: pl.Expr | None
    strategy: Strategy = "backward"

    @property
    def shape(self) -> str:
        near = "" if self.strategy == "backward" else f"{self.strategy} "
        return f"as of {near}{self.how} on {self.on} within {self.within} without {self.delete}"

    @property
    def back(self) -> int:
        """How far before a row of the left its partner may be."""
        return 0 if self.strategy == "forward" else 2**61 if self.within is None else self.within

    @property
    def ahead(self) -> int:
        """How far after it."""
        return 0 if self.strategy == "backward" or self.within is None else self.within

    def reads(self, number: int) -> set[str]:
        names = set(self.on)
        return names | names_of([self.delete]) if number == 1 and self.delete is not None else names

    def limits(self, watermark: int) -> tuple[int, int]:
        low = watermark - self.ahead
        return low, (-(2**62) if self.within is None else low - self.back)

    def delays(self, number: int) -> tuple[int, ...]:
        return (self.ahead,) if number == 0 else ()

    def _prepared(self, number: int, frame: pl.DataFrame) -> pl.DataFrame:
        kept = super()._prepared(number, frame)
        if number == 0 or not kept.width:
            return kept
        return apply("join_asof", visible(frame), lambda: kept.with_columns(gone(frame, self.delete)))

    def _compacted(self, number: int, parts: Parts, watermark: int) -> Parts:
        if number == 0 or self.strategy != "backward":
            return super()._compacted(number, parts, watermark)
        return parts.compact(lambda frame: self._current(frame, watermark))

    def _current(self, frame: pl.DataFrame, watermark: int) -> pl.DataFrame:
        """Without the rows that no later row can ask for: those that had a successor before the watermark."""
        settled = frame.filter(pl.col(AT) < watermark).sort(AT, SEQUENCE, maintain_order=True)
        last = settled.unique(subset=list(self.on), keep="last", maintain_order=True) if self.on else settled.tail(1)
        # What was settled before this step may still be asked for by rows of this step.
        return concat([last, frame.filter(pl.col(AT) >= watermark)])

    def _pairs(self, left: pl.DataFrame, right: pl.DataFrame, before: int, after: int) -> pl.DataFrame:
        left = left.filter(pl.col(AT).is_between(before - self.ahead, after - self.ahead, closed="left"))
        if not left.height:
            return pl.DataFrame()
        if self.strategy != "backward":
            # Looking ahead, the first of those to come; of one time the last of the log counts there, too.
            right = right.sort(SEQUENCE, maintain_order=True).unique(subset=[*self.on, AT], keep="last")
        partner = self._partner(left, right)
        if right.height:
            partner[(partner >= 0) & right[GONE].to_numpy()[partner]] = -1
        chosen = np.flatnonzero(partner >= 0) if self.how == "inner" else np.arange(left.height)
        if not len(chosen):
            return pl.DataFrame()
        return self._joined(left, right, chosen, partner[chosen], left[AT].to_numpy()[chosen] + self.ahead)

    def _partner(self, left: pl.DataFrame, right: pl.DataFrame) -> Ints:
        """The partner of each row; -1 where there is none."""
        earlier, later = np.full(left.height, -1, np.int64), np.full(left.height, -1, np.int64)
        if self.strategy != "forward":
            begins, ends, order = spans(left, right, self.on, -self.back, 0)
            some = ends > begins
            earlier[some] = order[ends[some] - 1]
        if self.strategy != "backward":
            begins, ends, order = spans(left, right, self.on, 0, self.ahead)
            some = ends > begins
            later[some] = order[begins[some]]
        both = np.flatnonzero((earlier >= 0) & (later >= 0))
        at, times = left[AT].to_numpy()[both], right[AT].to_numpy()
        later[both[at - times[earlier[both]] <= times[later[both]] - at]] = -1
        return np.where(later >= 0, later, earlier)


def gone(frame: pl.DataFrame, delete: pl.Expr | None) -> pl.Expr:
    """Whether a row of the other side says that its key is gone: by a condition, or itself where it is of a table."""
    # Of no rows it is not asked: their columns may be of no type yet.
    said = pl.lit(False) if delete is None or not frame.height else delete.fill_null(False)
    # A series, since the frame that it goes into may have the visible columns alone.
    return (said | pl.lit(frame[GONE]) if GONE in frame.columns else said).alias(GONE)


_NONE = np.zeros(0, np.int64)


def taken(frame: pl.DataFrame, rows: Ints) -> pl.DataFrame:
    """Rows by their number; nulls for -1."""
    picked = pl.Series(rows, dtype=pl.Int64)
    if not frame.height:
        return frame.clear(len(rows))
    return frame.select(pl.all().gather(picked.replace(-1, None)))


def _either(one: pl.Series, other: pl.Series) -> pl.Series:
    """A key of either side, in the type in which keys of both are compared."""
    name = one.name
    types = union({name: one.dtype}, {name: other.dtype})
    one, other = (fitted(pl.DataFrame([each]), types)[name] for each in (one, other))
    return one.zip_with(one.is_not_null(), other)


def spans(
    left: pl.DataFrame, right: pl.DataFrame, on: Sequence[str], low: int, high: int, *, nulls: bool = False
) -> tuple[Ints, Ints, Ints]:
    """For each row of the left, where its partners begin and end in an order of the right by key, time and place.

    Args:
        nulls: Null is a key.
    """
    ids, others = _numbers(left, right, on, nulls)
    at = left[AT].to_numpy()
    times, rank = np.unique(right[AT].to_numpy(), return_inverse=True)
    width = len(times) + 1
    packed = others * width + rank
    order = np.lexsort((right[SEQUENCE].to_numpy(), packed))
    # Those without a key stand at the end, with -1 for their number: they are nobody's partners.
    order = order[others[order] >= 0]
    packed = packed[order]
    begins = packed.searchsorted(ids * width + times.searchsorted(at + low, side="left"))
    ends = packed.searchsorted(ids * width + times.searchsorted(at + high, side="right"))
    begins[ids < 0] = ends[ids < 0] = 0
    return begins, ends, order


def _numbers(left: pl.DataFrame, right: pl.DataFrame, on: Sequence[str], nulls: bool) -> tuple[Ints, Ints]:
    """A number for the key of each row, of both sides; -1 where a key is null, and that is none."""
    if not on:
        return np.zeros(left.height, np.int64), np.zeros(right.height, np.int64)
    both = widened([left.select(on), right.select(on)])
    known = both.unique() if nulls else both.unique().drop_nulls()
    numbered = beside(both, known.with_row_index("__number"), on, nulls_equal=nulls)
    numbers = numbered["__number"].cast(pl.Int64).fill_null(-1)
    ids = numbers.to_numpy()
    return ids[: left.height], ids[left.height :]


def check_join(on: Sequence[str], how: str, ways: Sequence[str]) -> None:
    """Refuse a join that has no meaning."""
    if isinstance(on, str) or not all(isinstance(key, str) for key in on):
        raise UsageError("on= takes a list of columns", hint="Write on=['user']")
    if how not in ways:
        raise UsageError(f"how={how!r} is not known", hint=f"Use one of {', '.join(ways)}")
