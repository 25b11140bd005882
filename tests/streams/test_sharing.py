from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from flow_worker import FLOWS
from inline import Inline, inline
from polars.testing import assert_frame_equal
from referee import START, clicks
from test_tables import Model

import millstream as ms
import millstream.streams.state as states
from millstream.streams import Flow, FlowError, calendar, hopping, stream, tumbling
from millstream.streams.pipeline import Pipeline
from millstream.streams.runner import Worker
from millstream.streams.sharing.coordinator import SharedWorker
from millstream.streams.sharing.ranges import Range, SharedPipeline
from millstream.testing import FakeClock

events = stream("clicks", time="ts", lateness="2s")
views = stream("views", time="ts", lateness="5s")
CLICK, PURCHASE = pl.col("kind") == "click", pl.col("kind") == "purchase"


def longer(before: dict[str, int], row: dict[str, int]) -> dict[str, int]:
    return {"seen": before["seen"] + 1, "sum": before["sum"] * 7 % 1_000_003 + row["amount"]}


def counted(key: ms.KeyContext, row: dict[str, int]) -> None:
    key.held["n"] += 1
    key.timer(after=f"{row['amount'] % 50 + 60}s", name="ab"[key.held["n"] % 2])


def told(key: ms.KeyContext, timer: str) -> None:
    key.give(n=key.held["n"], timer=timer)
    if timer == "a":
        key.forget()


async def answered(row: dict[str, int]) -> int:
    return row["amount"] * 2


halved = stream("clicks", time="ts").with_columns(half=pl.col("user") // 2)


MORE: dict[str, Flow] = {
    "computed": events.with_columns(who=pl.col("user") % 5).group_by("who").window(tumbling("1m")).agg(n=pl.len()),
    "renamed": events.select("ts", who="user", much="amount")
    .group_by("who")
    .window(tumbling("1m"))
    .agg(n=pl.len(), most=pl.col("much").max()),
    "two levels": events.group_by("user", "kind")
    .window(tumbling("1m"))
    .agg(n=pl.len())
    .group_by("kind")
    .window(tumbling("10m"))
    .agg(most=pl.col("n").max(), first=pl.col("user").first()),
    "sketched": events.group_by("user")
    .window(tumbling("1m"))
    .agg(
        half=ms.quantile("amount", 0.5),
        kinds=pl.col("kind").approx_n_unique(),
        best=pl.col("amount").top_k(2).implode(),
    ),
    "calendar": events.group_by("kind", "user").window(calendar("1h", time_zone="Asia/Kathmandu")).agg(n=pl.len()),
    "fold": events.group_by("user")
    .fold(longer, schema={"seen": pl.Int64, "sum": pl.Int64}, start={"seen": 0, "sum": 0})
    .select("user", "ts", "seen", "sum"),
    "distinct": events.distinct("kind", "user", within="1m").late_to("clicks-late"),
    "falling": events.group_by("user").match(
        "high low+",
        within="5m",
        define={"high": pl.col("amount") > 40, "low": pl.col("amount") < ms.matched.last("high.amount")},
        measures={"least": ms.matched.min("low.amount")},
    ),
    "entering": events.group_by("user").window(tumbling("1m")).agg(n=pl.len()).alert(pl.col("n") > 3, on="enter"),
    "latest": events.latest("user"),
    "latest of windows": events.group_by("kind", "user").window(tumbling("1m")).agg(n=pl.len()).latest("user"),
    "two sources": events.merge(views.select("user", "ts", "amount"))
    .group_by("user")
    .window(tumbling("2m"))
    .agg(n=pl.len(), last=pl.col("amount").last()),
    "joined twice": events.filter(PURCHASE)
    .join(views, on="user", back="1m", how="full", prefix="v_")
    .group_by("user")
    .window(tumbling("3m"))
    .agg(n=pl.len()),
    "joined in windows": events.filter(PURCHASE).join(
        views.select("user", "ts", "amount"), on="user", window=tumbling("1m"), prefix="v_"
    ),
    "rules": events.join_latest(views.select("user", "amount"), on="user", prefix="v_"),
    "timers": events.group_by("user").process(
        counted,
        on_timer=told,
        start={"n": 0},
        schema={"n": pl.Int64},
        gives={"n": pl.Int64, "timer": pl.String},
        forget="20m",
    ),
    "best of each": events.group_by("user", "kind")
    .window(tumbling("5m"))
    .agg(n=pl.len(), total=pl.col("amount").sum())
    .top(2, by="n", per="kind")
    .select("user", "kind", "total"),
    "least of each, alerted": events.group_by("kind", "user")
    .window(tumbling("5m"))
    .agg(n=pl.len(), least=pl.when(pl.col("amount").min() > 3).then(pl.col("amount").min()))
    .top(3, by="least", descending=False, per=["kind"])
    .alert(pl.col("n") > 1, cooldown="7m"),
    "best of each, counted": events.group_by("user", "kind")
    .window(tumbling("1m"))
    .agg(n=pl.len())
    .top(1, by="n", per=["kind"])
    .group_by("kind")
    .window(tumbling("10m"))
    .agg(n=pl.col("n").sum(), who=pl.col("user").last()),
    "asked": events.with_columns(who=pl.col("user") % 5)
    .enrich(answered, schema={"more": pl.Int64}, reads=["amount"], cache="1h", errors="problem")
    .group_by("who")
    .window(tumbling("1m"))
    .agg(n=pl.len(), more=pl.col("more").sum()),
    "asked of results": events.group_by("user")
    .window(tumbling("1m"))
    .agg(amount=pl.col("amount").sum())
    .enrich(answered, schema={"more": pl.Int64}),
    "asked without memory": events.enrich(answered, schema={"more": pl.Int64}).select("user", "more"),
    "early": events.group_by("kind", "user")
    .window(hopping("2m", every="1m"), early="15s", allowed_lateness="1s")
    .agg(n=pl.len(), amount=pl.col("amount").sum())
    .with_columns(twice=pl.col("n") * 2),
    "corrected, the newest of each": stream("clicks", time="ts")
    .group_by("user")
    .window(tumbling("1m"), allowed_lateness="1m")
    .agg(n=pl.len(), last=pl.col("kind").last())
    .late_to("clicks-late")
    .latest("user", "window_start"),
    "merged with itself": events.merge(events.with_columns(user=pl.col("user") * 7 + 3, more=pl.lit(1))).latest("user"),
    "merged with itself by one key, late rows": stream("clicks", time="ts")
    .merge(views, stream("clicks", time="ts").with_columns(amount=pl.col("amount") * 7))
    .group_by("user")
    .window(tumbling("1m"))
    .agg(n=pl.len())
    .late_to("clicks-late"),
    "late rows of several columns": stream("clicks", time="ts")
    .filter(PURCHASE)
    .select("user", "ts", much="amount")
    .group_by("user")
    .window(tumbling("1m"))
    .agg(n=pl.len())
    .merge(stream("views", time="ts").with_columns(seen=True).group_by("user").window(tumbling("1m")).agg(n=pl.len()))
    .group_by("user")
    .window(tumbling("3m"))
    .agg(n=pl.col("n").sum())
    .late_to("clicks-late"),
    "joined with itself by one key, late rows": halved.filter(PURCHASE)
    .join(halved, on="half", back="1m", prefix="v_")
    .late_to("clicks-late"),
    "merged with itself, asked": events.merge(events.with_columns(user=pl.col("user") * 7 + 3), views)
    .filter(CLICK)
    .join_latest(views.select("user", "amount"), on="user", prefix="v_"),
    "merged, without memory": events.filter(CLICK)
    .merge(events.with_columns(user=pl.col("user") * 7 + 3).merge(views))
    .select("user", "kind", twice=pl.col("amount") * 2),
    "no memory": events.filter(CLICK).with_columns(twice=pl.col("amount") * 2).select("user", "twice"),
}
SHARED = {**{flow.sink.name: flow for flow in FLOWS[:-1] if flow.sink is not None}, **MORE}


def fill(log: ms.Log, seed: int, count: int = 360, size: int = 30) -> None:
    rows, other = clicks(seed, count, minutes=30, late=4), clicks(seed + 1, count // 2, minutes=30, late=4)
    for start in range(0, count, size):
        log.append("clicks", rows.slice(start, size), type="Click")
        log.append("views", other.slice(start // 2, size // 2), type="View")


def ended(flow: Flow) -> Flow:
    return flow if flow.sink is not None else flow.to("out", type="SharedOut")


def given(log: ms.Log, flow: Flow) -> dict[str, pl.DataFrame]:
    assert flow.sink is not None
    names = {flow.sink.stream, *([flow.late[0]] if flow.late else [])}
    there = {found.name for found in log.streams()}
    return {name: log.scan(name).select(pl.exclude("^_.*$")).collect() for name in names if name in there}


@pytest.mark.parametrize("name", SHARED)
def test_a_flow_split_and_split_anew_gives_the_rows_of_one_process_in_their_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "FRESH", 48)  # So that states lie in lanes, too.
    flow, r = ended(SHARED[name]), random.Random(name)
    with ms.open() as log:
        fill(log, 5)
        ms.run(log, flow, until="head")
        whole = given(log, flow)
    assert whole
    assert all(frame.height for frame in whole.values())
    with ms.open(tmp_path / "log.db") as log:
        fill(log, 5)
        head, busy, counts = log.head, True, {1, 2, 3}
        while busy:
            count = counts.pop() if counts else r.choice([1, 2, 2, 3, 5])
            worker: Worker | SharedWorker
            if count == 1:
                worker = Worker(log, flow, rows=90, commit_every=0)
            else:
                limit = r.choice([None, 1, 5_000])
                worker = SharedWorker(log, flow, count, rows=90, commit_every=0, memory=limit, begin=inline(log, flow))
            for _ in range(r.randrange(1, 5)):
                busy = worker.advance(head)
                if not busy:
                    break
            worker.close()
        found = given(log, flow)
        for stream_name, frame in whole.items():
            assert_frame_equal(found[stream_name], frame)


def test_each_row_of_a_state_is_of_one_range_and_watermarks_are_of_all_rows() -> None:
    flow, rows = ended(MORE["distinct"]), clicks(3, 900)
    rows = rows.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("_position"))
    alone = Pipeline(flow)
    whole, _, _ = alone.step(alone.start(), rows)
    states = []
    for index in range(3):
        pipeline = SharedPipeline(flow, Range(index, 3))
        states.append(pipeline.step(pipeline.start(), rows)[0])
    assert {alone.watermark(state) for state in [*states, whole]} == {alone.watermark(whole)}
    for index, state in enumerate(states):
        for number, operator in enumerate(state.operators):
            for part in operator.parts.items:
                owned = [Range(each, 3).owns(part.frame, pipeline.plan.held[number]).height for each in range(3)]
                assert owned[index] == sum(owned) > 0


@pytest.mark.parametrize(
    ("flow", "why"),
    [
        (events.window(tumbling("1m")).agg(n=pl.len()), "all rows together"),
        (
            events.group_by("user").window(tumbling("1m")).agg(n=pl.len()).window(tumbling("1h")).agg(m=pl.len()),
            "all rows together",
        ),
        (
            events.group_by("user")
            .window(tumbling("1m"))
            .agg(n=pl.len())
            .group_by("n")
            .window(tumbling("1h"))
            .agg(m=pl.len()),
            "no key of a window by user",
        ),
        (events.group_by("user").window(tumbling("1m")).agg(n=pl.len()).top(1, by="n"), "rows of a window together"),
        (
            events.group_by("user").window(tumbling("1m")).agg(n=pl.len()).top(1, by="user", per="n"),
            "no key of a window by user",
        ),
        (events.enrich(answered, schema={"more": pl.Int64}, ordered=False), "ordered=False"),
        (events.enrich(answered, schema={"who": pl.Int64}).distinct("who", within="1m"), "enrich would ask"),
        (
            events.enrich(answered, schema={"more": pl.Int64})
            .with_columns(who=pl.col("user") % 2)
            .distinct("who", within="1m"),
            "enrich would ask",
        ),
        (FLOWS[-1], "merged"),
        (
            events.merge(events.distinct("user", within="1m")).join_latest(views.select("user"), on="user"),
            "merged flows in their order of time",
        ),
        (events.window(tumbling("1m"), early="10s").agg(n=pl.len()), "all rows together"),
        (
            events.merge(events.with_columns(user=pl.col("user") * 7 + 3)).latest("user").late_to("clicks-late"),
            "late rows are kept, and those of 'clicks' come in two ways",
        ),
        (
            events.filter(PURCHASE)
            .join(stream("click*", time="ts").select("ts", user="amount"), on="user", back="1m", prefix="v_")
            .late_to("late"),
            "told apart by different columns",
        ),
        (
            events.map_rows(lambda row: {"x": row["amount"]}, schema={"x": pl.Int64})
            .group_by("x")
            .window(tumbling("1m"))
            .agg(n=pl.len()),
            "cannot be sent",
        ),
    ],
)
def test_a_flow_that_cannot_be_shared_is_refused_with_the_reason(flow: Flow, why: str, tmp_path: Path) -> None:
    with ms.open(tmp_path / "log.db") as log:
        fill(log, 1, 40)
        with pytest.raises(FlowError, match=why):
            ms.run(log, ended(flow), until="head", processes=2)


def test_rows_that_go_elsewhere_are_given_once_by_the_process_that_commits(tmp_path: Path) -> None:
    counts = events.group_by("user").window(tumbling("1m")).agg(n=pl.len())
    told: list[pl.DataFrame] = []
    with ms.open(tmp_path / "log.db") as log:
        fill(log, 2)
        whole = counts.over(log, final=False)
        for flow in (counts.to_files(str(tmp_path / "out"), every="0s"), counts.to_function(told.append, name="told")):
            worker = SharedWorker(log, flow, 2, rows=90, commit_every=0, begin=inline(log, flow))
            while worker.advance(log.head):
                pass
            worker.flush()
            worker.close()
    assert whole.height
    files = [pl.read_parquet(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert len(files) > 1
    assert_frame_equal(pl.concat(files), whole)
    assert_frame_equal(pl.concat(told), whole)


@pytest.mark.parametrize("seed", range(6))
def test_processes_say_that_a_source_is_silent_when_one_would(seed: int, tmp_path: Path) -> None:
    quiet, busy = stream("quiet", time="ts", idle="40s", lateness="5s"), stream("busy", time="ts", idle="2m")
    flow = [
        quiet.group_by("user").window(tumbling("1m")).agg(n=pl.len()),
        quiet.group_by("user").window(tumbling("1m")).agg(n=pl.len()).alert(pl.col("n") > 0, cooldown="3m"),
        quiet.join(busy, on="user", back="1m", ahead="1m", how="full", prefix="b_"),
    ][seed % 3].to("out", type="SharedOut")
    clocks, found = [FakeClock(START), FakeClock(START)], []
    for shared, clock in enumerate(clocks):
        r = random.Random(seed)
        with ms.open(tmp_path / f"{shared}.db", clock=clock) as log:
            worker: Worker | SharedWorker | None = None
            for _ in range(40):
                name = r.choice(["quiet", "quiet", "busy", "other", "wait", "wait", "restart"])
                clock.advance(f"{r.randrange(1, 50)}s")
                processes, back = r.choice([1, 2, 3]), r.randrange(20)
                if name in ("quiet", "busy", "other"):
                    row = {"user": r.randrange(4), "ts": (clock() - timedelta(seconds=back)).isoformat()}
                    log.append(name, ms.Plain("SharedQuiet", row))
                elif name == "restart" and worker is not None:
                    worker.flush()
                    worker.close()
                    worker = None
                if worker is None and shared and processes > 1:
                    worker = SharedWorker(log, flow, processes, commit_every=0, begin=inline(log, flow))
                worker = worker or Worker(log, flow, commit_every=0)
                for _ in range(2):
                    head = log.head
                    while worker.advance(head):
                        pass
                    worker.listen(log.head)
            assert worker is not None
            worker.flush()
            worker.close()
            said = [(event.data, event.recorded) for event in log.read("$idle")]
            found.append((said, given(log, flow)["out"].rows()))
    assert found[0][0]
    assert found[0][1]
    assert found[0] == found[1]


@pytest.mark.parametrize("how", ["as of", "latest", "renamed"])
@pytest.mark.parametrize("seed", range(3))
def test_processes_share_a_table_that_changes_by_its_key(
    how: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "FRESH", 4)
    orders = stream("orders", time="at", lateness="3s")
    users = ms.table("users", key="id").filter(pl.col("level") > 0).with_columns(twice=pl.col("level") * 2)
    flow = (
        {
            "as of": orders.join_asof(users, on="user", prefix="u_"),
            "latest": orders.join_latest(users, on="user", prefix="u_", how="inner"),
            "renamed": orders.select("n", "at", id="user")
            .join_asof(users.select("name"), on="id", prefix="u_")
            .group_by("id", "u_name")
            .window(tumbling("1m"))
            .agg(n=pl.len(), last=pl.col("n").last()),
        }[how]
        .late_to("orders-late")
        .to("out", type="SharedOut")
    )
    untimed = {"operation": "DELETE", "before": {"id": 1}, "after": None, "timestamp": None}
    alone, model = Model(seed), Model(seed)
    model.log.close()
    model.log = ms.open(tmp_path / "log.db")
    with alone.play(150) as log:
        log.append("users", ms.Plain("Change", untimed))
        ms.run(log, flow, until="head")
        whole = given(log, flow)
    assert whole["out"].height
    with model.play(150) as log:
        log.append("users", ms.Plain("Change", untimed))
        head, busy, r = log.head, True, random.Random(seed)
        while busy:
            worker: Worker | SharedWorker
            count = r.choice([1, 2, 3])
            if count == 1:
                worker = Worker(log, flow, rows=7, commit_every=0)
            else:
                worker = SharedWorker(log, flow, count, rows=7, commit_every=0, begin=inline(log, flow))
            for _ in range(r.randrange(1, 9)):
                busy = worker.advance(head)
                if not busy:
                    break
            worker.flush()
            late = worker.state.late
            worker.close()
        found = given(log, flow)
        for stream_name, frame in whole.items():
            assert_frame_equal(found[stream_name], frame, check_column_order=stream_name == "out")
        assert late == whole.get("orders-late", pl.DataFrame()).height


def test_a_log_in_memory_and_no_number_of_processes_are_refused() -> None:
    with ms.open() as log:
        flow = ended(MORE["computed"])
        with pytest.raises(ms.UsageError, match="memory"):
            ms.run(log, flow, until="head", processes=2)
        with pytest.raises(ms.UsageError, match="processes=0"):
            ms.run(log, flow, until="head", processes=0)


def test_a_key_whose_type_widens_is_taken_in_alone_and_split_anew(tmp_path: Path) -> None:
    big = 2**53 + 1
    rows = [{"k": k, "at": f"2024-01-15T12:{n:02}:00Z"} for n, k in enumerate([1, big, 2, 1, big, 0.5, 2, 1, "a", big])]
    flow = stream("odd", time="at").group_by("k").window(tumbling("1h")).agg(n=pl.len()).to("out", type="OddOut")
    last = {"k": None, "at": "2024-01-16T12:00:00Z"}
    results = []
    for shared in (False, True):
        with ms.open(tmp_path / f"{shared}.db") as log:
            for row in [*rows, last]:
                log.append("odd", ms.Plain("Odd", row))
            if shared:
                worker = SharedWorker(log, flow, 3, rows=2, commit_every=0, begin=inline(log, flow))
                while worker.advance(log.head):
                    pass
                worker.flush()
                worker.close()
            else:
                ms.run(log, flow, until="head")
            results.append(given(log, flow)["out"])
    assert results[0].height >= 4
    assert_frame_equal(*results)


@pytest.mark.parametrize("what", ["compacted", "trimmed"])
def test_what_becomes_of_bodies_between_two_processes_loses_no_row_and_gives_none_twice(
    what: str, tmp_path: Path
) -> None:
    flow = stream("t").select("n").to("out", type="Out")
    with ms.open(tmp_path / "log.db") as log:
        log.commit([log.stage("t", ms.Plain("T", {"n": n})) for n in range(3000)])
        head = log.head

        class Second(Inline):
            def get(self, timeout: float) -> object:
                if self._share.pipeline.range.index == 1:
                    if what == "compacted":
                        log.compact("t")
                    else:
                        log.trim("t", keep=2000)
                return super().get(timeout)

        worker = SharedWorker(
            log, flow, 2, rows=1000, commit_every=0, begin=lambda start, count: Second(log, flow, start)
        )
        while worker.advance(head):
            pass
        worker.flush()
        worker.close()
        given = log.scan("out").collect()["n"].to_list()
    assert given == list(range(0 if what == "compacted" else 1000, 3000))
