"""Enrichment in any order: a slow answer holds up its own row alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import polars as pl
import pytest
from referee import clicks, play

import millstream as ms
from millstream.streams import CannotCheck, FlowError, run, stream, tumbling
from millstream.streams.runner import Worker

source = stream("clicks", time="ts", lateness="2s")
Row = dict[str, Any]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_every_row_comes_once_with_its_answer_whatever_the_batches(seed: int | None) -> None:
    rows, r = clicks(1, 300).with_row_index("n"), random.Random(1)

    async def double(row: Row) -> int:
        await asyncio.sleep(r.random() * 0.01)
        return row["amount"] * 2

    flow = source.enrich(double, schema={"double": pl.Int64}, concurrency=20, ordered=False)
    found = play(flow.filter(pl.col("double") > 10).select("n", "double"), rows, seed)
    expected = rows.select("n", double=pl.col("amount").cast(pl.Int64) * 2).filter(pl.col("double") > 10)
    assert found.sort("n").equals(expected)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Gate:
    """Answers at once, but for one user, who has to wait until it is opened."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.open = threading.Event()

    async def __call__(self, row: Row) -> str:
        self.asked.append(row["user"])
        while row["user"] == 1 and not self.open.is_set():
            await asyncio.sleep(0.005)
        return f"user {row['user']}"


def named(gate: Gate, **options: Any) -> ms.Flow:
    async def ask(row: Row) -> str:
        return await gate(row)

    flow = source.enrich(ask, schema={"name": pl.String}, reads=["user"], concurrency=3, ordered=False, **options)
    return flow.select("user", "name").to("named", type="OvertakingName")


def test_others_go_on_while_one_waits_and_it_comes_when_its_answer_does() -> None:
    gate = Gate()
    with ms.open() as log:
        rows = clicks(4, 12).with_columns(user=pl.Series([2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], dtype=pl.Int64))
        log.append("clicks", rows, type="OvertakingClick")
        with ms.Running(log, named(gate)):
            until(lambda: log.head >= 12 + 11)
            assert 1 not in log.scan("named").collect()["user"]
            gate.open.set()
            # No further row is needed for it.
            until(lambda: log.head == 12 + 12)
        found = log.scan("named").collect()
        assert found["user"].to_list()[-1] == 1
        assert sorted(found["user"]) == list(range(1, 13))
        assert found["name"].to_list() == [f"user {user}" for user in found["user"]]


def test_rows_that_wait_are_asked_for_again_by_who_goes_on() -> None:
    gate = Gate()
    with ms.open() as log:
        rows = clicks(4, 4).with_columns(user=pl.Series([1, 2, 3, 4], dtype=pl.Int64))
        log.append("clicks", rows, type="OvertakingClick")
        worker = Worker(log, named(gate))
        until(lambda: not worker.advance(log.head) or worker.position == 4)
        worker.flush()
        worker.close()
        assert sorted(log.scan("named").collect()["user"]) == [2, 3, 4]
        gate.open.set()
        run(log, named(gate), until="head")
        assert log.scan("named").collect()["user"].to_list()[3:] == [1]
        assert gate.asked.count(1) == 2
        run(log, named(gate), until="head")
        assert log.head == 8


def test_a_failure_is_the_rows_or_ends_the_flow() -> None:
    async def ask(row: Row) -> int:
        return 10 // row["amount"]

    rows = clicks(5, 40).with_columns(amount=pl.Series([1, 2, 0, 5] * 10, dtype=pl.Int32))
    told = source.enrich(ask, schema={"n": pl.Int64}, retries=0, errors="problem", ordered=False)
    found = play(told, rows, 1)
    assert found.filter(pl.col("problem").is_not_null())["amount"].to_list() == [0] * 10
    assert found.filter(pl.col("problem").is_null())["n"].sort().to_list() == sorted([10, 5, 2] * 10)
    with pytest.raises(FlowError, match=r"position 3 \(ZeroDivisionError"):
        play(source.enrich(ask, schema={"n": pl.Int64}, retries=0, ordered=False), rows)
    with pytest.raises(CannotCheck, match="enrich"), ms.open() as log:
        log.append("clicks", rows, type="OvertakingClick")
        told.check(log)


def test_what_goes_by_time_or_order_is_refused_behind_it() -> None:
    async def ask(row: Row) -> int:
        return 1

    flow = source.enrich(ask, schema={"n": pl.Int64}, ordered=False)
    for refused in (
        lambda: flow.group_by("user").window(tumbling("1m")).agg(n=pl.len()),
        lambda: flow.distinct("user", within="1m"),
        lambda: flow.alert(pl.col("n") > 1),
        lambda: flow.merge(source),
        lambda: source.join(flow, on="user", back="1m"),
    ):
        with pytest.raises(FlowError, match="ordered=False"):
            refused()
    assert "in any order" in flow.graph()


def test_up_to_the_head_is_not_done_before_the_last_answer_is_there() -> None:
    async def slow(row: Row) -> Row:
        await asyncio.sleep(0.3 if row["user"] == 1 else 0)
        if row["user"] == 5:
            raise ValueError("nobody")
        return {"name": f"user {row['user']}"}

    flow = stream("clicks", time="ts").enrich(slow, schema={"name": pl.String}, ordered=False)
    rows = clicks(4, 3).with_columns(user=pl.Series([1, 2, 3], dtype=pl.Int64))
    with ms.open() as log:
        log.append("clicks", rows, type="OvertakingSlow")
        run(log, flow.to("slow", type="OvertakingSlowOut"), until="head")
        assert sorted(log.scan("slow").collect()["user"]) == [1, 2, 3]
        log.append("clicks", rows[:1].with_columns(user=pl.lit(5)), type="OvertakingSlow")
        with pytest.raises(FlowError, match="nobody"):
            run(log, flow.to("slow", type="OvertakingSlowOut"), until="head")
