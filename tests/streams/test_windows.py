from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from referee import START, agree, clicks, play

from millstream.errors import UsageError
from millstream.streams import Flow, hopping, sliding, stream, tumbling

source = stream("clicks", time="ts", lateness="2s")
UNITS = {"s": "second", "m": "minute", "h": "hour"}

WINDOWS = """
    select user, w as window_start, w + interval {size} as window_end, {aggregates}
    from rows, lateral (
        select time_bucket(interval {every}, ts) - unnest(range(0, {count})) * interval {every} as w
    )
    where ts >= w and ts < w + interval {size}
    group by user, w
"""


def of(flow: Flow, size: str, every: str | None = None) -> Flow:
    window = hopping(size, every=every) if every else tumbling(size)
    return (
        flow.group_by("user")
        .window(window)
        .agg(
            clicks=pl.len(),
            total=pl.col("amount").sum(),
            least=pl.col("amount").min(),
            most=pl.col("amount").max(),
            mean=pl.col("amount").mean(),
            purchases=(pl.col("kind") == "purchase").sum(),
            spent=pl.col("amount").filter(pl.col("kind") == "purchase").sum(),
        )
    )


AGGREGATES = """
    count(*) as clicks, sum(amount)::bigint as total, min(amount) as least, max(amount) as most,
    sum(amount) / count(amount)::double as mean, count(*) filter (kind = 'purchase') as purchases,
    coalesce(sum(amount) filter (kind = 'purchase'), 0)::bigint as spent
"""


@pytest.mark.parametrize(
    ("size", "every"), [("5m", None), ("5m", "1m"), ("5m", "2m"), ("7s", "3s"), ("1h", "1h"), ("10m", "4m")]
)
@pytest.mark.parametrize(("seed", "texts"), [(0, False), (1, True), (2, False), (3, True)])
def test_windows_hold_what_sql_says_in_batches_of_any_size(
    seed: int, texts: bool, size: str, every: str | None
) -> None:
    rows = clicks(seed, texts=texts)
    result = play(of(source, size, every), rows, seed)

    def sql(duration: str) -> str:
        return f"'{duration[:-1]} {UNITS[duration[-1]]}'"

    query = WINDOWS.format(size=sql(size), every=sql(every or size), aggregates=AGGREGATES, count=5)
    agree(result, query, rows=rows)


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_out_in_order_of_window_end_and_key_whatever_the_batches(seed: int) -> None:
    rows = clicks(7)
    flow = of(source, "5m", "1m")
    whole = play(flow, rows)
    assert play(flow, rows, seed).equals(whole)
    assert whole.equals(whole.sort("window_end", "user"))


def test_a_window_closes_when_the_watermark_reaches_its_end_and_not_before() -> None:
    def counted(*seconds: int) -> list[int]:
        rows = pl.DataFrame({"ts": [START + timedelta(seconds=s) for s in seconds]})
        result = play(source.window(tumbling("10s")).agg(n=pl.len()), rows, final=False)
        return result["n"].to_list() if result.width else []

    assert counted(1, 9, 11) == []
    assert counted(1, 9, 12) == [2]
    assert counted(1, 9, 12, 25) == [2, 1]


def test_a_window_over_all_rows_needs_no_key() -> None:
    rows = clicks(3)
    result = play(source.window(tumbling("5m")).agg(n=pl.len(), total=pl.col("amount").sum()), rows, 3)
    agree(
        result,
        """select time_bucket(interval '5 minute', ts) as window_start, window_start + interval '5 minute'
           as window_end, count(*) as n, sum(amount)::bigint as total from rows group by 1""",
        rows=rows,
    )


def test_several_keys_and_arithmetic_of_aggregates() -> None:
    rows = clicks(4)
    flow = (
        source.group_by("user", "kind")
        .window(tumbling("20m"))
        .agg(per=pl.col("amount").sum() / pl.len(), span=pl.col("amount").max() - pl.col("amount").min() + 1)
    )
    agree(
        play(flow, rows, 4),
        """select user, kind, time_bucket(interval '20 minute', ts) as window_start, window_start +
           interval '20 minute' as window_end, sum(amount) / count(*)::double as per,
           max(amount) - min(amount) + 1 as span from rows group by 1, 2, 3""",
        rows=rows,
    )


def test_times_before_1970_fall_into_windows_too() -> None:
    rows = pl.DataFrame({"ts": ["1969-12-31T23:59:59Z", "1969-12-31T23:50:01Z"]})
    result = play(stream("s", time="ts", lateness="1h").window(tumbling("10m")).agg(n=pl.len()), rows)
    assert result["n"].to_list() == [2]
    assert str(result["window_start"][0]) == "1969-12-31 23:50:00+00:00"


def test_counts_and_sums_are_64_bits_wide() -> None:
    rows = pl.DataFrame({"ts": [START] * 3, "x": pl.Series([2**31 - 1] * 3, dtype=pl.Int32)})
    result = play(source.window(tumbling("1m")).agg(n=pl.len(), total=pl.col("x").sum()), rows, 1)
    assert result.schema["n"] == pl.Int64
    assert result["total"].item() == 3 * (2**31 - 1)


def test_windows_can_follow_windows() -> None:
    rows = clicks(5)
    flow = (
        source.group_by("user", "kind")
        .window(tumbling("1m"))
        .agg(n=pl.len())
        .group_by("user")
        .window(tumbling("10m"))
        .agg(most=pl.col("n").max(), kinds=pl.len())
    )
    assert play(flow, rows, 5).equals(play(flow, rows))
    first = source.group_by("user", "kind").window(tumbling("1m")).agg(n=pl.len())
    assert play(flow, rows)["kinds"].sum() == play(first, rows).height


def test_windows_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="leave rows out"):
        hopping("1m", every="5m")
    with pytest.raises(UsageError, match="zero"):
        tumbling("0s")
    with pytest.raises(UsageError, match="two output columns"):
        source.group_by("user").window(tumbling("1m")).agg(user=pl.len())


def test_a_window_after_a_window_counts_each_result_where_its_rows_were() -> None:
    rows = pl.DataFrame({"ts": [START + timedelta(seconds=10 * n) for n in range(90)]})
    minutes = stream("s", time="ts").window(tumbling("1m")).agg(n=pl.len())
    fives = minutes.window(tumbling("5m")).agg(total=pl.col("n").sum())
    for seed in (None, 1, 2):
        assert play(fives, rows, seed)["total"].to_list() == [30, 30, 30]
    assert play(minutes, rows)["window_end"][0] == START + timedelta(minutes=1)
    trailing = minutes.select("n").window(sliding("2m")).agg(total=pl.col("n").sum())
    assert play(trailing, rows, 1)["total"].to_list() == [6, 12, *[18] * 13]


def test_aggregates_may_have_the_names_of_their_expressions() -> None:
    rows = pl.DataFrame({"k": ["a", "a", "b"], "v": [1, 2, 3], "ts": [START + timedelta(seconds=n) for n in range(3)]})
    windows = stream("s", time="ts").group_by("k").window(tumbling("1m"))
    named = windows.agg(v=pl.col("v").sum(), n=pl.len(), most=pl.col("v").max())
    assert (
        windows.agg(pl.col("v").sum(), pl.len().alias("n"), most=pl.col("v").max()).over(rows).equals(named.over(rows))
    )
    for wrong in (["v"], [pl.all().sum()], [pl.col("v").sum(), pl.col("v").max()], [pl.col("v").min().alias("most")]):
        with pytest.raises(UsageError):
            windows.agg(*wrong, most=pl.col("v").max())
    with pytest.raises(AttributeError, match="aggregate them first"):
        windows.to("x", type="WindowsX")
