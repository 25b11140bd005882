from __future__ import annotations

import random
from datetime import timedelta
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from referee import START, agree, clicks
from trees import in_time, play_tree, played

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import FlowError, run, stream, tumbling
from millstream.streams.replay import replay
from millstream.streams.runner import Worker

left = stream("a", time="ts", lateness="2s").select("user", "kind", "ts", "n")
right = stream("b", time="ts", lateness="5s").select("user", "amount", "ts", "m")


def two(seed: int, count: int = 250) -> dict[str, pl.DataFrame]:
    a, b = clicks(seed, count, minutes=20), clicks(seed + 1, count // 2, minutes=20, late=5)
    return in_time(seed, "ts", a=a.with_row_index("n"), b=b.with_row_index("m"))


INTERVAL = """
    with p as (
        select a.n, b.m from a join b on a.user = b.user and b.ts >= a.ts - interval '{back} seconds'
        and b.ts <= a.ts + interval '{ahead} seconds'
    )
    {query}
"""
QUERIES = {
    "inner": "select n, m from p",
    "left": "select a.n, p.m from a left join p on a.n = p.n",
    "full": "select a.n, p.m from a left join p on a.n = p.n union all "
    "select null as n, m from b where m not in (select m from p)",
    "semi": "select n from a where n in (select n from p)",
    "anti": "select n from a where n not in (select n from p)",
}
NOTHING = pl.DataFrame(schema={"n": pl.UInt32, "m": pl.UInt32})
How = Literal["inner", "left", "full", "semi", "anti"]


@settings(max_examples=30)
@given(
    st.integers(0, 10_000), st.sampled_from([0, 5, 60]), st.sampled_from([0, 7, 120]), st.sampled_from(list(QUERIES))
)
def test_pairs_within_an_interval_are_those_of_sql(seed: int, back: int, ahead: int, how: How) -> None:
    rows = two(seed)
    flow = left.join(right, on="user", back=f"{back}s", ahead=f"{ahead}s", how=how, prefix="b_")
    result = play_tree(flow, rows, seed)
    found = result.rename({"b_m": "m"}, strict=False) if result.width else NOTHING
    found = found.select("n") if how in ("semi", "anti") else found.select("n", "m")
    agree(found, INTERVAL.format(back=back, ahead=ahead, query=QUERIES[how]), **rows)
    assert result.equals(play_tree(flow, rows))


def test_pairs_come_in_order_of_the_later_time_and_key() -> None:
    result = play_tree(left.join(right, on=["user"], ahead="2m", prefix="b_"), two(4), 4)
    assert result.columns == ["user", "kind", "ts", "n", "b_amount", "b_ts", "b_m"]
    order = result.select(pl.max_horizontal("ts", "b_ts").alias("at"), "user", "ts", "n", "b_ts", "b_m")
    assert order.equals(order.sort("at", "user", "ts", "n", "b_ts", "b_m", nulls_last=False))
    assert result.height > 50


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([None, 0, 10, 120]), st.booleans())
def test_a_row_meets_the_table_as_it_stood_at_its_time(seed: int, within: int | None, inner: bool) -> None:
    rows = two(seed)
    flow = left.join_asof(
        right,
        on="user",
        within=None if within is None else f"{within}s",
        how="inner" if inner else "left",
        prefix="b_",
        delete=pl.col("amount") < -20,
    )
    result = play_tree(flow, rows, seed)
    near = "true" if within is None else f"b.ts >= a.ts - interval '{within} seconds'"
    query = f"""
        with last as (
            select a.n, arg_max(b, (b.ts, b.m)) as b from a join b on a.user = b.user and b.ts <= a.ts and {near}
            group by a.n
        )
        select a.n, case when last.b.amount >= -20 then last.b.m end as m from a left join last on a.n = last.n
    """
    if inner:
        query = f"select * from ({query}) where m is not null"
    found = result.rename({"b_m": "m"}) if result.width else NOTHING
    agree(found.select("n", "m"), query, **rows)
    assert result.equals(play_tree(flow, rows))


def test_a_join_keeps_of_a_table_little_more_than_its_present_rows() -> None:
    r = random.Random(1)
    with ms.open() as log:
        worker = Worker(log, left.join_asof(right, on="user", prefix="b_").to("out", type="Out"))
        for n in range(60):
            ts = [START + timedelta(seconds=10 * n + i) for i in range(10)]
            users = [r.randrange(3) for _ in range(10)]
            log.append("b", pl.DataFrame({"user": users, "amount": 1, "ts": ts, "m": n}), type="B")
            log.append("a", pl.DataFrame({"user": users, "kind": "x", "ts": ts, "n": n}), type="A")
            worker.advance(log.head)
        assert worker.state.operators[0].parts.rows < 200
        assert log.scan("out").collect().height > 500


def test_joined_rows_go_on_into_windows_and_other_joins() -> None:
    rows = two(7)
    paired = left.join(right, on="user", back="30s", ahead="30s", prefix="b_")
    counted = right.group_by("user").window(tumbling("1m")).agg(most=pl.col("amount").max())
    flow = (
        paired.group_by("user")
        .window(tumbling("5m"))
        .agg(pairs=pl.len())
        .join(counted, on="user", back="5m", how="left", prefix="c_")
    )
    whole = play_tree(flow, rows)
    for seed in range(3):
        assert play_tree(flow, rows, seed).equals(whole)
    assert whole.height


def test_a_join_goes_on_after_a_restart_and_late_rows_go_aside(home: str | None) -> None:
    flow = left.join(right, on="user", ahead="1m", how="full", prefix="b_").late_to("late").to("out", type="Out")
    one, other = clicks(1, 400, late=20).with_row_index("n"), clicks(2, 400, late=20).with_row_index("m")
    with ms.open(home) as log:
        for start in range(0, 400, 50):
            log.append("a", one.slice(start, 50), type="Click")
            log.append("b", other.slice(start, 50), type="Click")
            worker = Worker(log, flow, rows=30, commit_every=0)
            while worker.advance(log.head):
                pass
        assert_frame_equal(log.scan("out").collect(), flow.over(log, final=False))
        assert worker.state.late == log.scan("late").collect().height > 0


@pytest.mark.parametrize("seed", range(3))
def test_late_rows_of_both_sides_come_in_the_order_of_the_log(seed: int) -> None:
    a, b = clicks(seed, 200, late=60).with_row_index("n"), clicks(seed + 1, 200, late=60).with_row_index("m")
    rows = in_time(seed, "ts", a=a, b=b)
    flow = stream("a", time="ts").join(stream("b", time="ts"), on="user", back="0s", prefix="b_").late_to("late")
    rows = {name: frame.with_columns(place=pl.col("_position")) for name, frame in rows.items()}
    late = played(flow, rows)[1]
    assert late["place"].is_sorted()
    assert late.height > 50
    assert played(flow, rows, seed)[1].select("place", "user", "ts").equals(late.select("place", "user", "ts"))


def test_types_of_both_sides_may_widen_on_the_way() -> None:
    flow = (
        stream("a", time="ts").join(stream("b", time="ts"), on="k", back="1m", how="left", prefix="b_")
        .to("out", type="Out")
    )  # fmt: skip
    with ms.open() as whole, ms.open() as steps:
        for log in (whole, steps):
            for n, value in enumerate([1, 2, 1.5, 3, "text", 4, None, 5]):
                at = (START + timedelta(seconds=n)).isoformat()
                log.append("b", ms.Plain("B", {"k": n % 2, "v": value, "ts": at}))
                log.append("a", ms.Plain("A", {"k": n % 2, "w": value, "ts": at}))
                if log is steps:
                    run(log, flow, until="head")
            run(log, flow, until="head")
        found = [[(e.type, e.data) for e in log.read("out")] for log in (whole, steps)]
        assert found[0] == found[1]
        assert len(found[0]) > 8


def test_rows_without_a_number_for_a_key_meet_however_few_come_at_a_time() -> None:
    keys = [float("nan"), 1.5, float("nan"), None, -0.0, 0.0]
    rows = pl.DataFrame({"k": keys, "v": range(6), "ts": [START + timedelta(seconds=s) for s in range(6)]})
    numbered = stream("a", time="ts").select("k", "v")
    flows = [
        numbered.join(numbered.select("k", other="v"), on="k", back="1h"),
        numbered.join_asof(numbered.select("k", other="v"), on="k", strategy="nearest", within="1h", how="inner"),
        numbered.join_latest(numbered.select("k", other="v"), on="k", how="inner"),
    ]
    pairs = [{(0, 0), (0, 2), (1, 1), (2, 2), (4, 4), (4, 5), (5, 5)}] + [{(n, n) for n in (0, 1, 2, 4, 5)}] * 2
    with ms.open() as log:
        for row in rows.iter_slices(1):
            log.append("a", row, type="JoinedNumber")
        for flow, wanted in zip(flows, pairs, strict=True):
            for size in (1, 2, 100):
                found = replay(flow, log, rows=size)
                assert sorted(found.select("other", "v").rows()) == sorted(wanted)
            assert flow.explain(log, found.row(-1, named=True)).positions
            assert flow.check(log).equal


@pytest.mark.parametrize(
    ("theirs", "keys"),
    [
        (pl.Series([2**64 - 1, 5], dtype=pl.UInt64), ["18446744073709551615", "5", "1"]),
        (pl.Series([START.replace(tzinfo=None), None]), ["2024-01-15T12:00:00", "5", "1", None]),
        (pl.Series([2**60 + 1, 5]), [2**60 + 1, 5, 1]),
    ],
    ids=["unsigned", "times", "longer"],
)
def test_keys_of_two_types_come_out_of_a_full_join_in_the_type_that_they_are_compared_in(
    theirs: pl.Series, keys: list[Any]
) -> None:
    ts = [START, START + timedelta(seconds=1)]
    one, other = stream("a", time="ts").select("k", "v"), stream("b", time="ts").select("k", "w")
    with ms.open() as log:
        log.append("a", pl.DataFrame({"k": pl.Series([5, 1], dtype=pl.Int8), "v": 1, "ts": ts}), type="JoinedOne")
        log.append("b", pl.DataFrame({"k": theirs, "w": 1, "ts": ts}), type="JoinedOther")
        for flow in (
            one.join(other, on="k", back="9s", ahead="9s", how="full"),
            one.join(other, on="k", window=tumbling("9s"), how="full"),
        ):
            found = flow.over(log)
            assert sorted(map(str, found["k"])) == sorted(map(str, keys))
            assert found["k"].dtype == pl.DataFrame({"k": keys}).schema["k"]
            assert replay(flow, log, rows=1).rows() == found.rows()
            assert flow.check(log).equal


def test_joins_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="how='outer'"):
        left.join(right, on="user", how="outer")  # type: ignore[arg-type]
    with pytest.raises(FlowError, match="ended"):
        left.join(right.to("x", type="X"), on="user", back="1s")
    with pytest.raises(FlowError, match="'ts'"):
        play_tree(left.join(right, on="user", back="1s"), two(1))
    with pytest.raises(ms.MissingColumn, match="'nobody'"):
        play_tree(left.join(right, on="nobody", ahead="1s"), two(1))
    with pytest.raises(UsageError, match="how far apart"):
        left.join(right, on="user")


def test_two_flows_that_begin_alike_may_ask_different_columns_of_what_they_share() -> None:
    each = stream("a", time="ts", lateness="2s").group_by("user").window(ms.sliding("5m")).agg(clicks=pl.len())
    pairs = (
        each.filter(pl.col("n") >= 0).select("user", "ts", "kind").join(each.select("user", "n"), on="user", ahead="0s")
    )
    alone = each.select("user", "ts", "kind", "n").join(
        each.select("user", "ts", "kind", "n"), on="user", ahead="0s", prefix="b_"
    )
    rows = {"a": two(7)["a"]}
    found = play_tree(pairs, rows, 7).select("user", "ts", "kind", "n")
    assert found.equals(play_tree(alone, rows, 7).select("user", "ts", "kind", n="b_n"))


@pytest.mark.parametrize("prefix", ["", "plan_"])
def test_what_follows_a_join_may_ask_for_columns_of_either_side_before_there_was_a_row(prefix: str) -> None:
    with ms.open() as log:
        amounts, plans = stream("amounts", time="ts"), stream("plans", time="ts").select("user", "most")
        most = pl.col(f"{prefix}most")
        flows = [
            amounts.join_asof(plans, on="user", prefix=prefix).filter(pl.col("amount") > most),
            amounts.join(plans, on="user", back="1d", prefix=prefix).filter(pl.col("amount") > most),
            amounts.join_latest(plans, on="user", prefix=prefix).alert(pl.col("amount") > most),
        ]
        log.append("plans", pl.DataFrame({"user": [1], "most": [2], "ts": [START]}), type="JoinedPlan")
        for amount in (1, 3, 2.5):
            log.append("amounts", ms.Plain("JoinedAmount", {"user": 1, "amount": amount, "ts": START.isoformat()}))
        for flow in flows:
            result = flow.over(log)
            assert result["amount"].to_list() == [3, 2.5]
            assert result[f"{prefix}most"].to_list() == [2, 2]
            for rows in (1, 2):
                assert replay(flow, log, rows=rows).equals(result)


@pytest.mark.parametrize("how", ["left", "full"])
def test_what_found_no_partner_has_the_columns_of_the_other_side_in_whatever_batches(
    how: Literal["left", "full"],
) -> None:
    events = [("a", 0, {"x": 1}), ("b", 1, {}), ("a", 20, {"x": 1}), ("b", 30, {}), ("a", 100, {"x": 3, "v": 1})]
    with ms.open() as log:
        for number, (name, second, fields) in enumerate([*events, ("b", 31, {"w": 3})]):
            at = (START + timedelta(seconds=second)).isoformat()
            log.append(name, ms.Plain("JoinedLate", {"k": number, "ts": at, **fields}))
        a, b = stream("a", time="ts"), stream("b", time="ts").select("k", "w")
        for flow in (a.join(b, on="k", back="5s", how=how), a.join_asof(b, on="k"), a.filter(pl.col("x") < 3)):
            whole = replay(flow, log, final=False)
            assert whole.schema["v"] == whole.schema.get("w", pl.Int64()) == pl.Int64
            for rows in (1, 2, 3):
                assert replay(flow, log, final=False, rows=rows).equals(whole)
                assert replay(flow, log, final=False, rows=rows).schema == whole.schema
