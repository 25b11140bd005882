from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from referee import START, play

import millstream as ms
from millstream.errors import InvalidStreamName, UsageError
from millstream.streams import FlowError, UnsupportedExpression, session, sliding, stream, tumbling

source = stream("clicks", time="ts")
x, y = pl.col("x"), pl.col("y")


@pytest.mark.parametrize(
    "expression",
    [
        x.cum_sum(),
        x.shift(1),
        x > x.mean(),
        x.sum().over("y"),
        x.rank(),
        x.fill_null(strategy="forward"),
        x.is_first_distinct(),
        x.rolling_mean(2),
        x.map_elements(lambda value: value, return_dtype=pl.Int64),
        x.sample(1),
        x.sum(),
        pl.len(),
        pl.lit(pl.Series([1, 2])),
    ],
    ids=str,
)
def test_an_expression_that_depends_on_other_rows_is_refused_by_name(expression: pl.Expr) -> None:
    for verb in (source.filter, source.select, source.with_columns):
        with pytest.raises(UnsupportedExpression) as refused:
            verb(expression)
        assert refused.value.where in str(refused.value)
        assert refused.value.expression == str(expression)


@pytest.mark.parametrize(
    "expression",
    [
        x + y,
        pl.when(x > 1).then(x).otherwise(y),
        x.is_in([1, 2]),
        x.cast(pl.String).str.to_uppercase(),
        pl.struct("x", "y"),
        pl.sum_horizontal("x", "y"),
        pl.lit(1),
        x.fill_null(0),
        x.hash(),
    ],
    ids=str,
)
def test_row_wise_expressions_pass(expression: pl.Expr) -> None:
    rows = pl.DataFrame({"ts": [START] * 3, "x": [1, 2, None], "y": [4, 5, 6]})
    flow = source.with_columns(z=expression)
    assert play(flow, rows)["z"].to_list() == rows.with_columns(z=expression)["z"].to_list()


@pytest.mark.parametrize(
    "aggregate",
    [
        x,
        x.cum_sum(),
        x.head(2),
        x.mode(),
        pl.col("x", "y").sum(),
    ],
    ids=str,
)
def test_what_is_not_one_value_of_a_group_is_refused_by_name(aggregate: pl.Expr) -> None:
    with pytest.raises(UnsupportedExpression) as refused:
        source.window(tumbling("1m")).agg(value=aggregate)
    assert str(aggregate) in str(refused.value)


@pytest.mark.parametrize(
    "aggregate",
    [
        pl.len(),
        x.len(),
        x.count(),
        x.sum(),
        x.min(),
        pl.max("x"),
        x.mean(),
        (x * y).sum(),
        (x > 1).sum(),
        x.filter(y > 4).sum(),
        x.filter(y > 4).len(),
        x.sum() / pl.len(),
        (x.max() - x.min()) * 2 + 1,
        -x.sum(),
        x.sum().cast(pl.Float64),
        x.sum() > y.sum(),
        x.sum().alias("other"),
        x.filter(y > 100).mean(),
        x.filter(y > 100).max(),
        x.median(),
        x.std(),
        x.var(ddof=0),
        x.filter(y > 100).std(),
        x.n_unique(),
        x.filter(y > 4).n_unique(),
        x.first(),
        x.last(),
        x.filter(y > 4).first(),
        x.filter(y > 100).last(),
        x.quantile(0.9),
        x.cum_sum().max(),
        (x - x.mean()).sum(),
        x.sum().round(1),
        x.filter(x > x.mean()).sum() + pl.len(),
        x.sort(descending=True, nulls_last=True).head(2).implode(),
        pl.corr("x", "y"),
        x.sort_by("y").last(),
        x.map_batches(lambda values: values.sort().head(1), return_dtype=pl.Int64, returns_scalar=True),
    ],
    ids=str,
)
def test_aggregates_that_can_be_merged_are_what_polars_says(aggregate: pl.Expr) -> None:
    rows = pl.DataFrame({"ts": [START] * 5, "x": [1, 2, None, 4, -5], "y": [4, 5, 6, 3, 9]})
    flow = source.window(tumbling("1m")).agg(value=aggregate)
    expected = rows.select(value=aggregate)["value"].to_list()
    for seed in (None, 1, 2):
        found = play(flow, rows, seed)["value"].to_list()
        assert found == (pytest.approx(expected, nan_ok=True) if isinstance(expected[0], float) else expected)


def test_decimals_and_unsigned_integers_are_summed_exactly() -> None:
    rows = pl.DataFrame({"ts": [START] * 3}).with_columns(
        d=pl.Series(["0.1", "0.2", "99999999999999.7"]).cast(pl.Decimal(20, 1)),
        u=pl.Series([2**63, 1, 2], dtype=pl.UInt64),
    )
    result = play(source.window(tumbling("1m")).agg(d=pl.col("d").sum(), u=pl.col("u").sum()), rows, 1)
    assert str(result["d"].item()) == "100000000000000.0"
    assert result["u"].item() == 2**63 + 3


def test_text_has_no_sum() -> None:
    rows = pl.DataFrame({"ts": [START], "x": ["a"]})
    with pytest.raises(UnsupportedExpression, match="have no sum"):
        play(source.window(tumbling("1m")).agg(v=x.sum()), rows)


def test_times_have_a_median_but_no_mean() -> None:
    rows = pl.DataFrame({"ts": [START], "x": [START]})
    with pytest.raises(UnsupportedExpression, match="and so no mean"):
        play(source.window(tumbling("1m")).agg(v=x.mean()), rows)
    assert play(source.window(tumbling("1m")).agg(v=x.median()), rows, 1)["v"].item() == START


@pytest.mark.parametrize(
    "window", [tumbling("1m"), session("1m"), sliding("1m")], ids=["tumbling", "session", "sliding"]
)
@pytest.mark.parametrize("value", [[1], {"a": 1}], ids=["a list", "a struct"])
def test_lists_and_structs_have_no_greatest_one(window: Any, value: Any) -> None:
    rows = pl.DataFrame({"ts": [START], "x": [value]})
    with pytest.raises(UnsupportedExpression, match="have no order"):
        play(source.window(window).agg(most=x.max()), rows)


def test_a_time_that_python_does_not_have_is_told_where_rows_become_dicts() -> None:
    far = pl.Series("far", [300_000_000_000_000_000]).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"ts": [START], "x": [1], "far": far})
    ones = {"n": pl.Int64}
    for flow in (
        source.map_rows(lambda row: {"n": 1}, schema=ones),
        source.group_by("x").fold(lambda state, row: {"n": 1}, start={"n": 0}, schema=ones),
    ):
        with pytest.raises(FlowError, match="a value that Python does not have"):
            play(flow, rows)


@pytest.mark.parametrize(
    "far",
    [
        pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date),
        pl.Series([2**63 - 1]).cast(pl.Datetime("us", "UTC")),
        pl.Series([2**63 - 1]).cast(pl.Datetime("ms")),
    ],
    ids=lambda far: str(far.dtype),
)
def test_a_time_that_nobody_has_is_told_wherever_a_row_meets_python_or_a_verb(far: pl.Series) -> None:
    rows = pl.DataFrame({"ts": [START], "far": far})
    grouped, ones = source.group_by("far"), {"n": pl.Int64}
    for flow in (
        source.map_rows(lambda row: {"n": 1}, schema=ones),
        source.with_columns(text=pl.col("far").cast(pl.String)),
        grouped.match("a", within="1m", define={"a": pl.lit(True)}, measures={"n": ms.matched.count("a")}),
        grouped.process(lambda key, row: None, start={"n": 0}, schema=ones, gives=ones, reads=["ts"]),
    ):
        with pytest.raises(FlowError):
            play(flow, rows)
    with ms.open() as log:
        log.append("clicks", rows, type="FarAway")
        log.append("clicks", ms.Plain("FarAway", {"ts": START.isoformat(), "far": "away"}))
        with pytest.raises(ms.MillstreamError, match="a value that Python does not have"):
            source.over(log)


def test_select_keeps_time_and_order_though_their_columns_are_gone() -> None:
    rows = pl.DataFrame({"ts": [START] * 3, "x": [3, 1, 2]})
    flow = source.select("x").group_by("x").window(tumbling("1m")).agg(n=pl.len()).select("n", double=x * 2)
    assert play(flow, rows).rows() == [(1, 2), (1, 4), (1, 6)]
    assert play(source.select(one=pl.lit(1)), rows)["one"].to_list() == [1, 1, 1]
    assert play(source.select(pl.all()), rows).columns == ["ts", "x"]


def test_a_flow_that_has_ended_and_one_that_eats_its_own_output_are_refused() -> None:
    done = source.to("out", type="Out")
    with pytest.raises(FlowError, match="ended"):
        done.filter(x > 1)
    with pytest.raises(FlowError, match="read what it writes"):
        source.to("clicks", type="Out")
    with pytest.raises(UsageError):
        source.group_by()


@pytest.mark.parametrize("name", ["clicks-*", "clicks*", "*"])
def test_a_flow_on_a_category_may_not_write_into_it(name: str) -> None:
    with pytest.raises(FlowError, match="read what it writes"):
        stream(name).to("clicks-out", type="Out")
    with pytest.raises(FlowError, match="late rows it writes"):
        stream(name).late_to("clicks-late")
    assert stream("clicks-*").late_to("late").to("counts", type="Out").sink is not None


@pytest.mark.parametrize("name", ["_stream", "_time", "_position", "__mine"])
def test_a_column_that_would_not_come_out_is_refused_by_name(name: str) -> None:
    for build in (
        lambda: source.group_by(name),
        lambda: source.window(tumbling("1m")).agg(**{name: pl.len()}),
        lambda: source.window(sliding("1m")).agg(**{name: pl.len()}),
        lambda: source.select("x", name),
        lambda: source.select(**{name: x}),
        lambda: source.with_columns(x.alias(name)),
    ):
        with pytest.raises(FlowError, match=name) as refused:
            build()
        assert "with_columns(" in str(refused.value.hint)
    assert source.with_columns(stream=pl.col("_stream")).select("stream").stages


def test_what_is_no_expression_is_refused_where_it_is_written() -> None:
    for given in (lambda row: row["x"] > 1, "x > 1", 1):
        with pytest.raises(UsageError, match="takes Polars' expressions"):
            source.filter(given)
    with pytest.raises(UsageError, match=r"is a function.*map_rows"):
        source.with_columns(z=lambda row: row["x"])
    frame = pl.DataFrame({"x": [1, 2], "ts": ["2024-01-01", "2024-01-02"]})
    assert source.with_columns(z=5, w=None).over(frame).rows() == [
        (1, "2024-01-01", 5, None),
        (2, "2024-01-02", 5, None),
    ]


def test_a_coroutine_that_nobody_would_await_is_refused() -> None:
    async def ask(row: dict) -> int:
        return 1

    for refused in (
        lambda: source.map_rows(ask, schema={"z": pl.Int64}),
        lambda: source.map_batches(ask, schema={"z": pl.Int64}),
        lambda: source.to_function(ask, name="ask"),
    ):
        with pytest.raises(UsageError, match="coroutine"):
            refused()


def test_a_flow_begins_and_ends_with_streams_and_is_run_on_a_log() -> None:
    for name in (5, "", "a*b", "a\n"):
        with pytest.raises(InvalidStreamName):
            stream(name)
    for name in ("x-*", ""):
        with pytest.raises(InvalidStreamName):
            source.to(name, type="X")
    ended = source.to("x", type="X")
    with ms.open() as log:
        with pytest.raises(UsageError, match="is no flow"):
            ms.run(log, [ended], until="head")
        with pytest.raises(UsageError, match="is no log"):
            ms.run(ended, log, until="head")
