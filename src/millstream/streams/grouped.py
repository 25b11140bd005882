"""Flows whose rows are told apart by key: what windows and patterns are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec
import polars as pl

from ..errors import UsageError
from ..time import Duration
from .aggregates import aggregation
from .calendars import CalendarWindows
from .counted import CountWindows
from .expressions import check_rowwise
from .matching import matching
from .sessions import SessionWindows
from .trailing import SlidingWindows, check_sliding
from .windows import Calendar, Count, Hopping, PaneWindows, Session, Window, check_names

if TYPE_CHECKING:
    from .flow import Flow

Contiguity = Literal["strict", "relaxed"]


class Grouped(msgspec.Struct, frozen=True, eq=False):
    """A flow whose rows are told apart by key."""

    flow: Flow
    keys: tuple[str, ...]

    def window(self, window: Window) -> Windowed:
        """Cut each key's rows into windows: `tumbling`, `hopping`, `sliding`, `session`, `count` or `calendar`."""
        if not isinstance(window, Window):
            raise UsageError(
                f"{window!r:.80} is not a window", hint="Use tumbling, hopping, sliding, session, count or calendar"
            )
        return Windowed(self.flow, self.keys, window)

    def match(
        self,
        pattern: str,
        *,
        within: Duration | None = None,
        define: Mapping[str, pl.Expr],
        contiguity: Contiguity = "strict",
        measures: Mapping[str, pl.Expr] | None = None,
        skip: str = "past last row",
    ) -> Flow:
        """Sequences of rows of a key, read in order of time (ties in order of the log).

        A match begins as early as it can. Where it may go on in several ways, the first that leads to an end is
        taken: quantifiers take as many rows as they can (with ``?`` behind them, as few), of alternatives the first
        is preferred. It is given once no later row could change it. Columns: the keys, ``match_start`` and
        ``match_end`` (time of its first and last row), ``events`` (how many rows), and the measures.

        Args:
            pattern: Variables in sequence, with quantifiers, groups and alternatives: ``"click{3,} purchase"``,
                ``"start fall+? (rise | jump){2,5}"``. ``!paid`` at the end: no row of that kind comes within the
                time, which time alone decides; between two, no such row stands between them (both under
                ``"relaxed"``).
            within: The longest time from the first row of a match to its last.
            define: For each variable, the condition of a row that fits it. A row may fit several. A condition may
                look back at the rows that the match has taken so far: see `millstream.streams.matched`.
            contiguity: ``"strict"``: the rows of a match follow one another without a gap. ``"relaxed"``: rows that
                fit no variable are passed over (of a condition that looks back, what it says of the row alone).
            measures: Further columns, of the values of matched rows: ``{"low": ms.matched.min("fall.price")}``.
            skip: Where the next match may begin: ``"past last row"``, ``"to next row"``, ``"to first x"`` or
                ``"to last x"`` with a variable of the pattern (but at least one row on).

        Raises:
            UnsupportedPattern: The pattern cannot be used; the error names the part.
            UnsupportedExpression: A condition depends on other rows.
        """
        if contiguity not in ("strict", "relaxed"):
            raise UsageError(f"contiguity={contiguity!r} is not known", hint="Use 'strict' or 'relaxed'")
        check_rowwise(define.values(), "match")
        check_names(self.keys, ("match_start", "match_end", "events", *(measures or {})))
        return self.flow._with(
            matching(self.keys, pattern, within, define, contiguity == "relaxed", measures or {}, skip), keys=self.keys
        )


class Windowed(msgspec.Struct, frozen=True, eq=False):
    """A flow whose rows are cut into windows of time."""

    flow: Flow
    keys: tuple[str, ...]
    spec: Window

    def agg(self, **aggregates: pl.Expr) -> Flow:
        """Aggregate each window. Columns: the keys, ``window_start``, ``window_end``, the aggregates.

        A sliding window gives a row for each row, with the row's other columns before the aggregates;
        ``window_end`` is then the row's time. Counts and sums of integers are 64 bits wide. Sums of floats
        may differ in their last digits with the batches that rows came in (about 1e-15 of the sum of
        magnitudes).

        Raises:
            UnsupportedExpression: An aggregate cannot be merged from the parts of its group.
        """
        if not aggregates:
            raise UsageError("agg needs an aggregate", hint="Write agg(count=pl.len())")
        check_names((*self.keys, "window_start", "window_end"), tuple(aggregates))
        parts = aggregation(aggregates)
        if isinstance(self.spec, Hopping):
            return self.flow._with(PaneWindows(self.spec, self.keys, parts), keys=self.keys)
        if isinstance(self.spec, Session):
            return self.flow._with(SessionWindows(self.spec, self.keys, parts), keys=self.keys)
        if isinstance(self.spec, Count):
            return self.flow._with(CountWindows(self.spec, self.keys, parts), keys=self.keys)
        if isinstance(self.spec, Calendar):
            return self.flow._with(CalendarWindows(self.spec, self.keys, parts), keys=self.keys)
        check_sliding(parts)
        return self.flow._with(SlidingWindows(self.spec, self.keys, parts), keys=self.keys)
