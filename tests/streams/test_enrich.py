"""Columns that an asynchronous function brings."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from typing import Any

import polars as pl
import pytest
from referee import clicks, play

import millstream as ms
from millstream.errors import Rejected, UsageError
from millstream.streams import CannotCheck, FlowError, run, stream, tumbling
from millstream.streams.runner import Worker

source = stream("clicks", time="ts", lateness="2s")
Row = dict[str, Any]


def test_rows_keep_their_order_whatever_order_the_answers_come_in() -> None:
    rows, r = clicks(1, 300), random.Random(1)

    async def double(row: Row) -> Row:
        await asyncio.sleep(r.random() * 0.01)
        return {"double": row["amount"] * 2, "kind": row["kind"].upper()}

    flow = source.enrich(double, schema={"double": pl.Int64, "kind": pl.String}, concurrency=50)
    expected = rows.with_columns(double=pl.col("amount").cast(pl.Int64) * 2, kind=pl.col("kind").str.to_uppercase())
    for seed in (None, 1):
        assert play(flow, rows, seed).equals(expected.select("user", "ts", "kind", "amount", "double"))
    counts = flow.group_by("user").window(tumbling("1m")).agg(total=pl.col("double").sum())
    assert play(counts, rows, 2).equals(play(counts, rows))


def test_a_column_that_is_missing_is_told_by_the_name_of_the_verb() -> None:
    async def ask(row: Row) -> int:
        return 1

    counted = source.group_by("kind").window(tumbling("1m")).agg(n=pl.len())
    with pytest.raises(ms.MissingColumn, match="enrich needs column 'user'"):
        counted.enrich(ask, schema={"k": pl.Int64}, reads=["user"]).over(clicks(1, 20))


def test_no_more_are_asked_for_at_once_than_was_said_and_all_in_one_loop() -> None:
    now, most, loops = 0, 0, set()

    async def ask(row: Row) -> int:
        nonlocal now, most
        loops.add(asyncio.get_running_loop())
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return 1

    flow = source.enrich(ask, schema={"n": pl.Int64}, reads=["user"], concurrency=7)
    assert play(flow, clicks(2, 100), 5).height == 100
    assert most <= 7
    flow.over(clicks(2, 100))
    assert most == 7
    assert len(loops) == 1
    # Within a loop that runs already, too.
    asyncio.run(asyncio.wait_for(asyncio.to_thread(flow.over, clicks(2, 10)), 20))

    async def inside() -> int:
        return flow.over(clicks(2, 10)).height

    assert asyncio.run(inside()) == 10


def test_an_answer_holds_for_rows_that_ask_the_same_until_it_is_too_old() -> None:
    asked: list[Any] = []

    async def ask(row: Row) -> str:
        asked.append(row["user"])
        await asyncio.sleep(0.001)
        if row["user"] == 2 and asked.count(2) == 1:
            raise ValueError("not yet")
        return f"user {row['user']}"

    rows = clicks(3, 200, users=6)
    flow = source.enrich(ask, schema={"name": pl.String}, reads=["user"], cache="1h", retries=0, errors="problem")
    found = play(flow, rows, 3)
    users = rows["user"].unique().to_list()
    # One that failed is asked for again by the next batch.
    assert sorted(asked, key=str) == sorted([*users, 2], key=str)
    answered = found.filter(pl.col("name").is_not_null())
    assert all(name == f"user {user}" for name, user in answered["name", "user"].rows())
    assert found["problem"].is_null().sum() == answered.height < 200
    asked.clear()
    short = source.enrich(ask, schema={"name": pl.String}, reads=["user"], cache="0s", retries=1)
    short.over(rows)
    assert len(asked) >= len(users)
    few = source.enrich(ask, schema={"name": pl.String}, reads=["user"], cache="1h", cache_size=1, concurrency=1)
    asked.clear()
    few.over(pl.DataFrame({"user": [7, 7, 8, 7], "ts": rows["ts"][:4]}))
    assert asked == [7, 8, 7]


def test_what_fails_is_asked_again_and_what_is_rejected_is_not() -> None:
    attempts: dict[int, int] = {}

    async def ask(row: Row) -> int:
        n = row["n"]
        attempts[n] = attempts.get(n, 0) + 1
        if n == 1 and attempts[n] < 3:
            raise ConnectionError("busy")
        if n == 2:
            raise Rejected("no such thing")
        if n == 3:
            await asyncio.sleep(60)
        return n * 10

    rows = pl.DataFrame({"n": [0, 1, 2, 3], "ts": clicks(1, 4)["ts"]})
    flow = stream("s", time="ts").enrich(ask, schema={"x": pl.Int64}, timeout="50ms", retries=2, errors="problem")
    found = flow.over(rows)
    assert found["x"].to_list() == [0, 10, None, None]
    assert attempts == {0: 1, 1: 3, 2: 1, 3: 3}
    problems = [text and text.splitlines()[-1] for text in found["problem"]]
    assert problems == [None, None, "millstream.errors.Rejected: no such thing", "TimeoutError"]
    fine, failed = flow.split(pl.col("problem").is_null())
    assert [fine.over(rows).height, failed.over(rows).height] == [2, 2]


def test_a_failure_ends_the_flow_which_goes_on_there(home: str | None) -> None:
    broken = [True]

    async def ask(row: Row) -> int:
        if broken and row["amount"] > 90:
            raise ValueError("over there is nobody")
        return int(row["amount"])

    rows = clicks(4, 300)
    first = rows.with_row_index("p", offset=1).filter(pl.col("amount") > 90)["p"][0]
    with ms.open(home) as log:
        log.append("clicks", rows, type="EnrichedClick")
        flow = source.enrich(ask, schema={"x": pl.Int64}, retries=0, concurrency=1).select("x")
        with pytest.raises(FlowError, match=rf"at position {first} \(ValueError: over there"):
            run(log, flow.to("out", type="EnrichedOut"), until="head")
        broken.clear()
        run(log, flow.to("out", type="EnrichedOut"), until="head")
        assert log.scan("out").collect()["x"].to_list() == rows["amount"].to_list()
        with pytest.raises(CannotCheck, match=r"^enrich cannot"):
            flow.check(log)


def test_a_flow_that_asks_stops_and_goes_on_within_a_long_run(home: str | None) -> None:
    asked = []

    async def ask(row: Row) -> int:
        asked.append(row)
        if len(asked) == 2_500:
            raise ValueError("no")
        return int(row["amount"])

    rows = clicks(9, 4_000)
    with ms.open(home) as log:
        log.append("clicks", rows, type="EnrichedClick")
        flow = source.enrich(ask, schema={"x": pl.Int64}, retries=0, concurrency=20).select("x")
        worker = Worker(log, flow.to("out", type="EnrichedOut"), commit_every=0)
        assert worker.advance(log.head)
        assert len(asked) == 1_024
        worker.close()
        with pytest.raises(FlowError):
            run(log, flow.to("out", type="EnrichedOut"), until="head")
        run(log, flow.to("out", type="EnrichedOut"), until="head")
        assert log.scan("out").collect()["x"].to_list() == rows["amount"].to_list()


def test_a_failure_ends_the_asking_of_others() -> None:
    asked = []

    async def ask(row: Row) -> int:
        asked.append(row)
        raise ValueError("no")

    with pytest.raises(FlowError):
        source.enrich(ask, schema={"x": pl.Int64}, retries=0, concurrency=5).over(clicks(5, 300))
    assert 1 <= len(asked) <= 5
    assert sum(thread.name == "millstream-enrich" for thread in threading.enumerate()) == 1


@pytest.mark.parametrize("cache", [None, "1h"])
def test_a_call_that_is_cancelled_or_exits_has_failed_and_others_go_on(cache: str | None) -> None:
    async def ask(row: Row) -> int:
        if row["n"] == 1:
            within = asyncio.ensure_future(asyncio.sleep(9))
            within.cancel()
            await within
        if row["n"] == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        if row["n"] == 3:
            raise SystemExit(1)
        if row["n"] == 4:
            asyncio.get_running_loop().call_soon(sys.exit)  # the loop's own
        await asyncio.sleep(0.001)
        return row["n"] * 10

    rows = pl.DataFrame({"n": [0, 1, 1, 2, 2, 3, 4], "ts": clicks(1, 7)["ts"]})
    asked = stream("s", time="ts")
    more: dict[str, Any] = {"schema": {"x": pl.Int64}, "reads": ["n"], "cache": cache, "retries": 0}
    found = asked.enrich(ask, **more, concurrency=7, errors="problem").over(rows)
    assert found["x"].to_list() == [0, None, None, None, None, None, 40]
    assert ["Cancelled" in (text or "") for text in found["problem"]] == [False, True, True, True, True, False, False]
    assert "SystemExit" in found["problem"][5]
    for n in (1, 2, 3):
        with pytest.raises(FlowError, match=r"^the function of enrich fails"):
            asked.enrich(ask, **more).over(rows.filter(pl.col("n") == n))


def test_what_cannot_be_asked_is_refused() -> None:
    async def ask(row: Row) -> int:
        return "text"  # type: ignore[return-value]

    with pytest.raises(UsageError, match="no coroutine function"):
        source.enrich(lambda row: 1, schema={"x": pl.Int64})  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match="concurrency=0"):
        source.enrich(ask, schema={"x": pl.Int64}, concurrency=0)
    with pytest.raises(UsageError, match="in no time"):
        source.enrich(ask, schema={"x": pl.Int64}, timeout="0s")
    with pytest.raises(FlowError, match="not as schema= says"):
        source.enrich(ask, schema={"x": pl.Int64}).over(clicks(6, 3))
