"""Windows by SQL: which rows each has, by its definition over all rows at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from ...time import to_micros
from ..calendars import CalendarWindows
from ..columns import is_hidden
from ..counted import CountWindows
from ..errors import CannotCheck
from ..sessions import SessionWindows
from ..trailing import SlidingWindows
from ..windows import PaneWindows
from .aggregates import Plan
from .engine import AT, PLACE, Engine, equal, keyed, keys_of, names, with_keys

_UTC = pl.Datetime("us", "UTC")

Windows = PaneWindows | SessionWindows | CountWindows | CalendarWindows
_UNITS = {"1h": "hour", "1d": "day", "1w": "week", "1mo": "month", "1q": "quarter", "1y": "year"}
_MINUTE = timedelta(minutes=1)
_STEPS = {"1q": "3 months"}


def _strokes(engine: Engine, stage: CalendarWindows, table: pl.DataFrame) -> pl.DataFrame:
    """The moments in which the windows begin that rows are in, and those in which they end."""
    name, unit = stage.window.zone.replace("'", "''"), _UNITS[stage.window.every]
    step = _STEPS.get(stage.window.every, f"1 {unit}")
    shown = f"date_trunc('{unit}', make_timestamptz(ts) at time zone '{name}')::timestamp"
    found = engine.ask(
        f"select distinct {shown} + i * interval '{step}' as shown from t, range(3) as steps (i)", t=table
    )
    zone = ZoneInfo(stage.window.zone)
    try:
        # An hour is struck whenever the clocks show it, a day begins the first time.
        each = [_shown(stroke, zone)[: None if unit == "hour" else 1] for stroke in found["shown"]]
    except (ValueError, OverflowError) as error:
        raise CannotCheck("a calendar window", "it is at the end of the years that Python knows") from error
    moments = {to_micros(moment) for some in each for moment in some}
    return pl.DataFrame({"struck": sorted(moments)}, schema={"struck": pl.Int64})


def _shown(stroke: datetime, zone: ZoneInfo) -> list[datetime]:
    """When the clocks of a zone show a time, once or twice; where they jump over it, the first minute after that."""
    both = [stroke.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    there = [moment for moment in both if moment.astimezone(zone).replace(tzinfo=None) == stroke]
    if there:
        return sorted(there)
    moment = both[0]
    while (moment - _MINUTE).astimezone(zone).replace(tzinfo=None) >= stroke:
        moment -= _MINUTE
    return [moment]


def windowed(engine: Engine, stage: Windows, rows: pl.DataFrame, watermark: int) -> pl.DataFrame:
    """The windows that the watermark has passed, of rows that are in time.

    Which rows a window has (``row``, ``number``), where it starts and finishes, is one query; its aggregates another.
    """
    keys, count = list(stage.keys), len(stage.keys)
    table = keyed(rows, keys)
    beside = {"strokes": _strokes(engine, stage, table)} if isinstance(stage, CalendarWindows) else {}
    labels = engine.ask(_labels(stage, count, watermark), t=table, **beside)
    windows = labels.group_by("number").agg(pl.col("rn", "start", "finish", "ts").first())
    windows = windows.sort("number")
    found = Plan(stage.aggregation.given, stage.aggregation.names).of_groups(
        engine, rows, labels.select("rn", "number")
    )
    result = pl.DataFrame(
        [
            *rows.select(pl.col(keys).gather(windows["rn"])).get_columns(),
            windows["start"].cast(_UTC).alias("window_start"),
            windows["finish"].cast(_UTC).alias("window_end"),
            *found.drop("number").get_columns(),
            windows["ts"].alias(AT),
        ]
    )
    return placed(engine, result, keys)


def placed(engine: Engine, result: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Results with their place among those of one time: by key, nulls first."""
    order = ", ".join(["ts", *(f"k{n} nulls first" for n in range(len(keys))), "rn"])
    table = keyed(result.with_columns(pl.lit(0, pl.Int64).alias(PLACE)), keys)
    places = engine.ask(f"select rn, row_number() over (order by {order}) as place from t order by rn", t=table)
    return with_keys(result.with_columns(places["place"].alias(PLACE)), keys)


def _labels(stage: Windows, count: int, watermark: int) -> str:
    keys = names(count)
    by = names(count, first="start")
    number = f"dense_rank() over (order by {by}) as number"
    match stage:
        case PaneWindows():
            size, every = stage.window.size, stage.window.every
            # The last start at or before a row, and those before it whose windows still hold the row.
            last = f"(ts - ((ts % {every}) + {every}) % {every})"
            return f"""
                with starts as (
                    select rn, unnest(range({last}, ts - {size}, -{every})) as start, {names(count, "t")} from t
                )
                select rn, start, start + {size} as finish, start + {size} - 1 as ts, {number}
                from starts where start + {size} <= {watermark}
            """
        case CalendarWindows():
            return f"""
                with spans as (select struck as start, lead(struck) over (order by struck) as finish from strokes),
                starts as (
                    select rn, start, finish, {names(count, "t")} from t asof join spans on t.ts >= spans.start
                )
                select rn, start, finish, finish - 1 as ts, {number} from starts where finish <= {watermark}
            """
        case SessionWindows():
            gap = stage.window.gap
            partition = f"partition by {keys} order by ts"
            return f"""
                with marked as (
                    select *, coalesce(ts - lag(ts) over ({partition}, place) >= {gap}, true) as begins from t
                ), numbered as (
                    select *, sum(begins::int) over ({partition}, place rows unbounded preceding) as session from marked
                ), spans as (
                    select rn, min(ts) over (partition by {keys}, session) as start,
                           max(ts) over (partition by {keys}, session) + {gap} as finish, {keys} from numbered
                )
                select rn, start, finish, finish - 1 as ts, {number} from spans where finish <= {watermark}
            """
        case CountWindows():
            size = stage.window.rows
            return f"""
                with counted as (
                    select *, (row_number() over (partition by {keys} order by ts, place) - 1) // {size} as nth
                    from t where ts < {watermark}
                ), spans as (
                    select rn, nth, min(ts) over (partition by {keys}, nth) as start,
                           max(ts) over (partition by {keys}, nth) as finish,
                           count(*) over (partition by {keys}, nth) as held, {names(count, "counted")} from counted
                )
                select rn, start, finish, finish as ts, dense_rank() over (order by {names(count, first="nth")})
                       as number from spans where held = {size}
            """


def slid(engine: Engine, stage: SlidingWindows, rows: pl.DataFrame, watermark: int) -> pl.DataFrame:
    """Each row that the watermark has passed, with the aggregates of the span that ends with it."""
    rows = rows.filter(pl.col(AT) < watermark)
    keys, count = list(stage.keys), len(stage.keys)
    span = stage.window.size if stage.window.closed == "both" else stage.window.size - 1
    plan = Plan(stage.aggregation.given, stage.aggregation.names)
    table = keyed(rows, keys)
    if plan.over_windows:
        found = plan.over_spans(engine, rows, table, names(count, "t"), span)
    else:
        query = f"""
            select a.rn as number, b.rn from t a join t b
            on {equal(count, "a", "b", "is not distinct from")} and b.ts between a.ts - {span} and a.ts
        """
        found = plan.of_groups(engine, rows, engine.ask(query, t=table))
    # Of a column of the same name as one that comes out here nobody asks any more, or the flow would not run.
    own = {*keys, "window_start", "window_end", *stage.aggregation.names}
    others = [name for name in rows.columns if name not in own and not is_hidden(name)]
    kept = [name for name in rows.columns if is_hidden(name) and name not in keys_of(rows)]
    at = pl.col(AT)
    result = rows.select(
        *keys,
        (at - stage.window.size).cast(_UTC).alias("window_start"),
        at.cast(_UTC).alias("window_end"),
        *others,
        *kept,
    ).with_columns(found.drop(found.columns[0]).get_columns())
    return with_keys(result, keys)
