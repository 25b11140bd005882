"""What somebody who is new to flows writes wrongly, and what is said then."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import millstream as ms
from millstream.errors import StreamNotFound
from millstream.streams import Flow, MissingColumn, UnsupportedExpression, stream

NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
ROWS = pl.DataFrame(
    {"user": [1, 2, 1], "page": ["/", "/", "/a"], "ts": [NOON + timedelta(minutes=n) for n in range(3)]}
)


@pytest.fixture
def clicks() -> Flow:
    return ms.stream("clicks", time="ts")


def test_an_aggregate_that_is_no_expression_is_named(clicks: Flow) -> None:
    with pytest.raises(ms.UsageError, match=r"got n='count'"):
        clicks.window(ms.tumbling("5m")).agg(n="count")  # type: ignore[arg-type]


def test_keys_and_windows_alone_say_what_they_lack(clicks: Flow) -> None:
    grouped = clicks.group_by("user")
    with pytest.raises(AttributeError, match=r"keys have no 'agg'.*\.window\(\.\.\.\)"):
        grouped.agg(n=pl.len())
    log = ms.open()
    with pytest.raises(ms.UsageError, match="keys alone are no flow"):
        ms.run(log, grouped, until="head")  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="windows alone are no flow"):
        ms.run(log, grouped.window(ms.tumbling("5m")), until="head")  # type: ignore[arg-type]


def test_a_misspelt_column_of_results_is_told_with_those_that_are_the_users(clicks: Flow) -> None:
    counts = clicks.group_by("user").window(ms.tumbling("5m")).agg(n=pl.len())
    with pytest.raises(ms.MissingColumn) as raised:
        counts.alert(pl.col("m") > 1).over(ROWS)
    assert raised.value.columns == ["user", "window_start", "window_end", "n", "_position"]
    assert "__" not in str(raised.value)


MISTAKES: dict[str, Callable[[Flow], object]] = {
    "on= names 'user' twice": lambda clicks: clicks.join_latest(ms.stream("limits"), on=["user", "user"]),
    "on= takes the names of columns, and got None": lambda clicks: clicks.join_latest(
        ms.stream("limits"),
        on=None,  # type: ignore[arg-type]
    ),
    "key= names 'id' twice": lambda _: ms.table("people", key=["id", "id"]),
    "names no columns": lambda _: ms.table("people", key=""),
    "key= takes the names of columns, and got None": lambda _: ms.table("people", key=None),  # type: ignore[arg-type]
    "is no stream": lambda _: ms.table(["people"], key="id"),  # type: ignore[arg-type]
    "by= takes the name of a column": lambda clicks: (
        clicks.window(ms.tumbling("5m")).agg(n=pl.len()).top(1, by=pl.col("n"))
    ),  # type: ignore[arg-type]
    "per= takes the names of columns": lambda clicks: (
        clicks.window(ms.tumbling("5m")).agg(n=pl.len()).top(1, by="n", per=pl.col("n"))
    ),  # type: ignore[arg-type]
    "reads= names 'user' twice": lambda clicks: clicks.map_rows(len, schema={"n": pl.Int64}, reads=["user", "user"]),
    "reads= names no column": lambda clicks: clicks.map_rows(len, schema={"n": pl.Int64}, reads=[]),
    "quantile of 5": lambda _: ms.quantile(5, 0.5),  # type: ignore[arg-type]
    "a quantile of '0.5'": lambda _: ms.quantile("x", "0.5"),  # type: ignore[arg-type]
    "is no time zone": lambda _: ms.calendar("1d", time_zone=None),  # type: ignore[arg-type]
    "is no savepoint": lambda clicks: clicks.to("o", type="Mistaken").start_from(ms.open(), "label"),  # type: ignore[arg-type]
    "not among those that run": lambda clicks: clicks.graph(ms.open()),  # type: ignore[arg-type]
    "measures='low' is no dict": lambda clicks: clicks.match(
        "a",
        within="1m",
        define={"a": pl.lit(True)},
        measures="low",  # type: ignore[arg-type]
    ),
    "measures= takes expressions, and got 'a.user'": lambda clicks: clicks.match(
        "a",
        within="1m",
        define={"a": pl.lit(True)},
        measures={"who": "a.user"},  # type: ignore[dict-item]
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_an_argument_of_another_kind_is_refused_by_name(clicks: Flow, message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        MISTAKES[message](clicks)


def test_several_conditions_are_met_together(clicks: Flow) -> None:
    both = clicks.filter(pl.col("user") == 1, pl.col("page") == "/")
    assert both.over(ROWS).height == 1
    table = ms.table("people", key="id")
    change = {"operation": "INSERT", "before": None, "timestamp": NOON}
    log = ms.open()
    people = [{"id": 1, "city": "Rome", "age": 9}, {"id": 2, "city": "Rome", "age": 99}]
    log.append("people", [ms.Plain("Change", {**change, "after": each}) for each in people])
    log.append("clicks", ROWS, type="Click")
    old = table.filter(pl.col("city") == "Rome", pl.col("age") > 10)
    assert clicks.join_latest(old, on="user").over(log)["city"].to_list() == [None, "Rome", None]
    with pytest.raises(ms.UsageError, match="got True"):
        clicks.filter(pl.col("user") == 1, True)  # type: ignore[arg-type]


def test_who_misspells_a_column_is_told_of_all_that_there_are(clicks: Flow) -> None:
    counts = clicks.group_by("user").window(ms.tumbling("5m")).agg(n=pl.len())
    with pytest.raises(MissingColumn, match="there are 'user', 'window_start', 'window_end', 'n'"):
        counts.group_by("user").window(ms.tumbling("1h")).agg(most=pl.col("m").max()).over(ROWS)


def test_a_past_may_be_any_frame(clicks: Flow) -> None:
    counts = clicks.group_by("user").window(ms.tumbling("5m")).agg(n=pl.len())
    expected = counts.over(ROWS)
    for frame in (ROWS.lazy(), ROWS.to_arrow(), ROWS.to_pandas()):
        assert counts.over(frame).equals(expected)
        assert counts.late_over(frame).height == 0
    with pytest.raises(ms.UsageError, match="no past of a flow"):
        counts.over([{"user": 1}])


def test_a_join_is_by_names_and_not_by_a_mapping(clicks: Flow) -> None:
    with pytest.raises(ms.UsageError, match="on= takes the names of columns"):
        clicks.join_asof(ms.table("people", key="id"), on={"user": "id"})  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="on= takes the names of columns"):
        clicks.join(ms.stream("shown", time="ts"), on={"user": "id"}, back="1m")  # type: ignore[arg-type]


def test_keys_that_are_given_as_a_list_are_told_how_to_be_given(clicks: Flow) -> None:
    with pytest.raises(ms.UsageError) as raised:
        clicks.group_by(["user", "page"])  # type: ignore[arg-type]
    assert raised.value.hint == "Write group_by('user'), or group_by('user', 'page')"


def test_what_a_pattern_is_made_of_is_told_as_it_is_written(clicks: Flow) -> None:
    grouped, first = clicks.group_by("user"), {"a": pl.col("page") == "/"}
    with pytest.raises(ms.UsageError, match=r"define=\['a'\] is no dict"):
        grouped.match("a", within="1m", define=["a"])  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="define= takes Polars' expressions, and got '/' for 'a'"):
        grouped.match("a", within="1m", define={"a": "/"})  # type: ignore[dict-item]
    with pytest.raises(ms.UnsupportedPattern, match=r"a second quantifier.*\(a\{2\}\)\{3\}"):
        grouped.match("a{2}{3}", within="1m", define=first)
    assert grouped.match("(a{2}){3}", within="1m", define=first).over(ROWS).height == 0
    with pytest.raises(ms.UnsupportedPattern, match=r"no such sign.*\(c \| d\)"):
        grouped.match("a & a", within="1m", define=first)


def test_what_is_asked_of_a_flow_without_its_log_says_that_the_log_is_missing(clicks: Flow) -> None:
    flow: Any = clicks.to("kept", type="Kept")
    for ask in (flow.at, flow.schema, flow.lateness, flow.check, flow.pause, flow.resume, flow.savepoints, flow.fork):
        with pytest.raises(ms.UsageError, match=r"'2024-01-15T12:00:00Z' is no log"):
            ask("2024-01-15T12:00:00Z")
    for ask in (flow.explain, flow.savepoint):
        with pytest.raises(ms.UsageError, match="is no log"):
            ask({"user": 1}, "first")


def test_a_report_of_lateness_is_told_in_a_line() -> None:
    log = ms.open()
    log.append("clicks", ROWS.sort("ts", descending=True), type="Click")
    [report] = ms.stream("clicks", time="ts").lateness(log)
    assert str(report) == "clicks: 3 rows, 2 late (66.67%), worst by 0:02:00"
    assert repr(report).startswith("Lateness(stream='clicks', rows=3, without_time=0, ahead=0, late=2, worst=")
    assert "\n" not in repr(report)


def test_flows_are_waited_for_by_receipt_and_duration() -> None:
    log = ms.open()
    receipt = log.append("clicks", ROWS, type="Click")
    with ms.Running(log, ms.stream("clicks", time="ts").select("user").to("users", type="User")) as running:
        assert running.wait(receipt, timeout="10s")
        assert running.pause(timeout="10s")
        assert running.resume(timeout="10s")


def test_names_that_are_no_texts_are_refused_at_once(clicks: Flow) -> None:
    class Clicked(ms.Event, type="MistakenClick"):
        user: int

    for end in (lambda: clicks.to("out", type=Clicked), lambda: clicks.late_to("late", type=Clicked)):  # type: ignore[arg-type]
        with pytest.raises(ms.InvalidEvent) as raised:
            end()
        assert raised.value.hint == "Give its name: 'MistakenClick'"
    with pytest.raises(ms.UsageError, match="is no name of a column"):
        ms.stream("clicks", time=pl.col("ts"))  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="on= takes the names of columns"):
        clicks.join(ms.stream("shown", time="ts"), on=pl.col("user"), back="1m")  # type: ignore[arg-type]


@pytest.mark.parametrize("condition", [pl.col("user"), pl.lit(1), pl.lit(None), pl.col("page").str.to_uppercase()])
def test_what_is_no_condition_is_refused_with_its_type(clicks: Flow, condition: pl.Expr) -> None:
    for flow in (
        clicks.filter(condition),
        clicks.filter(condition).group_by("user").window(ms.tumbling("1m")).agg(n=pl.len()),
    ):
        with pytest.raises(UnsupportedExpression, match="filter predicate must be of type `Boolean`"):
            flow.over(ROWS)


@pytest.mark.parametrize("name", ["*", "^u.*$"])
def test_a_name_that_stands_for_several_columns_is_no_key_and_no_time(clicks: Flow, name: str) -> None:
    mistakes: list[Callable[[], Any]] = [
        lambda: clicks.group_by(name),
        lambda: clicks.group_by("user", name),
        lambda: clicks.distinct(name, within="1m"),
        lambda: clicks.join(ms.stream("shown", time="ts"), on=name, back="1m"),
        lambda: ms.stream("clicks", time=name),
        lambda: clicks.group_by("user").window(ms.tumbling("1m")).agg(**{name: pl.len()}),
    ]
    for mistake in mistakes:
        with pytest.raises(ms.UsageError, match="stands for several"):
            mistake()


def test_a_flow_is_shown_on_one_line(clicks: Flow) -> None:
    counts = clicks.group_by("user").window(ms.tumbling("5m")).agg(n=pl.len()).alert(pl.col("n") > 1)
    assert repr(counts.to("alerts", type="A")) == "<Flow clicks → tumbling 5m → alert → to alerts: A>"
    both = clicks.merge(ms.stream("web")).select("user")
    assert repr(both.join(clicks, on="user", back="1m")) == "<Flow join inner (merge (clicks; web) → select; clicks)>"


def test_a_stream_that_is_misspelt_is_missed_by_name_and_one_without_an_event_yet_is_not() -> None:
    with ms.open() as log:
        nobody = stream("nobody").select("x")
        assert nobody.over(log).is_empty()
        for name in ("clicks", "orders-1"):
            log.append(name, ms.Plain("MistakenRow", {"x": 1}))
        for name, meant in (("click", "'clicks'"), ("order-*", "'orders-*'"), ("order-1", "'orders-*'"), ("x", "List")):
            with pytest.raises(StreamNotFound, match=re.escape(f"{name!r}")) as caught:
                stream(name).over(log)
            assert meant in (caught.value.hint or "")
        clicks = stream("clicks")
        for other in ("nobody", "orders-2", "orders-2*"):
            assert clicks.merge(stream(other)).over(log).height == 1
        with pytest.raises(StreamNotFound, match="'order-1'"):
            clicks.merge(stream("order-1")).over(log)
        with pytest.raises(StreamNotFound, match="'click'"):
            stream("click").late_over(log)
