"""Columns that Python functions make, and alerts that are given when a condition becomes true."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from referee import START, agree, clicks, play

import millstream as ms
from millstream.streams import Flow, FlowError, hopping, sliding, stream

source = stream("clicks", time="ts", lateness="2s")


def doubled(frame: pl.DataFrame) -> pl.DataFrame:
    assert frame.columns == ["amount"]
    return frame.select(pl.col("amount") * 2, twice=pl.col("amount") * 2)


@pytest.mark.parametrize("seed", range(3))
def test_functions_of_frames_and_of_rows_give_what_an_expression_gives(seed: int) -> None:
    rows = clicks(seed, 400)
    by_frame = source.map_batches(doubled, schema={"twice": pl.Int64}, reads=["amount"])
    by_row = source.map_rows(lambda row: row["amount"] * 2, schema={"twice": pl.Int64}, reads=["amount"])
    by_dict = source.map_rows(lambda row: {"twice": 2 * row["amount"], "more": 1}, schema={"twice": pl.Int64})
    plain = source.with_columns(twice=pl.col("amount").cast(pl.Int64) * 2)
    for flow in (by_frame, by_row, by_dict):
        windowed = [
            play(each.group_by("user").window(sliding("1m")).agg(total=pl.col("twice").sum()), rows, seed)
            for each in (flow, plain)
        ]
        assert windowed[0].equals(windowed[1])


def test_a_row_that_fails_goes_on_with_its_traceback_and_can_be_put_aside() -> None:
    def checked(row: dict[str, Any]) -> dict[str, Any]:
        return {"root": row["amount"] ** 0.5 if row["amount"] >= 0 else int("none")}

    rows = clicks(1, 300)
    good, bad = source.map_rows(checked, schema={"root": pl.Float64}, errors="problem").split(
        pl.col("problem").is_null()
    )
    fine, failed = play(good, rows, 1), play(bad, rows, 1)
    assert fine.height + failed.height == 300
    assert (fine["amount"] >= 0).all()
    assert (failed["amount"] < 0).all()
    assert failed["root"].null_count() == failed.height
    assert failed["problem"].str.contains("ValueError: invalid literal").all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda frame: frame.head(1).rename({"amount": "x"}), "made 1 rows of"),
        (lambda frame: {"y": [1] * frame.height}, "'x'"),
        (lambda frame: {"x": ["text"] * frame.height}, "not as schema= says"),
        (lambda frame: frame.nothing(), "AttributeError"),
        (lambda frame: 5, "gave 5, which is no frame"),
        (lambda frame: frame.lazy(), "which is no frame"),
        (lambda frame: {"x": [1], "y": [1, 2]}, "which is no frame"),
    ],
)
def test_a_function_that_gives_something_else_is_an_error_that_says_what(function: Any, message: str) -> None:
    flow = source.map_batches(function, schema={"x": pl.Int64}, reads=["amount"])
    with pytest.raises(FlowError, match=message):
        play(flow, clicks(1, 50))


def test_a_row_whose_function_fails_is_named_and_what_is_no_function_is_refused() -> None:
    flow = source.map_rows(lambda row: row["nothing"], schema={"x": pl.Int64})
    with pytest.raises(FlowError, match=r"at position 1 \(KeyError"):
        play(flow, clicks(1, 50))
    for wrong in ({"function": 1, "schema": {"x": pl.Int64}}, {"function": len, "schema": {}}):
        with pytest.raises(ms.UsageError):
            source.map_rows(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="one string"):
        source.map_batches(doubled, schema={"x": pl.Int64}, reads="amount")
    with pytest.raises(ms.MissingColumn, match="'nowhere'"):
        play(source.map_batches(doubled, schema={"x": pl.Int64}, reads=["nowhere"]), clicks(1, 5))


def test_only_the_columns_that_are_asked_for_are_read_from_the_log() -> None:
    with ms.open() as log:
        log.append("clicks", clicks(1, 100), type="Click")
        flow = source.map_batches(doubled, schema={"twice": pl.Int64}, reads=["amount"]).select("twice")
        assert flow.over(log).columns == ["twice"]
        ms.run(log, flow.to("out", type="Twice"), until="head")
        assert log.scan("out").collect().height == 100


def entering(cooldown: str = "0s") -> Flow:
    counts = source.group_by("user").window(hopping("5m", every="1m")).agg(clicks=pl.len())
    return counts.alert(pl.col("clicks") >= 12, on="enter", cooldown=cooldown)


@pytest.mark.parametrize("seed", range(4))
def test_an_alert_on_entering_is_the_first_row_after_one_that_did_not_meet_the_condition(seed: int) -> None:
    rows = clicks(seed, 1_500, minutes=180)
    counts = play(source.group_by("user").window(hopping("5m", every="1m")).agg(clicks=pl.len()), rows)
    result = play(entering(), rows, seed)
    agree(
        result,
        """select * exclude was from (select *, lag(clicks >= 12) over (partition by user order by window_end) as was
            from counts) where clicks >= 12 and not coalesce(was, false)""",
        counts=counts,
    )
    assert result.height > 5
    assert result.equals(play(entering(), rows))
    fewer = play(entering("30m"), rows, seed)
    assert 0 < fewer.height < result.height
    assert fewer.equals(play(entering("30m"), rows))


def test_entering_without_keys_and_after_a_sliding_window() -> None:
    amounts = [1, 9, 9, 1, 9, 1, 1, 9]
    rows = pl.DataFrame(
        {"user": 1, "amount": amounts, "ts": [START + timedelta(minutes=i) for i in range(len(amounts))]}
    )
    flow = source.window(sliding("30s")).agg(total=pl.col("amount").sum()).alert(pl.col("total") > 5, on="enter")
    for seed in (None, 1, 2, 3):
        assert [row["window_end"].minute for row in play(flow, rows, seed).to_dicts()] == [1, 4, 7]


def test_an_alert_on_entering_needs_rows_in_order_of_time() -> None:
    with pytest.raises(FlowError, match="on='enter' needs rows in order"):
        source.alert(pl.col("amount") > 5, on="enter")
    with pytest.raises(ms.UsageError, match="on='leave'"):
        source.alert(pl.col("amount") > 5, on="leave")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [None, "Int64", pl.List, 3])
def test_a_type_that_is_none_is_refused_when_the_flow_is_made(dtype: Any) -> None:
    async def asked(row: dict[str, Any]) -> int:
        return 1

    for made in (
        lambda: source.map_rows(lambda row: 1, schema={"n": dtype}),
        lambda: source.map_batches(lambda frame: frame, schema={"n": dtype}),
        lambda: source.enrich(asked, schema={"n": dtype}),
        lambda: source.group_by("user").fold(lambda held, row: 1, start={"n": 0}, schema={"n": dtype}),
    ):
        with pytest.raises(ms.UsageError, match="'n' no type"):
            made()
