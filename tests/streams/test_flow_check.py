"""Flows confirmed by a referee that shares nothing with their operators: each kind, and that it sees what is wrong."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import msgspec
import polars as pl
import pytest
from referee import START, clicks

import millstream as ms
from millstream.log.log import Log
from millstream.streams import CannotCheck, Flow, calendar, count, hopping, run, session, sliding, stream, tumbling
from millstream.streams.flow import Sink
from millstream.streams.runner import Worker
from millstream.testing import FakeClock

left = stream("a", time="ts", lateness="2s")
right = stream("b", time="ts", lateness="3s")
by_user = left.group_by("user")
amount = pl.col("amount")
AGGREGATES = {
    "n": pl.len(),
    "total": amount.sum(),
    "least": amount.min(),
    "kinds": pl.col("kind").n_unique(),
    "rate": (pl.col("kind") == "click").sum() / pl.len(),
    "mean": amount.filter(amount > 0).mean(),
    "spread": amount.std(),
    "last": pl.col("kind").last(),
    "middle": amount.median(),
    "best": amount.top_k(2).implode(),
    "of best": pl.col("kind").bottom_k_by(amount, 2).implode(),
}
MERGEABLE = {name: AGGREGATES[name] for name in ("n", "total", "least", "kinds", "mean", "spread")}
minutes = by_user.window(tumbling("1m")).agg(n=pl.len(), most=amount.max())
other = right.select("user", more="amount", late=pl.col("ts"))

FLOWS: dict[str, Flow] = {
    "filter": left.filter(amount > 3).with_columns(double=amount * 2).select("user", "double", one=pl.lit(1)),
    "tumbling": by_user.window(tumbling("1m")).agg(**AGGREGATES),
    "hopping": left.filter(pl.col("kind") == "click").group_by("user", "kind")
    .window(hopping("5m", every="90s")).agg(**AGGREGATES),
    "no key": left.window(hopping("5m", every="1m")).agg(**AGGREGATES),
    "session": by_user.window(session("20s")).agg(**AGGREGATES),
    "count": by_user.window(count(7)).agg(**AGGREGATES),
    "calendar": by_user.window(calendar("1h", time_zone="America/New_York")).agg(**AGGREGATES),
    "days": by_user.window(calendar("1d", time_zone="Asia/Kolkata")).agg(n=pl.len()),
    "sliding": by_user.window(sliding("1m")).agg(**MERGEABLE),
    "sliding rows": by_user.window(sliding("1m", closed="right")).agg(**AGGREGATES),
    "alert": by_user.window(sliding("1m")).agg(n=pl.len()).alert(pl.col("n") > 2, cooldown="30s"),
    "enter": minutes.alert(pl.col("n") > 1, on="enter", cooldown="2m"),
    "distinct": left.distinct("user", "kind", within="1m"),
    "latest": left.latest("user"),
    "top": minutes.top(2, by="most", per="user").merge(minutes.top(3, by="n", descending=False)),
    "window of windows": minutes.window(tumbling("5m")).agg(n=pl.col("n").sum(), k=pl.len()),
    "merge": left.merge(right).group_by("user").window(tumbling("1m")).agg(**MERGEABLE),
    "merge by time": minutes.merge(right.select("user", "amount")).group_by("user").window(count(5))
    .agg(n=pl.len(), first=pl.col("amount").first()),
    **{
        how: left.join(right, on="user", back="5s", ahead="10s", how=how, prefix="b_")  # type: ignore[arg-type]
        for how in ("inner", "left", "full", "semi", "anti")
    },
    **{
        f"in windows {how}": left.join(right, on="user", window=hopping("1m", every="40s"), how=how, prefix="b_")
        for how in ("inner", "left", "full", "semi", "anti")
    },
    "join on": left.join(right, on=["user", "kind"], ahead="1m", prefix="b_").group_by("user")
    .window(tumbling("1m")).agg(n=pl.len(), last=pl.col("b_amount").last()),
    "as of": left.join_asof(other, on="user", delete=pl.col("more") < 0),
    "as of within": left.join_asof(other, on="user", within="20s", how="inner"),
    "as of nearest": left.join_asof(other, on="user", within="20s", strategy="nearest"),
    "as of later": left.join_asof(other, on="user", within="20s", how="inner", strategy="forward"),
    "as of any": left.join_asof(right.select(more="amount"), on=[]),
    "latest of all": left.join_latest(right.select(more="amount")),
    "best": by_user.window(hopping("3m", every="1m")).agg(
        top=amount.top_k(3).implode(), least=pl.struct("kind", "amount").bottom_k_by("amount", 2).implode()
    ),
    "latest of another": left.join_latest(other, on="user", delete=pl.col("more") < 0),
    "limits": minutes.join_latest(other, on="user", how="inner").alert(pl.col("n") * 20 > pl.col("more")),
}  # fmt: skip


def filled(seed: int, rows: int = 240, late: float = 5) -> Log:
    """A log with rows of two streams in turns, some of them late."""
    log = ms.open()
    a, b = clicks(seed, rows, minutes=8, late=late, users=4), clicks(seed + 1, rows, minutes=8, late=late, users=4)
    for at in range(0, rows, 40):
        log.append("a", a.slice(at, 40), type="CheckedA")
        log.append("b", b.slice(at, 40), type="CheckedB")
    return log


@pytest.mark.parametrize("name", FLOWS)
def test_the_referee_agrees_with_the_flow(name: str) -> None:
    flow = FLOWS[name]
    with filled(0) as log:
        found = flow.check(log)
        assert found.equal, f"{found}\n{found.missing}\n{found.excess}"
        assert not found.written
        assert found.expected == found.rows > 0
    with filled(1) as log:
        run(log, flow.to("out", type="Out"), until="head")
        found = flow.to("out", type="Out").check(log)
        assert found.equal, f"{found}\n{found.missing}\n{found.excess}"
        assert found.written


def test_a_sliding_window_after_another_is_checked_where_nobody_asks_for_the_bounds_of_the_first() -> None:
    first = by_user.window(sliding("10s")).agg(n=pl.len())
    flow = (
        first.group_by("user").window(sliding("1m")).agg(most=pl.max("n")).window(tumbling("1m")).agg(m=pl.max("most"))
    )
    with filled(3) as log:
        found = flow.check(log)
        assert found.equal, f"{found}\n{found.missing}\n{found.excess}"
        assert found.rows


def test_a_source_that_fell_silent_or_ran_ahead_is_read_as_the_flow_reads_it() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        source = stream("a", time="ts", idle="1m", ahead="1h")
        flow = source.group_by("user").window(tumbling("1m")).agg(n=pl.len()).to("out", type="Out")
        times = [START, START + timedelta(days=9), START - timedelta(seconds=5), None]
        log.append("a", pl.DataFrame({"user": 1, "ts": times}), type="CheckedIdle")
        worker = Worker(log, flow)
        for _ in range(2):
            while worker.advance(log.head):
                pass
            clock.advance("5m")
            worker.listen(log.head)
        worker.flush()
        assert log.scan("$idle").collect().height == 1
        found = flow.check(log)
        assert found.equal, found
        assert (found.written, found.rows, found.late) == (True, 1, 3)


def test_a_row_that_was_written_wrongly_is_named() -> None:
    flow = by_user.window(tumbling("1m")).agg(n=pl.len(), mean=amount.mean()).to("out", type="Out")
    with filled(1) as log:
        run(log, flow, until="head")
        wrong = log.scan("out").collect().head(2).with_columns(n=pl.col("n") + 100)
        log.append("out", wrong, type="Out")
        found = flow.check(log)
        assert not found.equal
        assert not found.missing.height
        assert sorted(found.excess["n"]) == sorted(wrong["n"])
        assert str(found).startswith("different")


def test_what_a_flow_with_another_condition_wrote_differs_both_ways() -> None:
    with filled(2) as log:
        run(log, left.filter(amount > 30).to("out", type="Out"), until="head")
        found = left.filter(amount < 40).to("out", type="Out").check(log)
        rows = log.scan("a").collect()
        assert found.missing.height == rows.filter(amount <= 30).height > 0
        assert found.excess.height == rows.filter(amount >= 40).height > 0
        assert found.excess["amount"].min() == 40


def test_what_is_appended_after_a_run_counts_once_the_run_has_seen_it() -> None:
    flow = by_user.window(tumbling("1m")).agg(n=pl.len()).to("out", type="Out")
    with filled(3) as log:
        run(log, flow, until="head")
        before = flow.check(log)
        log.append("a", clicks(9, 200, minutes=30).with_columns(pl.col("ts") + timedelta(hours=1)), type="CheckedA")
        assert flow.check(log).expected == before.expected
        run(log, flow, until="head")
        assert flow.check(log).equal
        assert flow.check(log).expected > before.expected


def test_floats_may_differ_in_their_last_digits_and_no_more() -> None:
    flow = by_user.window(tumbling("1m")).agg(mean=(amount * 0.1).sum()).to("out", type="Out")
    with filled(4) as log:
        rows = flow.over(log, final=False)
        run(log, flow, until="head")
        assert flow.check(log).equal
    for off, agrees in ((1 + 1e-12, True), (1 + 1e-6, False)):
        with filled(4) as log:
            run(log, flow, until="head")
            other = msgspec.structs.replace(flow, sink=Sink("copy", "Out", flow.sink.name))  # type: ignore[union-attr]
            log.append("copy", rows.with_columns(pl.col("mean") * off), type="Out")
            found = other.check(log)
            assert found.equal is agrees
            assert (found.close > 0) is agrees


def test_decimals_that_became_text_on_the_way_are_compared_by_value() -> None:
    class CheckedPrice(ms.Event):
        price: Decimal

    flow = stream("a").select("price").to("out", type="Out")
    with ms.open() as log:
        for price in ("1000", "0", "200.50", "3", "-1E+3"):
            log.append("a", CheckedPrice(price=Decimal(price)))
            run(log, flow, until="head")
        assert [event.data["price"] for event in log.read("out")][:3] == [Decimal(1000), Decimal(0), "200.50"]
        found = flow.check(log)
        assert found.equal, f"{found}\n{found.missing}\n{found.excess}"
        log.append("out", ms.Plain("Out", {"price": "3.01"}))
        assert flow.check(log).excess["price"].to_list() == ["3.01"]


def test_what_cannot_be_said_in_sql_is_refused_by_name() -> None:
    frame = {"a": clicks(1, 20)}
    with ms.open() as log:
        log.append("a", frame["a"], type="CheckedA")
        matched = by_user.match("x", within="1m", define={"x": amount > 0})
        folded = by_user.fold(lambda held, row: held, start={"k": 0}, schema={"k": pl.Int64})
        mapped = left.map_rows(lambda row: 1, schema={"k": pl.Int64})
        counted = by_user.window(tumbling("1m")).agg(n=pl.col("kind").approx_n_unique())
        ranked = by_user.window(tumbling("1m")).agg(n=ms.quantile("amount", 0.5))
        early = by_user.window(tumbling("1m"), early="10s").agg(n=pl.len())
        looked = left.join_asof(ms.table("users", key="user"), on="user", prefix="u_")
        more = (
            (counted, "approx_n_unique"),
            (ranked, "the quantile"),
            (early, "a window with early"),
            (looked, "table"),
        )
        for flow, part in ((matched, "match"), (folded, "fold"), (mapped, "map_rows"), *more):
            with pytest.raises(CannotCheck, match=f"^{part}.* cannot be checked"):
                flow.check(log)
        log.append("a", ms.Plain("CheckedA", {"user": "seven", "ts": START.isoformat()}))
        with pytest.raises(CannotCheck, match="'user'"):
            left.filter(pl.col("user").is_not_null()).check(log)


def test_a_type_that_the_engine_cannot_be_handed_is_refused_by_name() -> None:
    with filled(0) as log, pytest.raises(CannotCheck, match="pli128"):
        left.with_columns(long=amount.cast(pl.Int128)).check(log)


def test_numbers_that_are_not_count_as_the_guide_says() -> None:
    nan = float("nan")
    rows = pl.DataFrame({"x": [1.0, nan, 2.0, nan, None, 5.0], "k": [0, 0, 1, 2, 3, 3], "ts": [START] * 6})
    x = pl.col("x")
    flow = left.group_by("k").window(tumbling("1m")).agg(a=x.min(), b=x.max(), c=x.sum(), d=x.n_unique(), e=x.first())
    with ms.open() as log:
        log.append("a", rows, type="CheckedA")
        assert flow.check(log).equal
