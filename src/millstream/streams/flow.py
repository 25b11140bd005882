"""Flows: what a user builds, verb by verb, from a stream of the log to a stream of the log.

A flow is a value: every verb gives a new one, and nothing happens until it is run (`millstream.run`), or
asked about the past (`Flow.over`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import polars as pl

from ..errors import UsageError
from ..log.reading import Types, type_names
from ..log.staging import check_label, check_stream
from ..time import Duration, span_micros
from .alerts import Alert
from .asking import Asking
from .calendars import CalendarWindows
from .captured import TableRows
from .choosing import Choosing
from .columns import check_one
from .counted import CountWindows
from .distinct import Distinct, Top
from .ends import Ending, Sink
from .entering import Entering
from .errors import FlowError
from .expressions import all_of, check_rowwise
from .fold import Fold
from .functions import Functions
from .grouped import Contiguity, Grouped, Windowed
from .joining import Joining, refuse_ended
from .latest import Latest
from .match import Match
from .merging import Merge
from .operating import Operating
from .overtaking import Overtaking, check_after
from .processing import Processed
from .revising import RevisingWindows, check_follows
from .sequences import Sequences
from .sessions import SessionWindows
from .shaping import Filter, Rowwise, Select, WithColumns
from .state import Order
from .trailing import SlidingWindows
from .tree import Meeting, Source, order_of, sources_of
from .windows import PaneWindows, Window, check_name, check_names

Stage = (
    Rowwise
    | PaneWindows
    | RevisingWindows
    | SessionWindows
    | CountWindows
    | CalendarWindows
    | SlidingWindows
    | Match
    | Sequences
    | Alert
    | Entering
    | Distinct
    | Top
    | Latest
    | Fold
    | Overtaking
    | Processed
    | TableRows
)
IntoExpr = pl.Expr | str


class Flow(msgspec.Struct, Functions, Choosing, Joining, Ending, Asking, Operating, frozen=True, eq=False):
    """Rows of a stream, and what is made of them. Begin with `stream`."""

    source: Source | Meeting
    """Its source, or where several flows meet."""
    stages: tuple[Stage, ...] = ()
    keys: tuple[str, ...] = ()
    """The columns that rows were last grouped by."""
    sink: Sink | None = None
    late: tuple[str, str] | None = None
    """Stream and type for rows that come late."""

    def __repr__(self) -> str:
        from .describing import in_short

        return f"<Flow {in_short(self)}>"

    # --- shaping --------------------------------------------------------------------------------------

    def filter(self, condition: pl.Expr, *more: pl.Expr) -> Flow:
        """Only the rows that meet a condition (null is not met), or each of several.

        Raises:
            UnsupportedExpression: A condition depends on other rows.
        """
        return self._with(Filter(all_of(condition, *more)))

    def select(self, *columns: IntoExpr, **named: IntoExpr) -> Flow:
        """Only these columns. The row's time and place in the log stay with it, unseen.

        Raises:
            UnsupportedExpression: An expression depends on other rows.
        """
        return self._with(Select(tuple(_expressions("select", columns, named))))

    def with_columns(self, *columns: IntoExpr, **named: IntoExpr) -> Flow:
        """With more columns, or others in place of those of the same name.

        Raises:
            UnsupportedExpression: An expression depends on other rows.
        """
        return self._with(WithColumns(tuple(_expressions("with_columns", columns, named))))

    # --- several flows ----------------------------------------------------------------------------

    def merge(self, *others: Flow) -> Flow:
        """The rows of this flow and of others, as of one.

        Rows that are still in the order of the log stay in it. Where a flow has left it (after a window, pattern
        or join), all come in order of time, then of the flows, once the watermark has passed them. The watermark
        is the least of all sources'; a source that has had no row yet holds it back. Columns that a flow lacks are
        null, and types become one that holds all values.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> web, app = ms.stream("web", time="ts"), ms.stream("app", time="at")
            >>> visits = web.merge(app).group_by("user").window(ms.tumbling("1h")).agg(visits=pl.len())
        """
        flows = (self, *others)
        if not others:
            raise UsageError("merge needs another flow", hint="Write a.merge(b)")
        for flow in flows:
            refuse_ended(flow)
        keys = self.keys if all(flow.keys == self.keys for flow in flows) else ()
        return Flow(Merge(flows, len(keys), any(flow._ordered for flow in flows)), keys=keys)

    def split(self, condition: pl.Expr) -> tuple[Flow, Flow]:
        """Two flows: of the rows that meet a condition, and of all others (null is not met).

        Raises:
            UnsupportedExpression: The condition depends on other rows.
        """
        return self.filter(condition), self.filter(~condition.fill_null(False))

    # --- grouping -------------------------------------------------------------------------------------

    def group_by(self, *keys: str) -> Grouped:
        """Each key for itself: windows and patterns see rows that agree in these columns. Null is a key."""
        if not keys or not all(isinstance(key, str) for key in keys):
            raise UsageError(
                "group_by takes the names of columns", hint="Write group_by('user'), or group_by('user', 'page')"
            )
        check_names(keys, ())
        return Grouped(self, keys)

    def window(
        self, window: Window, *, early: Duration | None = None, allowed_lateness: Duration | None = None
    ) -> Windowed:
        """Windows over all rows together; see `Grouped.window`."""
        return Grouped(self, ()).window(window, early=early, allowed_lateness=allowed_lateness)

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
        """Sequences over all rows together; see `Grouped.match`."""
        return Grouped(self, ()).match(
            pattern, within=within, define=define, contiguity=contiguity, measures=measures, skip=skip
        )

    # --- ends -----------------------------------------------------------------------------------------

    def to(self, stream: str, *, type: str, name: str | None = None) -> Flow:
        """Append the rows to a stream, in order of time, key and place (without a window or pattern: as they come).

        Args:
            stream: The stream, of the same log.
            type: The type of the events.
            name: Names the flow: its checkpoint and state in the log are kept under it. By default
                ``"<stream>/<type>"``. Give a flow that has changed another name.
        """
        if self._reads(check_stream(stream)):
            raise FlowError(f"the flow would read what it writes to {stream!r}", hint="Let it write to another stream")
        check_label(type, "type name")
        return msgspec.structs.replace(self, sink=Sink(stream, type, name or f"{stream}/{type}"))

    def late_to(self, stream: str, *, type: str = "Late") -> Flow:
        """Append rows that come late, or have no time, to a stream of their own, as they are.

        They are counted in any case. Only windows and patterns leave late rows out; they count as late where
        they meet the first of them, so rows that were filtered out before do not.
        """
        if self._reads(check_stream(stream)):
            raise FlowError(f"the flow would read the late rows it writes to {stream!r}", hint="Use another stream")
        return msgspec.structs.replace(self, late=(stream, check_label(type, "type name")))

    def _reads(self, stream: str) -> bool:
        """Whether a stream is the source, or in the category that is."""
        return any(source.reads(stream) for source in sources_of(self))

    @property
    def _flow(self) -> Flow:
        return self

    @property
    def _order(self) -> Order:
        return order_of(self)

    @property
    def _ordered(self) -> bool:
        return self._order != "log"

    def _with(self, stage: Stage, **changes: Any) -> Flow:
        if self.sink is not None:
            raise FlowError("the flow has ended with to()", hint="Put to() last")
        check_follows(self.stages, stage)
        check_after(self.stages, stage)
        return msgspec.structs.replace(self, stages=(*self.stages, stage), **changes)


def stream(
    name: str,
    *,
    time: str | None = None,
    lateness: Duration = "0s",
    types: Types = None,
    ahead: Duration | None = None,
    idle: Duration | None = None,
) -> Flow:
    """The rows of a stream of the log, or of a category such as ``"clicks-*"``.

    The watermark before a row is the greatest event time of the rows before it in the log, less
    ``lateness``. A row below it is late. So what is late, and what a flow gives, is decided by the log
    alone; it also means that windows of a stream that has gone silent stay open until its next row, unless ``idle``
    says otherwise.

    Args:
        name: The stream.
        time: The column with the event time: a datetime (without a zone: UTC), a date, or ISO 8601 text. By
            default the time at which the log recorded the event.
        lateness: How far behind the latest row a row may come.
        types: The types of events that are rows: classes or names. By default all; that a stream was closed is
            never a row.
        ahead: How far a row's time may be ahead of the time at which the log recorded it. One that is further ahead
            counts as one without a time: it is late, and moves no watermark.
        idle: After so long without a row (by the log's clock) a running flow has the log say, in stream ``"$idle"``,
            that the source is silent: its event time then goes on as the clock does, from its last row, and again
            after as long, until no result waits for it. What the log says holds for replays too.

    Example:
        >>> import millstream as ms
        >>> import polars as pl
        >>> clicks = ms.stream("clicks", time="ts", lateness="2s", ahead="1h", idle="1m")
        >>> counts = clicks.group_by("user").window(ms.tumbling("5m")).agg(clicks=pl.len())
    """
    if idle is not None and span_micros("idle=", idle) == 0:
        raise UsageError("a source that is silent at once", hint="Give idle= a duration such as '1m'")
    if time is not None and not isinstance(time, str):
        raise UsageError(f"time={time!r:.60} is no name of a column", hint="Write time='ts'")
    if time is not None:
        check_one(time)
    if not isinstance(name, str) or name != "*":
        check_stream(name.removesuffix("*") if isinstance(name, str) else name)
    return Flow(
        Source(
            name,
            time,
            span_micros("lateness=", lateness),
            type_names(types),
            None if ahead is None else span_micros("ahead=", ahead),
            None if idle is None else span_micros("idle=", idle),
        )
    )


def _expression(given: IntoExpr) -> pl.Expr:
    """What Polars' own verbs take it for: text names a column, and any other value stands for itself."""
    if isinstance(given, str):
        return pl.col(given)
    if callable(given) and not isinstance(given, pl.Expr):
        raise UsageError(f"{given!r:.60} is a function", hint="Give an expression of Polars; or map_rows(function, …)")
    return given if isinstance(given, pl.Expr) else pl.lit(given)


def _expressions(where: str, columns: Iterable[IntoExpr], named: Mapping[str, IntoExpr]) -> list[pl.Expr]:
    expressions = [_expression(each) for each in columns]
    expressions += [_expression(value).alias(name) for name, value in named.items()]
    if not expressions:
        raise UsageError(f"{where} needs a column", hint="Name at least one")
    check_rowwise(expressions, where)
    for expression in expressions:
        if not expression.meta.has_multiple_outputs():
            check_name(expression.meta.output_name())
    return expressions
