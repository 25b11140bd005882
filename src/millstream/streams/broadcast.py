"""Rows with what another flow last said: limits and settings that change while a flow runs.

What a row gets follows from places in the log alone, not from times: the other flow holds nothing back, and what it
says holds from where it stands. A row that no window or pattern has put into order of time stands where the log has it;
one that has waited for the watermark comes with the row that moved the watermark past its time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ..log.objects import fitted
from .columns import AT, GONE, OTHER, SEQUENCE, followed, is_hidden, names_of, need, visible
from .expressions import apply
from .joins import Join, JoinState, gone, spans, taken
from .keyed import newest, put
from .keys import Ints
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .tree import order_of

_FOREVER = 2**61


class Broadcast(Join, frozen=True, eq=False):
    """The operator of ``join_latest``."""

    delete: pl.Expr | None

    @property
    def order(self) -> Order:  # type: ignore[override]
        return order_of(self.inputs[0])

    @property
    def shape(self) -> str:
        return f"latest {self.how} on {self.on} without {self.delete}"

    def heeds(self, number: int) -> bool:
        return number == 0

    def reads(self, number: int) -> set[str]:
        names = set(self.on)
        return names | names_of([self.delete]) if number == 1 and self.delete is not None else names

    def restore(self, parts: Parts, watermark: int) -> JoinState:
        return JoinState(parts)

    def meet(self, state: OperatorState, batches: Sequence[Batch], joint: Batch) -> Step:
        assert isinstance(state, JoinState)
        rows, said = (self._prepared(number, batch.frame) for number, batch in enumerate(batches))
        parts = state.parts
        if joint.reshaped:
            columns = (dict(rows.schema), dict(said.schema))
            if parts.items:
                parts = parts.reshaped(said, lambda held: newest(held, self.on))
            nothing = self._beside(rows, said, np.zeros(0, np.int64), np.zeros(0, np.int64))
            return Step(JoinState(parts, columns=columns), nothing)
        columns = state.columns
        out = pl.DataFrame()
        said = fitted(said, columns[1]) if said.height else pl.DataFrame(schema=columns[1])
        if rows.height:
            out = self._told(fitted(rows, columns[0]), self._asked(parts, rows, said), joint)
        if said.height:
            parts = put(parts, newest(said, self.on), self.on, SEQUENCE)
        return Step(JoinState(parts, columns=columns), out)

    def _prepared(self, number: int, frame: pl.DataFrame) -> pl.DataFrame:
        if not frame.width:
            return frame
        need(self.on, frame.columns, "join_latest", visible(frame))
        if number == 0:
            return frame
        kept = frame.select(*visible(frame), SEQUENCE, *followed(frame))
        return apply("join_latest", visible(frame), lambda: kept.with_columns(gone(frame, self.delete)))

    def _asked(self, parts: Parts, rows: pl.DataFrame, said: pl.DataFrame) -> pl.DataFrame:
        """What was said before, as far as it may be asked for, and what is said now."""
        known = [part.frame for part in parts.items]
        if self.on and rows.select(self.on).schema == said.select(self.on).schema:
            wanted = rows.select(self.on).unique()
            known = [frame.join(wanted, on=list(self.on), how="semi") for frame in known]
        return concat([*known, said])

    def _told(self, rows: pl.DataFrame, said: pl.DataFrame, joint: Batch) -> pl.DataFrame:
        places = rows[SEQUENCE].to_numpy()
        if self.order != "log":
            assert joint.timeline is not None
            passed = joint.timeline.watermarks.searchsorted(rows[AT].to_numpy(), side="right")
            # What closes at the end of a past comes after all of it.
            places = np.append(joint.timeline.positions, _FOREVER)[passed]
        begins, ends, order = spans(
            rows.with_columns(pl.Series(AT, places, pl.Int64)),
            said.with_columns(pl.col(SEQUENCE).alias(AT)),
            self.on,
            -_FOREVER,
            0,
        )
        partner = np.full(rows.height, -1, np.int64)
        some = ends > begins
        partner[some] = order[ends[some] - 1]
        if len(order):
            partner[some & said[GONE].to_numpy()[partner]] = -1
        chosen = np.flatnonzero(partner >= 0) if self.how == "inner" else np.arange(rows.height)
        return self._beside(rows, said, chosen, partner[chosen])

    def _beside(self, rows: pl.DataFrame, said: pl.DataFrame, chosen: Ints, partner: Ints) -> pl.DataFrame:
        """Some rows, as they stand, with what was said to each (-1 for nothing)."""
        others, more = self._coming(rows, said)
        kept = rows[chosen] if len(chosen) < rows.height else rows
        found = taken(said, partner)
        return kept.select(
            *(name for name in kept.columns if name in others or name in self.on or is_hidden(name)),
            *(found[name].alias(self.prefix + name) for name in more),
            *(found[name].alias(OTHER) for name in followed(found)),
        )
