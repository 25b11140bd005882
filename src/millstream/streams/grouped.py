"""Flows whose rows are told apart by key: what windows and patterns are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import polars as pl

from ..errors import UsageError
from ..log.handlers import check_plain
from ..time import Duration, duration_micros, span_micros
from .aggregates import aggregation
from .calendars import CalendarWindows
from .columns import columns_named, types_of
from .counted import CountWindows
from .errors import FlowError
from .expressions import check_rowwise
from .fold import Fold, columns_of, plain_value
from .matching import matching
from .processing import TIME, KeyContext, Processed
from .revising import STATUS, RevisingWindows
from .sessions import SessionWindows
from .sketches import Quantile
from .trailing import SlidingWindows
from .windows import Calendar, Count, Hopping, PaneWindows, Session, Window, check_names

if TYPE_CHECKING:
    from .flow import Flow

Contiguity = Literal["strict", "relaxed"]
_AGG = "Write agg(n=pl.len(), total=pl.col('amount').sum())"


class Grouped(msgspec.Struct, frozen=True, eq=False):
    """A flow whose rows are told apart by key."""

    flow: Flow
    keys: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"keys have no {name!r}: say first what becomes of their rows, as in .window(...).agg(n=pl.len()),"
            " .match(...), .fold(...) or .process(...)"
        )

    def window(
        self, window: Window, *, early: Duration | None = None, allowed_lateness: Duration | None = None
    ) -> Windowed:
        """Cut each key's rows into windows: `tumbling`, `hopping`, `sliding`, `session`, `count` or `calendar`.

        Args:
            window: The windows.
            early: Of tumbling and hopping windows, also give results before they are final: whenever the watermark
                passes a multiple of this time, those of the open windows in which rows have come since.
            allowed_lateness: Of tumbling and hopping windows, rows that are late by at most this still count: whenever
                the watermark passes a multiple of ``early`` (else of the windows' pieces), windows that had closed give
                a corrected result. Their state is held for so much longer.

        With either, results have a column ``status``: ``"early"``, ``"final"`` (once) or ``"corrected"``. The last
        of a key and ``window_start`` is what holds. Only what can take such results may follow: ``select``,
        ``with_columns``, functions, ``latest``, and ``filter`` by keys, window and status.
        """
        if not isinstance(window, Window):
            raise UsageError(
                f"{window!r:.80} is not a window", hint="Use tumbling, hopping, sliding, session, count or calendar"
            )
        if early is None and allowed_lateness is None:
            return Windowed(self.flow, self.keys, window)
        if not isinstance(window, Hopping):
            raise UsageError(
                "only tumbling and hopping windows have results that change", hint="Leave early= and allowed_lateness="
            )
        if self.flow._ordered:
            raise FlowError(
                "early= and allowed_lateness= go by when rows came, and these have been put in order of time",
                hint="Put the window right behind the stream, or behind a merge of streams",
            )
        tick = math.gcd(window.size, window.every) if early is None else duration_micros(early)
        if not tick or window.size % tick or window.every % tick:
            raise UsageError(
                f"windows of that size do not end with a tick of early={early!r}", hint="Let early= divide it"
            )
        allowed = 0 if allowed_lateness is None else span_micros("allowed_lateness=", allowed_lateness)
        return Windowed(self.flow, self.keys, window, (tick, early is not None, allowed))

    def fold(
        self,
        function: Callable[[dict[str, Any], dict[str, Any]], Any],
        *,
        start: Mapping[str, Any],
        schema: Mapping[str, Any],
        reads: Iterable[str] | None = None,
        forget: Duration | None = None,
        errors: str | None = None,
    ) -> Flow:
        """Each row with what a Python function has made of the rows of its key up to it.

        Rows come in order of time (ties in the order of the log), once the watermark has passed them. What is held of
        the keys of a batch is read and written together. The function must have no other effects: a batch may come
        again.

        Args:
            function: Takes what is held of the key, and a row, each as a dict; gives what is then held, as one; or, of
                a single column, its value.
            start: What is held of a key before its first row.
            schema: The columns that are held, with their types: whole numbers, Float64, String, Boolean, Binary, Date,
                Datetime and Duration in microseconds, lists and structs of these.
            reads: The columns of a row that the function is shown; by default all.
            forget: A key without a row for so long begins anew. By default keys are held for good.
            errors: The name of a further column: null, or the traceback of a function that has failed for the row; what
                is held stays as it was. Without it, a failure ends the flow.

        Raises:
            FlowError: When it runs: the function fails, or gives something else than ``schema`` says.

        Example:
            >>> import millstream as ms
            >>> from datetime import datetime
            >>> import polars as pl
            >>> def balance(held: dict, row: dict) -> dict:
            ...     return {"balance": max(held["balance"] + row["amount"], 0)}
            >>> flow = ms.stream("moves", time="at").group_by("account").fold(
            ...     balance, start={"balance": 0}, schema={"balance": pl.Int64}, reads=["amount"]
            ... )
            >>> days = [datetime(2024, 1, day) for day in (1, 2, 3)]
            >>> flow.over(pl.DataFrame({"account": 7, "amount": [5, -8, 3], "at": days}))["balance"].to_list()
            [5, 0, 3]
        """
        if not callable(function):
            raise UsageError(f"{function!r:.60} is no function", hint="Give a function of what is held, and a row")
        check_plain(function)
        if not schema:
            raise UsageError("a fold holds no column", hint="Name at least one in start= and schema=")
        check_names(self.keys, (*schema, *([errors] if errors else [])))
        types, first, asks, micros = _kept("fold", start, schema, reads, forget)
        return self.flow._with(Fold(self.keys, types, first, asks, micros, errors, function), keys=self.keys)

    def process(
        self,
        function: Callable[[KeyContext, dict[str, Any]], object],
        *,
        gives: Mapping[str, Any],
        on_timer: Callable[[KeyContext, str], object] | None = None,
        start: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        reads: Iterable[str] | None = None,
        forget: Duration | None = None,
        errors: str | None = None,
    ) -> Flow:
        """Rows that a Python function gives, with state and timers for each key.

        The function is called for each row of a key in order of time (ties in the order of the log), once the watermark
        has passed it. What it is given, a `KeyContext`, holds what is kept of the key, sets and cancels timers, and
        takes rows. A timer rings once the watermark has passed its time, after all rows of its key up to that time; so
        of a stream that falls silent it does when the source has ``idle=``. Columns: the keys, ``time``, those of
        ``gives``. The functions must have no other effects: a batch may come again. At the end of `over`, timers that
        are set ring once, and those that they would set do not.

        Args:
            function: Takes the context and a row.
            gives: The columns of the rows that are given, with their types, as of `fold`.
            on_timer: Takes the context and the name of the timer that rings.
            start: What is held of a key before its first row.
            schema: The columns that are held, with their types, as of `fold`.
            reads: The columns of a row that the function is shown; by default all.
            forget: A key without a row or a timer for so long begins anew. By default keys are held until
                `KeyContext.forget`.
            errors: The name of a further column. When a function fails, a row comes out with its traceback there, and
                with null in those of ``gives``; what is held stays as it was. Without it, a failure ends the flow.

        Raises:
            FlowError: When it runs: a function fails, or gives something else than ``gives`` or ``schema`` says.

        Example:
            >>> import millstream as ms
            >>> from datetime import datetime
            >>> import polars as pl
            >>> def moved(key: ms.KeyContext, row: dict) -> None:
            ...     key.cancel() if row["kind"] == "paid" else key.timer(after="15m")
            >>> def reminded(key: ms.KeyContext, timer: str) -> None:
            ...     key.give(text="not paid yet")
            >>> flow = ms.stream("orders", time="at").group_by("order").process(
            ...     moved, on_timer=reminded, gives={"text": pl.String}
            ... )
            >>> hours = [datetime(2024, 1, 1, hour) for hour in (9, 9, 10)]
            >>> rows = pl.DataFrame({"order": [1, 2, 1], "kind": ["placed", "placed", "paid"], "at": hours})
            >>> flow.over(rows).select("order", "text").rows()
            [(1, 'not paid yet'), (2, 'not paid yet')]
        """
        for each in (function, on_timer):
            if each is not None and not callable(each):
                raise UsageError(f"{each!r:.60} is no function", hint="Give a function of a KeyContext, and a row")
            check_plain(each)
        if function is None or not gives:
            raise UsageError("process gives no column", hint="Name the columns of its rows: gives={'text': pl.String}")
        giving = types_of("gives=", gives)
        check_names((*self.keys, TIME), (*giving, *([errors] if errors else [])))
        types, first, asks, micros = _kept("process", start or {}, schema or {}, reads, forget)
        for dtype in giving.values():
            plain_value(dtype)
        stage = Processed(self.keys, types, first, asks, micros, errors, function, on_timer, giving)
        return self.flow._with(stage, keys=self.keys)

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
            within: The longest time from the first row of a match to its last. May be left out where the quantifiers
                bound a match, and no absence is at its end: then rows that may begin one are held until it is decided.
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
        if not isinstance(define, Mapping):
            raise UsageError(
                f"define={define!r:.60} is no dict", hint="Write define={'click': pl.col('kind') == 'click'}"
            )
        for name, condition in define.items():
            if not isinstance(condition, pl.Expr):
                raise UsageError(
                    f"define= takes Polars' expressions, and got {condition!r:.60} for {name!r}",
                    hint=f"Write {{{name!r}: pl.col('kind') == 'click'}}, for example",
                )
        if not isinstance(measures, Mapping | None):
            raise UsageError(
                f"measures={measures!r:.60} is no dict",
                hint="Write measures={'low': ms.matched.min('fall.price')}",
            )
        for name, measure in (measures or {}).items():
            if not isinstance(measure, pl.Expr):
                raise UsageError(
                    f"measures= takes expressions, and got {measure!r:.60} for {name!r}",
                    hint=f"Write {{{name!r}: ms.matched.last('click.amount')}}, for example",
                )
        check_rowwise([*define.values(), *(measures or {}).values()], "match")
        check_names(self.keys, ("match_start", "match_end", "events", *(measures or {})))
        return self.flow._with(
            matching(self.keys, pattern, within, define, contiguity == "relaxed", measures or {}, skip), keys=self.keys
        )


class Windowed(msgspec.Struct, frozen=True, eq=False):
    """A flow whose rows are cut into windows of time."""

    flow: Flow
    keys: tuple[str, ...]
    spec: Window
    revising: tuple[int, bool, int] | None = None
    """How often results are given anew, whether also early ones, and the allowed lateness; all in microseconds."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"windows have no {name!r}: aggregate them first, as in .window(...).agg(n=pl.len())")

    def agg(self, *expressions: pl.Expr, **aggregates: pl.Expr | Quantile) -> Flow:
        """Aggregate each window. Columns: the keys, ``window_start``, ``window_end``, the aggregates.

        As in Polars, an aggregate that is given without a name has that of its expression.

        A sliding window gives a row for each row, with the row's other columns before the aggregates;
        ``window_end`` is then the row's time. Counts and sums of integers are 64 bits wide, and so are the sums
        that means are taken from. Sums of floats may differ in their last digits with the batches that rows came in
        (about 1e-15 of the sum of magnitudes).

        Raises:
            UnsupportedExpression: An aggregate cannot be merged from the parts of its group.
        """
        aggregates = {**_named(expressions, aggregates), **aggregates}
        if not aggregates:
            raise UsageError("agg needs an aggregate", hint="Write agg(count=pl.len())")
        for name, each in aggregates.items():
            if not isinstance(each, pl.Expr | Quantile):
                raise UsageError(f"agg takes Polars' expressions, and got {name}={each!r:.60}", hint=_AGG)
        check_names((*self.keys, "window_start", "window_end"), tuple(aggregates))
        parts = aggregation(aggregates)
        if isinstance(self.spec, Hopping):
            windows = PaneWindows(self.spec, self.keys, parts)
            if self.revising is None:
                return self.flow._with(windows, keys=self.keys)
            check_names((*self.keys, STATUS), tuple(aggregates))
            return self.flow._with(RevisingWindows(windows, *self.revising), keys=self.keys)
        if isinstance(self.spec, Session):
            return self.flow._with(SessionWindows(self.spec, self.keys, parts), keys=self.keys)
        if isinstance(self.spec, Count):
            return self.flow._with(CountWindows(self.spec, self.keys, parts), keys=self.keys)
        if isinstance(self.spec, Calendar):
            return self.flow._with(CalendarWindows(self.spec, self.keys, parts), keys=self.keys)
        return self.flow._with(SlidingWindows(self.spec, self.keys, parts), keys=self.keys)


def _named(expressions: Iterable[Any], taken: Mapping[str, Any]) -> dict[str, pl.Expr | Quantile]:
    """Aggregates by the names that their expressions have."""
    found: dict[str, pl.Expr | Quantile] = {}
    for each in expressions:
        name = each.meta.output_name(raise_if_undetermined=False) if isinstance(each, pl.Expr) else None
        if name is None:
            raise UsageError(f"{each!r:.80} is no aggregate with a name", hint="Write agg(count=pl.len())")
        if name in found or name in taken:
            raise UsageError(f"agg gives two columns {name!r}", hint="Name one of them otherwise: agg(other=...)")
        found[name] = each.meta.undo_aliases()
    return found


def _kept(
    where: str,
    start: Mapping[str, Any],
    schema: Mapping[str, Any],
    reads: Iterable[str] | None,
    forget: Duration | None,
) -> tuple[dict[str, pl.DataType], dict[str, Any], tuple[str, ...] | None, int | None]:
    """What a function holds of each key, checked: its types, what it begins with, what it is shown, how long it lasts.

    Raises:
        UsageError, FlowError: Something does not fit together.
    """
    if set(schema) != set(start):
        raise UsageError("start= and schema= name different columns", hint="Name each column in both")
    if isinstance(reads, str):
        raise UsageError("reads= is one string", hint=f"Give a list: reads=[{reads!r}]")
    micros = None if forget is None else span_micros("forget=", forget)
    if micros == 0:
        raise UsageError("a key that is held for no time", hint="Give forget= a duration such as '1d'")
    types = types_of("schema=", schema)
    check_names((), tuple(types))
    try:
        first = {name: plain_value(dtype)(start[name]) for name, dtype in types.items()}
    except (TypeError, KeyError) as error:
        raise FlowError(f"start= is not as schema= says: {error}", hint="Give values of these types") from error
    columns_of([tuple(first.values())], types, where)
    return types, dict(start), None if reads is None else columns_named("reads=", reads), micros
