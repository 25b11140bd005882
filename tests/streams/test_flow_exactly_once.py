from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
from flow_worker import FLOWS, OUTPUTS
from killing import killed_until_done
from polars.testing import assert_frame_equal
from referee import clicks

import millstream as ms
from millstream.errors import ConsumerFenced
from millstream.streams import FlowChanged, Running, run, sliding, stream, tumbling
from millstream.streams.runner import Worker

WORKER = Path(__file__).with_name("flow_worker.py")


def outputs(log: ms.Log) -> dict[str, pl.DataFrame]:
    return {name: log.scan(name).collect() for name in OUTPUTS}


def same(a: dict[str, pl.DataFrame], b: dict[str, pl.DataFrame]) -> None:
    for name in OUTPUTS:
        assert a[name].height, f"{name} is empty, so nothing is shown by it"
        assert_frame_equal(a[name], b[name])


def fill(log: ms.Log, rows: pl.DataFrame, size: int) -> None:
    for start in range(0, rows.height, size):
        log.append("clicks", rows.slice(start, size), type="Click")


@pytest.fixture
def rows() -> pl.DataFrame:
    return clicks(11, 6_000, minutes=120, late=4)


def test_a_flow_killed_again_and_again_gives_what_an_undisturbed_one_gives(
    shared_home: str, rows: pl.DataFrame
) -> None:
    rows = rows.head(1_500)  # the kills come early
    with ms.open() as log:
        fill(log, rows, 1_500)
        run(log, *FLOWS, until="head")
        whole = outputs(log)
    with ms.open(shared_home) as log:
        fill(log, rows, 50)
    kills = killed_until_done(WORKER, shared_home, seed=1, kills=4, longest=0.5, rounds=40)
    assert kills >= 3
    with ms.open(shared_home) as log:
        same(outputs(log), whole)


def test_steps_of_any_size_with_a_new_worker_now_and_then_give_the_same(shared_home: str, rows: pl.DataFrame) -> None:
    rows = rows.head(3_000)
    with ms.open() as log:
        fill(log, rows, 3_000)
        run(log, *FLOWS, until="head")
        whole = outputs(log)
    r = random.Random(2)
    with ms.open(shared_home) as log:
        at = 0
        while at < rows.height:
            size = r.choice([1, 7, 100, 500])
            log.append("clicks", rows.slice(at, size), type="Click")
            at += size
            run(log, *FLOWS, until="head")
        same(outputs(log), whole)


def test_a_worker_that_was_taken_over_keeps_nothing_and_stops(home: str | None, rows: pl.DataFrame) -> None:
    with ms.open(home) as log:
        fill(log, rows, 1_000)
        old = Worker(log, FLOWS[1])
        new = Worker(log, FLOWS[1])
        with pytest.raises(ConsumerFenced):
            while old.advance(log.head):
                pass
        assert "counts" not in {found.name for found in log.streams()}
        while new.advance(log.head):
            pass
        assert log.scan("counts").collect().equals(FLOWS[1].over(log, final=False))


def test_state_is_written_by_difference_and_goes_when_its_windows_close(home: str | None, rows: pl.DataFrame) -> None:
    with ms.open(home) as log:
        worker = Worker(log, FLOWS[1])
        sizes = []
        for start in range(0, rows.height // 2, 50):
            log.append("clicks", rows.slice(start, 50), type="Click")
            worker.advance(log.head)
            with log.connect() as db:
                found = db.query(f"select sum(length(body)) as bytes, count(*) as parts from {db.own('flow_state')}")[0]
            sizes.append((found["bytes"] or 0, found["parts"]))  # a commit may be one for several steps
        assert max(parts for _, parts in sizes) < 20
        assert 0 < max(size for size, _ in sizes) < 40_000


def test_a_flow_of_another_shape_is_refused_and_one_with_another_filter_goes_on(
    home: str | None, rows: pl.DataFrame
) -> None:
    counts = stream("clicks", time="ts", lateness="2s").group_by("user").window(tumbling("5m"))
    with ms.open(home) as log:
        fill(log, rows, 1_000)
        run(log, counts.agg(n=pl.len()).to("out", type="N"), until="head")
        run(log, counts.agg(n=pl.len()).filter(pl.col("n") > 1).to("out", type="N"), until="head")
        with pytest.raises(FlowChanged) as refused:
            run(log, counts.agg(n=pl.col("amount").sum()).to("out", type="N"), until="head")
        assert refused.value.name == "out/N"
        run(log, counts.agg(n=pl.col("amount").sum()).to("out", type="N", name="sums"), until="head")


def test_flows_run_in_the_background_until_stopped(home: str | None, rows: pl.DataFrame) -> None:
    with ms.open(home) as log:
        fill(log, rows.head(3_000), 1_000)
        with Running(log, *FLOWS) as running:
            fill(log, rows.tail(3_000), 50)
            head = log.head
            assert running.wait(head, timeout=60)
        live = outputs(log)
        assert running.late["alerts/Alert"] == live["late"].height
        for flow in FLOWS:
            assert flow.sink is not None
            assert_frame_equal(live[flow.sink.stream], flow.over(log, final=False))


def test_what_fails_in_the_background_is_raised_by_stop() -> None:
    with ms.open() as log:
        log.append("clicks", ms.Plain("Odd", {"user": 1}))
        running = Running(log, *FLOWS).start()
        assert not running.wait(1, timeout=30)
        with pytest.raises(ms.MillstreamError, match="'ts'"):
            running.stop()


def test_a_backtest_can_be_bounded_by_recorded_time(rows: pl.DataFrame) -> None:
    from millstream.testing import FakeClock

    clock = FakeClock("2024-02-01T00:00:00Z")
    with ms.open(clock=clock) as log:
        for start in range(0, 6_000, 1_000):
            log.append("clicks", rows.slice(start, 1_000), type="Click")
            clock.advance("1h")
        flow = FLOWS[1]
        part = flow.over(log, since="2024-02-01T01:00:00Z", until="2024-02-01T03:00:00Z")
        assert part.equals(flow.over(rows.slice(1_000, 2_000)))


def test_columns_may_come_and_widen_on_the_way() -> None:
    start = clicks(1, 200).select("user", "ts")
    rows = [
        start.head(50).with_columns(pl.col("user").cast(pl.Int8)),
        start.slice(50, 50),
        start.slice(100, 50).with_columns(page=pl.lit("home")),
        start.slice(150, 50),
    ]
    source = stream("clicks", time="ts", lateness="2s").group_by("user")
    flow = source.window(sliding("30m")).agg(n=pl.len()).to("out", type="Out")
    with ms.open() as whole, ms.open() as steps:
        for log in (whole, steps):
            for frame in rows:
                log.append("clicks", frame, type="Click")
                if log is steps:
                    run(log, flow, until="head")
        run(whole, flow, until="head")
        assert_frame_equal(whole.scan("out").collect(), steps.scan("out").collect(), check_column_order=False)
        assert whole.scan("out").collect()["page"].null_count() > 50


def test_a_flow_can_read_a_category_and_types_by_name() -> None:
    with ms.open() as log:
        for shop in ("a", "b"):
            log.append(f"visits-{shop}", [ms.Plain("Visit", {"n": n}) for n in range(3)])
            log.append(f"visits-{shop}", ms.Plain("Leave", {"n": 9}))
        flow = (
            stream("visits-*")
            .filter(pl.col("_type") == "Visit")
            .with_columns(shop=pl.col("_stream"))
            .group_by("shop")
            .window(tumbling("1d"))
            .agg(n=pl.len())
        )
        assert flow.over(log).select("shop", "n").rows() == [("visits-a", 3), ("visits-b", 3)]


def test_flows_that_were_started_may_be_used_as_a_block_that_stops_them(tmp_path: Path) -> None:
    with ms.open(str(tmp_path / "log.db")) as log, ms.streams.start(log, FLOWS[1]) as running:
        assert running.wait(log.head, 10)
    assert running.error is None


def test_commits_beside_the_work_give_what_one_commit_gives() -> None:
    rows = pl.concat([clicks(seed, 20_000, users=500, minutes=600) for seed in range(3)]).sort("ts")
    flow = stream("clicks", time="ts").group_by("user").window(sliding("10m")).agg(n=pl.len())
    with ms.open() as log:
        for start in range(0, rows.height, 500):
            log.append("clicks", rows.slice(start, 500), type="Click")
        worker = Worker(log, flow.to("out", type="Counted"), rows=500, commit_every=0.0001)
        while worker.advance(log.head):
            pass
        worker.close()
        found = log.scan("out").collect().drop("window_start")
        assert found.height > 59_000
        assert_frame_equal(found, flow.over(log, final=False).drop("window_start"))
