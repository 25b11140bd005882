"""What a Python function makes of the rows of a key, one after the other."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, agree, clicks, play

import millstream as ms
from millstream.streams import Flow, FlowChanged, FlowError, MissingColumn, run, stream

source = stream("clicks", time="ts", lateness="2s")


def running(held: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {"rows": held["rows"] + 1, "total": held["total"] + row["amount"], "most": max(held["most"], row["amount"])}


def folded(*keys: str, **options: Any) -> Flow:
    return source.group_by(*keys).fold(
        running,
        start={"rows": 0, "total": 0, "most": -100},
        schema={"rows": pl.Int64, "total": pl.Int64, "most": pl.Int32},
        reads=["amount"],
        **options,
    )


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_a_fold_of_counts_sums_and_maxima_is_what_sql_says(seed: int, both: bool, texts: bool) -> None:
    rows = clicks(seed, 300, minutes=20, texts=texts).with_row_index("n")
    keys = ("user", "kind") if both else ("user",)
    result = play(folded(*keys), rows, seed)
    agree(
        result,
        f"""select *, count(*) over w as rows, (sum(amount) over w)::bigint as total, max(amount) over w as most
            from rows window w as (partition by {", ".join(keys)} order by ts, n
            rows between unbounded preceding and current row)""",
        rows=rows,
    )
    assert result.equals(play(folded(*keys), rows))
    assert result["ts"].is_sorted()


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([5, 30, 90]))
def test_a_key_that_is_forgotten_begins_anew(seed: int, seconds: int) -> None:
    rows = clicks(seed, 300, minutes=60).with_row_index("n")
    flow = folded("user", forget=f"{seconds}s")
    result = play(flow, rows, seed).select("user", "n", "rows")
    agree(
        result,
        f"""with marked as (
                select *, (coalesce(ts - lag(ts) over (partition by user order by ts, n)
                    >= interval '{seconds} seconds', true))::int as anew from rows),
            numbered as (select *, sum(anew) over (partition by user order by ts, n) as part from marked)
            select user, n, row_number() over (partition by user, part order by ts, n) as rows from numbered""",
        rows=rows,
    )
    assert result.equals(play(flow, rows).select("user", "n", "rows"))


def test_values_of_all_types_are_the_same_whether_they_were_put_away_or_not() -> None:
    schema = {
        "items": pl.List(pl.Struct({"n": pl.Int64, "x": pl.Float64})),
        "when": pl.Datetime("us", "Europe/Berlin"),
        "day": pl.Date,
        "spent": pl.Duration("us"),
        "text": pl.String,
        "flag": pl.Boolean,
        "raw": pl.Binary,
    }

    def gather(held: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        # A whole number in a column of floats, and a list that is changed in place.
        held["items"].append({"n": row["amount"], "x": row["amount"]})
        held["items"] = held["items"][-3:]
        text = repr(held["items"]) + repr(held["when"]) + repr(held["spent"])
        return {**held, "when": row["ts"], "day": row["ts"].date(), "spent": timedelta(seconds=1), "text": text}

    start = dict.fromkeys(schema) | {"items": [], "flag": True, "raw": b"\x00"}
    flow = source.group_by("user").fold(gather, start=start, schema=schema)
    rows = clicks(2, 150)
    whole = play(flow, rows)
    assert whole["items"].list.len().max() == 3
    for seed in (1, 2, 3):
        assert play(flow, rows, seed).equals(whole)


def test_a_fold_goes_on_where_it_was_killed_and_knows_when_it_has_changed() -> None:
    rows = clicks(4, 400)
    with ms.open() as log:
        flow = folded("user").to("folded", type="Folded")
        for part in rows.iter_slices(90):
            log.append("clicks", part, type="FoldedClick")
            run(log, flow, until="head")
        result = [event.data["total"] for event in log.read("folded")]
        assert result == flow.over(log, final=False)["total"].to_list()
        with pytest.raises(FlowChanged):
            run(log, folded("user", forget="1h").to("folded", type="Folded"), until="head")


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_row_that_fails_goes_on_with_the_reason_and_what_is_held_stays(seed: int | None) -> None:
    def gather(held: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        held["seen"].append(row["amount"])
        return {"seen": held["seen"][-2:], "n": held["n"] + 10 // row["amount"]}

    flow = source.group_by("user").fold(
        gather, start={"seen": [], "n": 0}, schema={"seen": pl.List(pl.Int64), "n": pl.Int64}, errors="problem"
    )
    ts = [START + timedelta(seconds=n) for n in range(4)]
    found = play(flow, pl.DataFrame({"user": 1, "ts": ts, "amount": [5, 0, 2, 0]}), seed)
    assert found["seen"].to_list() == [[5], [5], [5, 2], [5, 2]]
    assert found["n"].to_list() == [2, 2, 7, 7]
    assert [problem and "ZeroDivisionError" in problem for problem in found["problem"]] == [None, True, None, True]


def test_what_fails_is_told_with_the_place_of_the_row() -> None:
    rows = pl.DataFrame({"user": [1, 1], "ts": [START, START], "amount": [1, 2]})

    def fold(function: Any, dtype: Any = pl.Int64, start: Any = 0) -> pl.DataFrame:
        return play(source.group_by("user").fold(function, start={"x": start}, schema={"x": dtype}), rows)

    assert fold(lambda held, row: held["x"] + row["amount"])["x"].to_list() == [1, 3]
    for wrong in (lambda held, row: 1 / 0, lambda held, row: "x", lambda held, row: {}, lambda held, row: True):
        with pytest.raises(FlowError, match="position 1"):
            fold(wrong)
    with pytest.raises(FlowError, match="names no 'y'"):
        fold(lambda held, row: {**held, "y": 1})
    with pytest.raises(FlowError, match="not as schema"):
        fold(lambda held, row: 300, pl.Int8)
    with pytest.raises(FlowError, match="position 1"):
        fold(lambda held, row: datetime(2024, 1, 1), pl.Datetime("us", "UTC"), datetime(2024, 1, 1, tzinfo=UTC))
    with pytest.raises(FlowError, match="start="):
        fold(lambda held, row: date(2024, 1, 1), pl.Date, "soon")
    with pytest.raises(FlowError, match="cannot keep"):
        fold(lambda held, row: 1.0, pl.Float32, 0.0)
    with pytest.raises(MissingColumn, match="'nothing'"):
        play(source.group_by("user").fold(running, start={"x": 0}, schema={"x": pl.Int64}, reads=["nothing"]), rows)
    with pytest.raises(ms.UsageError, match="different columns"):
        source.group_by("user").fold(running, start={"x": 0}, schema={"y": pl.Int64})
