"""The events behind a row: of them alone the flow makes the row again, and no fewer will do."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from referee import START, clicks
from test_flow_check import FLOWS, filled

import millstream as ms
from millstream.errors import NotFound, UsageError
from millstream.log.log import Log
from millstream.streams import Explanation, Flow, FlowError, run, sliding, stream, tumbling

left = stream("a", time="ts", lateness="2s")
by_user = left.group_by("user")
amount = pl.col("amount")


def streak(held: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {"best": max(held["best"], row["amount"])}


MORE: dict[str, Flow] = {
    "match": by_user.match("a b+", within="1m", define={"a": amount > 60, "b": amount < 30}),
    "relaxed": by_user.match(
        "a b c", within="2m", contiguity="relaxed",
        define={"a": pl.col("kind") == "view", "b": amount > 70, "c": pl.col("kind") == "purchase"},
    ),
    "absence": by_user.match(
        "a !b", within="30s", contiguity="relaxed", define={"a": amount > 60, "b": pl.col("kind") == "click"}
    ),
    "measures": left.match(
        "a (b | c){2}", within="1m", define={"a": amount > 60, "b": amount < 30, "c": pl.col("kind") == "view"},
        measures={"low": ms.matched.min("b.amount")}, skip="to next row",
    ),
    "fold": by_user.fold(streak, start={"best": 0}, schema={"best": pl.Int64}, forget="1m"),
    "map": left.map_rows(lambda row: row["amount"] * 2, schema={"double": pl.Int64}, reads=["amount"]),
}  # fmt: skip
ALL = FLOWS | MORE


def alone(log: Log, found: Explanation) -> Log:
    """A log with just the events of an explanation, in their order."""
    other = ms.open()
    wanted = set(found.positions)
    for run_ in log.runs():
        places = [position - run_.position for position in wanted if run_.position <= position <= run_.last]
        if places:
            other.append(run_.stream, run_.frame()[sorted(places)], type=run_.type)
    return other


def holds(rows: pl.DataFrame, row: dict[str, Any]) -> bool:
    for name, value in row.items():
        if name not in rows.columns:
            if value is not None:
                return False
            continue
        column = rows[name]
        if isinstance(value, float):
            rows = rows.filter((column - value).abs() <= 1e-9 * abs(value))
        else:
            rows = rows.filter(column.eq_missing(pl.Series([value], dtype=column.dtype)))
    return rows.height > 0


@pytest.mark.parametrize("name", ALL)
def test_of_the_events_behind_a_row_alone_the_flow_makes_it_again(name: str) -> None:
    flow = ALL[name]
    with filled(7, 120) as log:
        rows = flow.over(log)
        assert rows.height
        places = random.Random(name).sample(range(rows.height), min(2, rows.height))
        for row in (rows.row(place, named=True) for place in places):
            found = flow.explain(log, row)
            assert found.positions
            with alone(log, found) as other:
                assert other.head == len(found.positions)
                assert holds(flow.over(other), row), (row, found.inputs)


@pytest.mark.parametrize("name", ["match", "relaxed", "absence", "measures"])
def test_a_match_is_explained_by_the_rows_that_it_took(name: str) -> None:
    with filled(5, 160) as log:
        for row in ALL[name].over(log).rows(named=True)[:10]:
            assert len(ALL[name].explain(log, row).positions) == row["events"]


def test_an_event_of_the_log_is_explained_through_alerts_and_windows_to_its_sources() -> None:
    flow = (
        left.filter(pl.col("kind") == "click").group_by("user").window(sliding("1m")).agg(n=pl.len())
        .alert(pl.col("n") > 2, cooldown="5m").select("user", "n", at="window_end").to("alerts", type="ExplainedAlert")
    )  # fmt: skip
    with filled(3) as log:
        run(log, flow, until="head")
        log.append("a", clicks(9, 50), type="CheckedA")
        for event in list(log.read("alerts"))[:5]:
            found = flow.explain(log, event)
            rows = found.inputs["a"]
            assert rows.height == event.data["n"] == found.row["n"]
            assert rows["kind"].unique().to_list() == ["click"]
            assert rows["user"].eq_missing(pl.Series([event.data["user"]])).all()
            assert rows["ts"].is_between(event.data["at"] - timedelta(minutes=1), event.data["at"]).all()
            assert all(position < event.position for position in found.positions)


def test_rows_that_came_late_are_not_named() -> None:
    rows = pl.DataFrame({"user": 1, "ts": [START + timedelta(seconds=s) for s in (0, 30, 90, 10, 100)]})
    flow = stream("a", time="ts").group_by("user").window(tumbling("1m")).agg(n=pl.len())
    with ms.open() as log:
        log.append("a", rows, type="ExplainedRow")
        assert flow.explain(log, {"window_start": START}).positions == [1, 2]
        assert flow.explain(log, flow.over(log).tail(1)).positions == [3, 5]


def test_a_row_that_is_not_there_or_not_the_only_one_is_told() -> None:
    flow = by_user.window(tumbling("1m")).agg(n=pl.len())
    with filled(1) as log:
        with pytest.raises(NotFound, match="no such row"):
            flow.explain(log, {"n": 10_000})
        with pytest.raises(FlowError, match="rows of the flow are like that"):
            flow.explain(log, {"user": 1})
        with pytest.raises(UsageError, match="no column 'm'"):
            flow.explain(log, {"m": 1})
        with pytest.raises(UsageError, match="is no row"):
            flow.explain(log, {})


@pytest.mark.parametrize(
    "options", [{"early": "10s"}, {"allowed_lateness": "20s"}, {"early": "20s", "allowed_lateness": "1m"}]
)
def test_behind_an_early_or_corrected_result_are_the_rows_that_had_come(options: dict[str, str]) -> None:
    flow = by_user.window(tumbling("1m"), **options).agg(n=pl.len(), total=amount.sum())
    rows = clicks(11, 150, users=3, minutes=5, late=30)
    with ms.open() as log:
        log.append("a", rows, type="ExplainedRevised")
        results = flow.over(log)
        assert len(results["status"].unique()) > 1
        for result in results.sample(min(results.height, 6), seed=1).rows(named=True):
            [behind] = flow.explain(log, result).inputs.values()
            assert behind.height == result["n"]
            assert behind["amount"].sum() == result["total"]
            assert behind["user"].eq_missing(pl.Series([result["user"]])).all()


def test_a_row_is_explained_from_a_savepoint_when_all_behind_it_came_after() -> None:
    flows = {
        "windows": by_user.window(tumbling("1m")).agg(n=pl.len()),
        "sliding": by_user.window(sliding("1m")).agg(n=pl.len()).alert(pl.col("n") > 1, cooldown="1m"),
        "match": by_user.match("a b", within="1m", define={"a": amount > 40, "b": amount < 40}),
        "revised": by_user.window(tumbling("1m"), early="20s", allowed_lateness="1m").agg(n=pl.len()),
        "join": left.join(stream("b", time="ts", lateness="2s"), on="user", back="30s", ahead="30s", prefix="b_"),
    }
    with ms.open() as log:
        ended = {name: flow.to(f"out-{name}", type=f"Explained{name.title()}") for name, flow in flows.items()}
        positions = []
        for part in clicks(4, 600, users=4, minutes=40).iter_slices(100):
            log.append("a", part, type="ExplainedA")
            log.append("b", part, type="ExplainedB")
            for name, flow in ended.items():
                run(log, flow, until="head")
                positions.append(flow.savepoint(log, f"{name}-{log.head}").position)
        began: list[int] = []
        read = reading(log, began)
        for name, flow in ended.items():
            events = list(log.read(f"out-{name}"))
            assert len(events) > 10
            for event in events[-2:]:
                whole = flows[name].explain(log, event)
                began.clear()
                found = flow.explain(read, event)
                assert found.row == whole.row
                assert found.positions == whole.positions
                # It was not played from the beginning.
                assert min(began) in positions


def reading(log: Log, began: list[int]) -> Log:
    """The log; from where on it is read is noted."""
    runs, spans = log.runs, log.spans

    def noted_runs(*given: Any, **options: Any) -> Any:
        began.append(options.get("after", 0))
        return runs(*given, **options)

    def noted_spans(scope: Any, low: int, *given: Any) -> Any:
        began.append(low)
        return spans(scope, low, *given)

    log.runs, log.spans = noted_runs, noted_spans  # type: ignore[method-assign]
    return log


@pytest.mark.parametrize(
    "flow",
    [left.select("kind"), by_user.window(sliding("1m")).agg(n=pl.len()).select("kind", "n")],
    ids=["as in the log", "settled"],
)
def test_of_several_equal_rows_an_event_is_explained_by_the_one_whose_turn_it_is(flow: Flow) -> None:
    ended = flow.select("kind").to("kinds", type="ExplainedKind")
    traced = flow.with_columns(at=pl.col("_position")).to("places", type="ExplainedPlace")
    with filled(4, 60) as log:
        for seed in range(3):
            run(log, ended, traced, until="head")
            if seed == 1:
                ended.savepoint(log, "here")
            log.append("a", clicks(seed, 10), type="CheckedA")
        run(log, ended, traced, until="head")
        places = [event.data["at"] for event in log.read("places")]
        events = list(log.read("kinds"))
        assert len(places) == len(events) > 40
        for event, place in list(zip(events, places, strict=True))[::5]:
            found = ended.explain(log, event)
            assert place in found.positions
            assert len(found.positions) == 1 or len(flow.stages) > 1
            assert found.alike > 1
        first = ended.explain(log, {"kind": "click"})
        assert first.positions == ended.explain(log, next(e for e in events if e.data["kind"] == "click")).positions
        assert first.alike == flow.select("kind").over(log)["kind"].eq("click").sum()


def test_a_value_that_is_no_finite_number_is_like_itself_alone() -> None:
    keys = [float("nan"), float("inf"), -float("inf"), 1.5, None] * 2
    rows = pl.DataFrame({"user": keys, "ts": [START + timedelta(seconds=each) for each in range(10)]})
    counts = stream("clicks", time="ts").group_by("user").window(tumbling("1h")).agg(n=pl.len())
    with ms.open() as log:
        log.append("clicks", rows, type="ExplainedOdd")
        for row in counts.over(log).to_dicts():
            found = counts.explain(log, row)
            assert len(found.positions) == 2
            assert str(found.inputs["clicks"]["user"].unique().to_list()) == str([row["user"]])
