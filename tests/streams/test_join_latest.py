"""Limits that come from a stream and change while a flow runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, agree, clicks, revived

import millstream as ms
from millstream.log.log import Log
from millstream.streams import Flow, FlowError, run, session, sliding, stream, tumbling
from millstream.streams.pipeline import Pipeline
from millstream.streams.replay import batches, frames, labelled, replay
from millstream.streams.state import widened

source = stream("clicks", time="ts", lateness="2s")
limits = stream("limits")


def filled(seed: int, count: int = 120) -> Log:
    """A log with clicks, and limits between them."""
    r = random.Random(seed)
    log = ms.open()
    rows = clicks(seed, count, users=4, minutes=10).with_row_index("n")
    at = 0
    while at < rows.height:
        if r.random() < 0.4:
            user = r.choice([None, 0, 1, 2, 3])
            changed = [
                {"user": user, "limit": r.randrange(4), "gone": r.random() < 0.2} for _ in range(r.randrange(1, 3))
            ]
            log.append("limits", pl.DataFrame(changed, schema=LIMIT, orient="row"), type="ClickLimit")
        size = r.choice([1, 2, 7])
        log.append("clicks", rows.slice(at, size), type="LimitedClick")
        at += size
    return log


LIMIT: dict[str, Any] = {"user": pl.Int64, "limit": pl.Int64, "gone": pl.Boolean}


def tables(log: Log) -> dict[str, pl.DataFrame]:
    return {name: log.scan(name, envelope=True).collect() for name in ("clicks", "limits")}


def cut(log: Log, flow: Flow, seed: int) -> pl.DataFrame:
    """What a flow gives of a log in batches of random sizes, its state put away now and then."""
    r = random.Random(seed)
    pipeline = Pipeline(flow)
    state, results = pipeline.start(), []
    for group in batches(labelled(log, pipeline.sources, 0, log.head + 1), r.choice([1, 3, 20])):
        for frame in frames(pipeline, state.sources, group):
            state, result, _ = pipeline.step(state, frame, fill=True)
            results.append(result)
        if r.random() < 0.3:
            state = revived(pipeline, state)
    results.append(pipeline.finish(state)[1])
    return widened([result for result in results if result.height])


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["left", "inner"]))
def test_a_row_in_the_order_of_the_log_gets_what_was_said_last_before_it(seed: int, keyed: bool, how: Any) -> None:
    with filled(seed) as log:
        flow = source.join_latest(
            limits, on="user" if keyed else (), how=how, prefix="" if keyed else "limit_", delete=pl.col("gone")
        ).select("n", limit="limit" if keyed else "limit_limit")
        result = cut(log, flow, seed)
        agree(
            result,
            f"""select n, "limit" from (
                select c.n, c._position, l.gone, case when l.gone then null else l.limit end as "limit"
                from clicks c left join limits l on l._position < c._position {"and l.user = c.user" if keyed else ""}
                qualify row_number() over (partition by c.n order by l._position desc) = 1
            ) {"" if how == "left" else "where not gone"}""",
            **tables(log),
        )
        assert result.equals(flow.over(log))
        assert result["n"].is_sorted()


WINDOWS: list[Callable[[Flow], Flow]] = [
    lambda flow: flow.group_by("user").window(tumbling("30s")).agg(n=pl.len()),
    lambda flow: flow.group_by("user").window(sliding("30s")).agg(m=pl.len()),
    lambda flow: flow.group_by("user").window(session("5s")).agg(n=pl.len()),
    lambda flow: flow.distinct("user", within="10s"),
    lambda flow: flow.group_by("user").match("a b", within="10s", define={"a": pl.lit(True), "b": pl.lit(True)}),
    lambda flow: flow.group_by("user").match(
        "a !b",
        within="5s",
        contiguity="relaxed",
        define={"a": pl.col("kind") == "click", "b": pl.col("kind") == "purchase"},
    ),
    lambda flow: flow.join(flow.filter(pl.col("kind") == "purchase"), on="user", ahead="3s", prefix="b_", how="left"),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_result_gets_what_was_said_up_to_the_row_that_completed_it(window: Callable[[Flow], Flow]) -> None:
    for seed in range(2):
        with filled(seed, 80) as log:
            flow = window(source)
            told = flow.join_latest(limits, prefix="last_")
            whole = told.over(log)
            assert whole.height
            said_columns = ["last_limit", "last_gone", "last_user"]
            assert whole.drop(said_columns).equals(flow.over(log))
            for again in (2 * seed, 2 * seed + 1):
                assert cut(log, told, again).equals(whole)
            # By definition: what a result gets is what is known when a run that takes one event at a time gives it.
            pipeline = Pipeline(flow)
            state, known, expected = pipeline.start(), None, []
            said = dict(tables(log)["limits"]["_position", "limit"].rows())
            for group in batches(labelled(log, pipeline.sources, 0, log.head + 1), 1):
                for frame in frames(pipeline, state.sources, group):
                    for row in [frame] if isinstance(frame, pl.DataFrame) else frame:
                        assert row is not None
                        for one in row.iter_slices(1):
                            known = max((place for place in said if place <= one["_position"].item()), default=None)
                            state, out, _ = pipeline.step(state, one, fill=True)
                            expected += [said.get(known)] * out.height
            expected += [said[max(said)] if said else None] * pipeline.finish(state)[1].height
            assert whole["last_limit"].to_list() == expected


def test_a_limit_that_changes_counts_from_there_and_one_of_long_ago_holds_nothing_back() -> None:
    with ms.open() as log:
        counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len())
        ruled = stream("limits", time="since")
        flow = (
            counts.join_latest(ruled.select("user", "limit"), on="user")
            .alert(pl.col("n") >= pl.col("limit"), on="enter")
            .to("limited", type="Limited")
        )
        old = START - timedelta(days=100)
        log.append("limits", ms.Plain("ClickLimit", {"user": 1, "limit": 3, "since": old.isoformat()}))

        def visit(minute: int, times: int) -> list[str]:
            ts = [START + timedelta(minutes=minute, seconds=s) for s in range(times)] + [
                START + timedelta(minutes=minute + 1, seconds=2)
            ]
            log.append("clicks", pl.DataFrame({"user": [1] * times + [0], "ts": ts}), type="LimitedClick")
            run(log, flow, until="head")
            return [event.data["window_start"].strftime("%M") for event in log.read("limited")]

        assert visit(0, 2) == []
        assert visit(1, 3) == ["01"]
        log.append("limits", ms.Plain("ClickLimit", {"user": 1, "limit": 9, "since": old.isoformat()}))
        assert visit(2, 5) == ["01"]
        log.append("limits", ms.Plain("ClickLimit", {"user": 1, "limit": 2, "since": old.isoformat()}))
        assert visit(3, 5) == ["01", "03"]
        assert visit(4, 5) == ["01", "03"]
        for rows in (1, 4, 1000):
            assert replay(flow, log, rows=rows, final=False).height == 2


def test_without_a_limit_there_is_no_alert_and_what_has_no_meaning_is_refused() -> None:
    with ms.open() as log:
        log.append("clicks", clicks(1, 50), type="LimitedClick")
        counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len())
        assert not counts.join_latest(limits, on="user").alert(pl.col("n") >= pl.col("limit")).over(log).height
    with pytest.raises(FlowError, match="places in the log"):
        source.join_latest(counts, on="user")
    with pytest.raises(FlowError, match="both sides"), filled(1) as log:
        source.join_latest(limits).over(log)
