from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from referee import START, agree, clicks, play

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import FlowError, UnsupportedExpression, compiled, sliding, stream, tumbling


@pytest.fixture(autouse=True, params=["by arrays", "by loops"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by loops":
        monkeypatch.setattr(compiled, "ROWS", 1)
        monkeypatch.setattr(compiled, "SOON", 0)


source = stream("clicks", time="ts", lateness="2s")

SPANS = """
    select user, ts - interval '5 minute' as window_start, ts as window_end, ts, kind, amount,
        count(*) over spans as n, count(*) filter (kind = 'click') over spans as clicks,
        (sum(amount) over spans)::bigint as total
    from rows window spans as (
        partition by user order by ts range between interval {span} preceding and current row)
"""


@pytest.mark.parametrize(("closed", "span"), [("both", "'5 minute'"), ("right", "'299999999 us'")])
@pytest.mark.parametrize(("seed", "texts"), [(0, False), (1, True), (2, False), (3, True)])
def test_each_row_gets_the_counts_and_sums_of_its_trailing_span(seed: int, closed: str, span: str, texts: bool) -> None:
    rows = clicks(seed, texts=texts)
    flow = (
        source.group_by("user")
        .window(sliding("5m", closed=closed))
        .agg(  # type: ignore[arg-type]
            n=pl.len(), clicks=(pl.col("kind") == "click").sum(), total=pl.col("amount").sum()
        )
    )
    result = play(flow, rows, seed)
    agree(result, SPANS.format(span=span), rows=rows)
    assert result.equals(play(flow, rows))


@pytest.mark.parametrize("seed", range(3))
def test_keys_of_several_columns_and_no_key_at_all(seed: int) -> None:
    rows = clicks(seed)
    for keys in (["user", "kind"], ["kind", "amount"], []):
        grouped = source.group_by(*keys) if keys else source
        flow = grouped.window(sliding("90s")).agg(n=pl.len()).select(*keys, "ts", "n")
        partition = f"partition by {', '.join(keys)}" if keys else ""
        listed = "".join(f"{key}, " for key in keys)
        agree(
            play(flow, rows, seed),
            f"""select {listed} ts, count(*) over (
                {partition} order by ts range between interval '90 second' preceding and current row
            ) as n from rows""",
            rows=rows,
        )


def test_the_rows_that_pass_a_threshold_come_in_order_of_time_key_and_place() -> None:
    rows = clicks(1, 5_000)
    flow = source.group_by("user").window(sliding("5m")).agg(n=pl.len()).filter(pl.col("n") >= 50)
    result = play(flow, rows, 1)
    assert result.height
    assert result.equals(result.sort("window_end", "user", maintain_order=True))


@pytest.mark.parametrize("seed", range(3))
def test_stretches_of_silence_and_a_stamp_in_the_far_future_change_nothing(seed: int) -> None:
    rows = clicks(seed, 300)
    shifted = [rows.with_columns(pl.col("ts") + timedelta(days=days)) for days in (0, 40, 4_000, 365 * 900)]
    rows = pl.concat(shifted)
    flow = source.group_by("user").window(sliding("5m")).agg(n=pl.len()).select("user", "ts", "n")
    result = play(flow, rows, seed)
    agree(
        result,
        """select user, ts, count(*) over (partition by user order by ts
           range between interval '5 minute' preceding and current row) as n from rows""",
        rows=rows,
    )
    assert result.equals(play(flow, rows))


def test_keys_that_are_large_negative_or_both_are_told_apart() -> None:
    users = [0, -1, 1, 2**62, -(2**62), 2**63 - 1, None]
    rows = pl.DataFrame({"user": users * 3, "ts": [START] * 21}, schema_overrides={"user": pl.Int64})
    for seed in (None, 1, 2, 3):
        result = play(source.group_by("user").window(sliding("1m")).agg(n=pl.len()), rows, seed)
        assert result["n"].to_list() == [3] * 21


def test_what_is_not_one_value_of_a_span_is_refused_by_name() -> None:
    window = source.group_by("user").window(sliding("5m"))
    with pytest.raises(UnsupportedExpression, match="not one value"):
        window.agg(all=pl.col("amount"))


def test_zero_is_one_key_whatever_its_sign_and_a_list_is_none() -> None:
    window = source.group_by("x").window(sliding("5m")).agg(n=pl.len())
    rows = pl.DataFrame({"x": [0.0, -0.0, 1.0], "ts": [START] * 3})
    for seed in (None, 1):
        assert sorted(play(window, rows, seed)["n"].to_list()) == [1, 2, 2]
    with pytest.raises(FlowError, match="no key"):
        play(window, rows.with_columns(pl.concat_list("x").alias("x")))


def test_the_past_of_nothing_has_the_columns_of_a_result_and_what_is_no_past_is_refused() -> None:
    rows = clicks(1, 0)
    for window, columns in (
        (sliding("5m"), ["user", "window_start", "window_end", "ts", "kind", "amount", "n"]),
        (tumbling("5m"), ["user", "window_start", "window_end", "n"]),
    ):
        assert source.group_by("user").window(window).agg(n=pl.len()).over(rows).columns == columns
    with pytest.raises(UsageError, match="no past"):
        source.over("x")  # type: ignore[arg-type]


def test_a_long_span_of_many_rows_of_few_keys_goes_on_where_it_was() -> None:
    times = pl.Series([START] * 20_000).dt.offset_by("0s") + pl.Series(range(20_000)).cast(pl.Duration("us"))
    rows = pl.DataFrame({"user": [n % 500 for n in range(20_000)], "ts": times})
    flow = stream("clicks", time="ts").group_by("user").window(sliding("3650d")).agg(n=pl.len())
    with ms.open() as log:
        log.append("clicks", rows, type="SpanClick")
        ended = flow.to("out", type="SpanCounted")
        ms.run(log, ended, until="head")
        log.append("clicks", rows.tail(500).with_columns(pl.col("ts") + timedelta(seconds=1)), type="SpanClick")
        ms.run(log, ended, until="head")
        assert log.scan("out").collect()["n"].tail(499).to_list() == [41] * 499


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_no_text_is_the_key_that_null_is(seed: int | None) -> None:
    keys = [None, "\0null", None, "", "\0null", "-", None]
    ts = [START + timedelta(seconds=n) for n in range(len(keys))]
    rows = pl.DataFrame({"k": keys, "l": [None] * len(keys), "ts": ts}, schema_overrides={"l": pl.String})
    for by in (["k"], ["k", "l"], ["l", "k"]):
        grouped = source.group_by(*by)
        found = play(grouped.window(sliding("1h")).agg(n=pl.len()), rows, seed)
        assert found["n"].to_list() == [1, 1, 2, 1, 2, 1, 3]
        matched = play(grouped.match("a{2,}", within="1h", define={"a": pl.lit(True)}), rows, seed)
        assert sorted(matched.select("k", "events").rows(), key=str) == [("\0null", 2), (None, 3)]
    nobody = play(source.group_by("l").match("a{7}", within="1h", define={"a": pl.lit(True)}), rows, seed)
    assert nobody.select("l", "events").rows() == [(None, 7)]
