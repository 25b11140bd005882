"""Whose a row is: key hashes in as many ranges as there are processes, and a pipeline that keeps to its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl

from ..alerts import Alert
from ..bodies import Body
from ..broadcast import Broadcast
from ..captured import TableRows
from ..columns import AT, SEQUENCE, ordered, visible
from ..distinct import BEST, Top
from ..entering import Entering
from ..errors import FlowError, UnsupportedExpression
from ..flow import Flow
from ..hashing import Hashes, hashed
from ..pipeline import Pipeline
from ..shaping import Rowwise
from ..state import Batch, Kept, Operator, OperatorState, Part, Parts, Step, concat
from ..steps import Branch
from ..tree import Source, order_of
from .plan import plan_of

SPACE = 720_720 << 30
"""The parts of range number i are stored under their own numbers and i times this. Operators tell kinds of parts apart
by the remainder of their numbers, so that it has to be a multiple of however many kinds one of them may have."""

_STEP = 720_720


_TIE = "__tie"
"""Of rows that stand in the order of the log: where each stands among those of its position. They may be of several
ranges where flows of one source are merged, or one stored event has become several rows."""


class Drifted(Exception):
    """The columns that tell rows apart have other types from here on, so that the same key may have another hash."""


class Range:
    """One of several ranges of key hashes."""

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count

    def owns(self, frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """The rows of a frame whose key is in the range."""
        if not frame.height:
            return frame
        found: Hashes | None = None
        for column in columns:
            try:
                values = hashed(frame[column])
            except UnsupportedExpression as error:
                raise FlowError(
                    f"the flow cannot be shared by column {column!r} of type {frame.schema[column]}",
                    hint="Make it text with with_columns(...), or run it with processes=1",
                ) from error
            found = values if found is None else _stirred(found) ^ values
        assert found is not None
        owner = ((found >> np.uint64(32)) * np.uint64(self.count)) >> np.uint64(32)
        return frame.filter(pl.Series(owner == self.index))

    def slice(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Its stretch of a frame, where rows need not be told apart by key."""
        low, high = (frame.height * each // self.count for each in (self.index, self.index + 1))
        return frame.slice(low, high - low)

    def owned(self, parts: Iterable[Part], columns: Sequence[str]) -> Iterator[Part]:
        """Its rows of parts that may be of any ranges, as parts with numbers of their own."""
        number = 0
        for part in parts:
            frame = self.owns(part.stored, columns)
            if frame.height:
                # What kind of part it is, stays to be seen from its number.
                yield Part(number * _STEP + part.id % _STEP, part.low, part.high, frame)
                number += 1


def _stirred(found: Hashes) -> Hashes:
    stirred: Hashes = (found ^ (found >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return stirred


class SharedPipeline(Pipeline):
    """A flow at work on the rows of one range; its watermarks are those of all rows.

    What comes out keeps the columns by which `merged` puts the rows of all ranges into the order of one pipeline.
    """

    def __init__(self, flow: Flow, range: Range) -> None:
        super().__init__(flow)
        self.range = range
        self.plan = plan_of(self._root)
        self._leaves = {id(leaf): number for number, leaf in enumerate(_leaves(self._root))}
        self._types: dict[int, tuple[pl.DataType, ...]] = {}
        order = order_of(flow)
        self._tied = {id(leaf): number for number, leaf in enumerate(_in_log(self._root))} if order == "log" else {}
        self._placed = {"log": [SEQUENCE, _TIE], "time": [AT, BEST], "settled": [AT, SEQUENCE]}[order]

    def _told_apart(self, branch: Branch, stage: int, frame: pl.DataFrame) -> pl.DataFrame:
        if stage == 0 and frame.width and id(branch) in self._tied:
            first = self._tied[id(branch)] << 32
            frame = frame.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(_TIE))
        leaf = self._leaves[id(branch)]
        cut = self.plan.cuts[leaf]
        if cut.stage != stage or not frame.width:
            return frame
        if not cut.columns:
            return self.range.slice(frame)
        if not set(cut.columns) <= set(frame.columns):
            return frame  # The operator that wants them says so.
        self._check(leaf, tuple(frame.schema[name] for name in cut.columns))
        return self.range.owns(frame, cut.columns)

    def _take(self, number: int, stage: Operator, state: OperatorState, batch: Batch) -> Step:
        step = super()._take(number, stage, state, batch)
        if not isinstance(stage, TableRows):
            return step
        # It has taken in the rows of all, to keep those of its range; one of all tells of those without a time.
        kept = self._kept(state.parts, step.state.parts, self.plan.held[number])
        return Step(Kept(kept), step.frame, step.late if self.range.index == 0 else None)

    def _kept(self, before: Parts, parts: Parts, columns: Sequence[str]) -> Parts:
        """The parts with the rows of the range alone; those that were there before have no others."""
        there = set(map(id, before.items))
        items = []
        for part in parts.items:
            if id(part) in there:
                items.append(part)
                continue
            frame = self.range.owns(part.stored, columns)
            if frame.height:
                items.append(Part(part.id, part.low, part.high, Body(frame, part.lane)))
        return Parts(tuple(items), parts.next)

    def _check(self, leaf: int, types: tuple[pl.DataType, ...]) -> None:
        known = self._types.get(leaf)
        if known == types:
            return
        if known is not None and any(old != new and old != pl.Null for old, new in zip(known, types, strict=True)):
            raise Drifted
        for other in self._types.values():
            for name, mine, theirs in zip(self.plan.cuts[leaf].columns, types, other, strict=True):
                alike = mine == theirs or (mine.is_integer() and theirs.is_integer())
                if not alike and pl.Null not in (mine, theirs):
                    raise FlowError(
                        f"the flow cannot be shared by {name!r}: it is {mine} in one source and {theirs} in another",
                        hint="Cast one of them with with_columns(...), or run it with processes=1",
                    )
        self._types[leaf] = types

    def _published(self, frame: pl.DataFrame) -> pl.DataFrame:
        keys = sorted(name for name in frame.columns if name.startswith("__key"))
        placed = [name for name in (*self._placed, *(keys if AT in self._placed else [])) if name in frame.columns]
        return frame.select(*visible(frame), *placed)

    def _aside(self, late: list[pl.DataFrame]) -> list[pl.DataFrame]:
        return late


def _leaves(branch: Branch) -> list[Branch]:
    return [leaf for inner in branch.inputs for leaf in _leaves(inner)] if branch.inputs else [branch]


def _in_log(branch: Branch) -> list[Branch]:
    """The leaves whose rows come out in the order of the log, from left to right."""
    source = branch.flow.source
    if isinstance(source, Source):
        return [branch]
    # Of what is asked of another flow, no row comes out.
    inputs = branch.inputs[:1] if isinstance(source, Broadcast) else branch.inputs
    return [leaf for inner in inputs for leaf in _in_log(inner)]


def merged(flow: Flow, frames: Sequence[pl.DataFrame], *, sliced: bool) -> pl.DataFrame:
    """What all ranges have made of the same rows, in the order in which one pipeline gives it."""
    some = [frame for frame in frames if frame.height]
    if not some:
        return next((frame.select(visible(frame)) for frame in frames if frame.width), pl.DataFrame())
    order = order_of(flow)
    found = some[0] if len(some) == 1 else concat(some)
    if order == "settled":
        found = ordered(found)
    elif len(some) > 1 and not sliced:
        keys = sorted(name for name in found.columns if name.startswith("__key"))
        # Rows that agree in time and key are of one range, and in order there.
        by = [AT, *keys] if order == "time" else [SEQUENCE, _TIE]
        descending = [False] * len(by)
        nulls_last = [False] * len(by)
        best = last_top(flow)
        if best is not None:
            by.insert(1, BEST)
            descending.insert(1, best.descending)
            nulls_last.insert(1, True)
        found = found.sort(by, descending=descending, nulls_last=nulls_last, maintain_order=True)
    return found.select(visible(found))


def last_top(flow: Flow) -> Top | None:
    """The ``top`` whose order the rows have that leave a flow."""
    for stage in reversed(flow.stages):
        if isinstance(stage, Top):
            return stage
        if not isinstance(stage, Rowwise | Alert | Entering):
            return None
    return None
