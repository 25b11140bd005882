from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from referee import START, clicks, play

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import CannotCheck, FlowError, hopping, session, stream, tumbling

Told = tuple[Any, ...]


def told(
    rows: pl.DataFrame, size: int, every: int, tick: int, lateness: int, *, early: bool, allowed: int
) -> Iterator[Told]:
    """The definition, row by row: user, start in seconds, status, count and sum."""
    held: dict[tuple[int, Any], list[int]] = {}
    fresh: set[tuple[int, Any]] = set()
    given: set[tuple[int, Any]] = set()
    now: int | None = None
    mark: int | None = None

    def result(start: int, user: Any, status: str) -> Told:
        return user, start, status, len(held[start, user]), sum(held[start, user])

    def on(to: int) -> Iterator[Told]:
        nonlocal now
        before = -(10**18) if now is None else now * tick
        if fresh:
            at = (to if now is None else now + 1) * tick
            for start, user in list(held):
                if before < start + size <= at:
                    given.add((start, user))
                    yield result(start, user, "final")
            for start, user in fresh:
                if start + size <= before:
                    yield result(start, user, "corrected" if (start, user) in given else "final")
                    given.add((start, user))
                elif start + size > at and early:
                    yield result(start, user, "early")
            fresh.clear()
            before = at
        for start, user in list(held):
            if before < start + size <= to * tick:
                given.add((start, user))
                yield result(start, user, "final")
        now = to

    for user, at, amount in rows.select("user", pl.col("ts").dt.epoch("s"), "amount").iter_rows():
        if mark is None or at >= mark - allowed:
            start = at // every * every
            while start + size > at:
                held.setdefault((start, user), []).append(amount)
                fresh.add((start, user))
                start -= every
        if mark is None or at - lateness > mark:
            mark = at - lateness
            if now is None or mark // tick > now:
                yield from on(mark // tick)
    yield from on(10**12)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("size", "every", "seed"), [(60, 60, 0), (120, 30, 1)])
def test_results_come_early_and_are_corrected_as_the_definition_says(
    seed: int, early: bool, size: int, every: int
) -> None:
    # Twenty minutes hold each case; each step of ten seconds gives results.
    rows = clicks(seed, 500 if every == size else 250, minutes=20, late=40)
    tick = 10 if early else every
    window = hopping(f"{size}s", every=f"{every}s")
    flow = (
        stream("clicks", time="ts", lateness="5s")
        .group_by("user")
        .window(window, early="10s" if early else None, allowed_lateness="20s")
        .agg(n=pl.len(), total=pl.col("amount").sum())
    )
    whole = play(flow, rows)
    found = whole.select("user", pl.col("window_start").dt.epoch("s"), "status", "n", "total").rows()
    expected = list(told(rows, size, every, tick, 5, early=early, allowed=20))
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    statuses = set(whole["status"])
    assert statuses == {"final", "corrected", "early"} if early else statuses == {"final", "corrected"}
    for number in range(2):
        assert_frame_equal(play(flow, rows, number), whole)


def test_the_last_result_of_each_window_is_what_a_window_of_all_its_rows_gives() -> None:
    rows = clicks(7, 2_000, late=60)
    clicked = stream("clicks", time="ts", lateness="1s").group_by("user")
    revised = clicked.window(tumbling("1m"), early="30s", allowed_lateness="1m").agg(n=pl.len(), top=pl.max("amount"))
    last = play(revised, rows, 3).unique(["user", "window_start"], keep="last", maintain_order=True)
    patient = stream("clicks", time="ts", lateness="2m").group_by("user").window(tumbling("1m"))
    whole = play(patient.agg(n=pl.len(), top=pl.max("amount")), rows)
    by = ["window_start", "user"]
    assert_frame_equal(last.drop("status").sort(by), whole.sort(by))


def test_several_sources_and_rows_that_are_too_late() -> None:
    rows = clicks(9, 1_000, late=90)
    with ms.open() as log:
        for number, part in enumerate(rows.iter_slices(40)):
            log.append("web" if number % 2 else "app", part, type="RevisedClick")
        both = stream("web", time="ts").merge(stream("app", time="ts", lateness="3s"))
        flow = both.group_by("kind").window(tumbling("1m"), allowed_lateness="30s").agg(n=pl.len()).late_to("late")
        ms.run(log, flow.to("out", type="Revised"), until="head")
        out, late = log.scan("out").collect(), log.scan("late").collect()
        assert_frame_equal(flow.over(log, final=False), out)
        last = flow.over(log).unique(["kind", "window_start"], keep="last")
        assert "corrected" in set(out["status"])
        assert late.height
        assert last["n"].sum() + late.height == rows.height


def test_what_follows_has_to_take_results_that_change() -> None:
    base = stream("clicks", time="ts").group_by("user").window(tumbling("1m"), early="10s").agg(n=pl.len())
    rows = pl.DataFrame({"user": [1, 1, 1], "ts": [START + timedelta(seconds=n) for n in (0, 20, 90)]})
    final = base.filter(pl.col("status") == "final").with_columns(double=pl.col("n") * 2).select("user", "double")
    assert final.over(rows).rows() == [(1, 4), (1, 2)]
    assert base.latest("user", "window_start").over(rows)["n"].to_list() == base.over(rows)["n"].to_list()
    with pytest.raises(FlowError, match="filter by n: a window's later result"):
        base.filter(pl.col("n") > 3)
    with pytest.raises(FlowError, match="a filter by user"):
        base.with_columns(user=pl.col("n")).filter(pl.col("user") > 3)
    with pytest.raises(FlowError, match="a filter by window_start"):
        base.select("user", window_start=pl.col("n")).filter(pl.col("window_start") > 3)
    with pytest.raises(FlowError, match="alert after results that may be corrected"):
        base.alert(pl.col("n") > 3)
    with pytest.raises(FlowError, match="cannot meet other flows"):
        stream("other", time="ts").join_asof(base, on="user")
    with pytest.raises(FlowError, match="cannot meet other flows"):
        base.merge(stream("other", time="ts"))


def test_what_has_no_early_results_says_so() -> None:
    grouped = stream("clicks", time="ts").group_by("user")
    with pytest.raises(UsageError, match="only tumbling and hopping"):
        grouped.window(session("1m"), early="10s")
    with pytest.raises(UsageError, match="do not end with a tick of early='7s'"):
        grouped.window(tumbling("1m"), early="7s")
    with pytest.raises(UsageError, match="do not end with a tick"):
        grouped.window(tumbling("1m"), early="0s")
    with pytest.raises(UsageError, match="two output columns are named 'status'"):
        grouped.window(tumbling("1m"), early="10s").agg(status=pl.len())
    settled = stream("clicks", time="ts").distinct("user", within="1m").group_by("user")
    with pytest.raises(FlowError, match="put in order of time"):
        settled.window(tumbling("1m"), allowed_lateness="10s")


def test_a_type_that_widens_between_ticks_changes_no_result() -> None:
    at = datetime(2024, 1, 15, tzinfo=UTC)
    with ms.open() as log:
        for second, value in ((0, 1), (5, 2), (12, 0.5), (70, 1), (30, 4), (95, 3), (200, 1)):
            log.append("v", [ms.Plain("Widened", {"v": value, "at": (at + timedelta(seconds=second)).isoformat()})])
        flow = stream("v", time="at").window(tumbling("1m"), early="10s", allowed_lateness="1h")
        totals = flow.agg(total=pl.col("v").sum())
        ms.run(log, totals.to("out", type="Total"), until="head")
        minute = totals.over(log, final=False).filter(pl.col("window_start") == at)
        assert minute.select("status", "total").rows() == [
            ("early", 1.0),
            ("early", 3.5),
            ("final", 3.5),
            ("corrected", 7.5),
        ]
        assert [event.data["total"] for event in log.read("out")][:4] == [1.0, 3.5, 1.0, 3.5]


def test_what_is_said_of_such_windows() -> None:
    counts = stream("clicks", time="ts").group_by("user").window(tumbling("1m"), early="10s", allowed_lateness="1h")
    flow = counts.agg(n=pl.len())
    picture = flow.to("out", type="Counted").graph()
    assert "again each 10s" in picture
    assert "allowed lateness 1h" in picture
    with ms.open() as log:
        log.append("clicks", pl.DataFrame({"user": [1, 2], "ts": [START, START + timedelta(minutes=2)]}), type="Said")
        with pytest.raises(CannotCheck, match="early or corrected results cannot be checked"):
            flow.check(log)


def test_the_first_results_come_at_the_first_watermark_though_other_rows_move_it_on_in_the_same_batch() -> None:
    times = [START + timedelta(seconds=s) for s in (3, 40, 100, 190)]
    rows = pl.DataFrame({"user": [1, 2, 2, 1], "amount": [5, 1, 1, 7], "ts": times})
    flow = (
        stream("clicks", time="ts")
        .filter(pl.col("user") == 1)
        .window(tumbling("1m"), early="10s")
        .agg(amount=pl.col("amount").sum())
        .select("status", "amount")
    )
    whole = play(flow, rows, final=False)
    assert whole.rows() == [("early", 5), ("final", 5), ("early", 7)]
    for seed in range(5):
        assert_frame_equal(play(flow, rows, seed, final=False), whole)
