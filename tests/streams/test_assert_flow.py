"""The assertion on what a flow gives, by which users test theirs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import millstream as ms
from millstream.testing import assert_flow

counts = ms.stream("clicks", time="ts", lateness="2s").group_by("user").window(ms.tumbling("10s")).agg(n=pl.len())


def at(second: float) -> datetime:
    return datetime(2024, 1, 15, 12, tzinfo=UTC) + timedelta(seconds=second)


def row(user: int | None, second: float) -> dict[str, Any]:
    return {"user": user, "ts": at(second)}


ROWS = [row(1, 3), row(1, 9), row(None, 8), row(2, 22), row(1, 4), row(2, 33)]


def test_rows_and_late_rows_are_compared_in_their_order() -> None:
    gives = [
        {"user": None, "n": 1, "window_start": at(0), "window_end": "2024-01-15T12:00:10Z"},
        {"user": 1, "n": 2},
        {"user": 2, "n": 1, "window_end": at(30)},
    ]
    assert_flow(counts, ROWS, gives=gives, late=[row(1, 4)])
    assert_flow(counts, pl.DataFrame(ROWS), gives=pl.DataFrame({"user": [None, 1, 2], "n": [1, 2, 1]}))
    with pytest.raises(AssertionError, match=r"row 1 .* differs in n"):
        assert_flow(counts, ROWS, gives=[gives[0], {"user": 1, "n": 3}, gives[2]])
    with pytest.raises(AssertionError, match=r"row 0 .* differs in missing"):
        assert_flow(counts, ROWS, gives=[{"missing": 1}])
    with pytest.raises(AssertionError, match="3 rows instead of 2"):
        assert_flow(counts, ROWS, gives=gives[:2])
    with pytest.raises(AssertionError, match="leaves out as late 1 rows instead of 0"):
        assert_flow(counts, ROWS, gives=gives, late=[])
    with pytest.raises(AssertionError, match="0 rows instead of 1"):
        assert_flow(counts, ROWS[:2], gives=gives[:1])
    assert_flow(counts, [], gives=[], late=[])


def test_time_passes_where_nothing_comes() -> None:
    orders = ms.stream("orders", time="at", idle="1m").group_by("order")
    unpaid = orders.match(
        "placed !paid", within="10m", contiguity="relaxed",
        define={"placed": pl.col("kind") == "placed", "paid": pl.col("kind") == "paid"},
    )  # fmt: skip
    start = datetime(2024, 1, 1, tzinfo=UTC)

    def order(number: int, kind: str, minutes: int) -> dict[str, Any]:
        return {"order": number, "kind": kind, "at": start + timedelta(minutes=minutes)}

    rows = [order(1, "placed", 0), order(2, "placed", 0), "5m", order(1, "paid", 5)]
    assert_flow(unpaid, rows, gives=[])
    assert_flow(unpaid, [*rows, timedelta(minutes=20)], gives=[{"order": 2, "match_start": start}])


def test_rows_of_several_streams_come_in_the_order_that_is_said() -> None:
    plans = ms.stream("plans", time="ts").select("user", "plan")
    joined = ms.stream("clicks", time="ts").join_asof(plans, on="user")
    rows = [
        ("plans", {"user": 1, "plan": "free", "ts": at(0)}),
        ("clicks", row(1, 1)),
        ("plans", {"user": 1, "plan": "paid", "ts": at(2)}),
        ("clicks", row(1, 3)),
        ("clicks", row(1, 9)),
        ("plans", {"user": 2, "plan": "free", "ts": at(9)}),
    ]
    assert_flow(joined, rows, gives=[{"ts": at(1), "plan": "free"}, {"ts": at(3), "plan": "paid"}])
    with pytest.raises(ms.UsageError, match="neither a row"):
        assert_flow(joined, [("clicks", 1)], gives=[])  # type: ignore[list-item]


def test_a_flow_that_depends_on_the_batches_is_found_out() -> None:
    sizes = ms.stream("clicks", time="ts").map_batches(
        lambda frame: pl.DataFrame({"size": [frame.height] * frame.height}), schema={"size": pl.Int64}
    )
    with pytest.raises(AssertionError, match="one by one"):
        assert_flow(sizes, ROWS, gives=[])


def test_values_are_compared_as_what_they_are() -> None:
    flow = ms.stream("clicks", time="ts").with_columns(x=pl.col("amount") / 3, late=pl.col("amount") > 5)
    rows = [{"amount": 1, "ts": at(0), "note": None}, {"amount": 9, "ts": at(1), "note": None}]
    schema = {"note": pl.String}
    assert_flow(flow, rows, gives=[{"x": 1 / 3, "late": False, "note": None}, {"x": 3, "late": True}], schema=schema)
    with pytest.raises(AssertionError, match="differs in late"):
        assert_flow(flow, rows, gives=[{"late": 0}, {}], schema=schema)
    with pytest.raises(AssertionError, match="differs in ts"):
        assert_flow(flow, rows, gives=[{"ts": at(2)}, {}], schema=schema)
    with pytest.raises(ms.UsageError, match="has an end"):
        assert_flow(flow.to("out", type="AssertedOut"), rows, gives=[])


def test_what_is_not_a_number_is_equal_to_itself() -> None:
    nan = float("nan")
    rows = [{"x": nan, "deep": [{"y": [1.0, nan]}], "ts": at(1)}]
    assert_flow(ms.stream("clicks", time="ts"), rows, gives=[{"x": nan, "deep": [{"y": [1.0, nan]}]}])
    with pytest.raises(AssertionError, match="differs in deep"):
        assert_flow(ms.stream("clicks", time="ts"), rows, gives=[{"deep": [{"y": [2.0, nan]}]}])


def test_what_could_not_arrive_is_refused() -> None:
    with pytest.raises(ms.UsageError, match="reads no stream 'click'"):
        assert_flow(counts, [("click", row(1, 3))], gives=[])
    with pytest.raises(ms.UsageError, match="3 is neither a row"):
        assert_flow(counts, [3], gives=[])  # type: ignore[list-item]
    for wrong in (row(1, 3), "5m", 3):
        with pytest.raises(ms.UsageError, match="is no list of arrivals"):
            assert_flow(counts, wrong, gives=[])  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="is no flow"):
        assert_flow("clicks", [], gives=[])  # type: ignore[arg-type]
