"""Founding story 4: clicks are counted over five minutes, patterns found, alerts raised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

import millstream as ms
from millstream.streams import Flow, hopping, run, stream

NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)


class Click(ms.Event):
    user: int
    ts: datetime
    kind: str = "click"


class Purchase(ms.Event):
    user: int
    ts: datetime
    kind: str = "purchase"


class Heartbeat(ms.Event):
    ts: datetime


clicks = stream("clicks", time="ts", lateness="2s")


def active() -> Flow:
    return (
        clicks.filter(pl.col("kind") == "click")
        .group_by("user")
        .window(hopping("5m", every="1m"))
        .agg(clicks=pl.len())
        .alert(pl.col("clicks") >= 50, cooldown="5m")
        .to("alerts", type="UserActiveAlert")
    )


def conversion() -> Flow:
    return (
        clicks.group_by("user")
        .match(
            "click{3,} purchase",
            within="10m",
            contiguity="relaxed",
            define={"click": pl.col("kind") == "click", "purchase": pl.col("kind") == "purchase"},
        )
        .to("conversions", type="ConversionEvent")
    )


def visit(log: ms.Log) -> None:
    for number in range(50):
        log.append("clicks", Click(user=123, ts=NOON + timedelta(seconds=number)))
    for number in range(3):
        log.append("clicks", Click(user=456, ts=NOON + timedelta(seconds=60 + number)))
    log.append("clicks", Purchase(user=456, ts=NOON + timedelta(seconds=70)))
    log.append("clicks", Click(user=789, ts=NOON + timedelta(seconds=71)))
    # Time goes on, so the windows close.
    log.append("clicks", Heartbeat(ts=NOON + timedelta(minutes=30)))


def test_user_123_is_alerted_of_and_user_456_converts(home: str | None) -> None:
    with ms.open(home) as log:
        visit(log)
        run(log, active(), conversion(), until="head")

        alerts = list(log.read("alerts"))
        assert [alert.type for alert in alerts] == ["UserActiveAlert"]
        assert alerts[0].data["user"] == 123
        assert alerts[0].data["clicks"] == 50

        conversions = list(log.read("conversions"))
        assert [conversion.type for conversion in conversions] == ["ConversionEvent"]
        assert conversions[0].data["user"] == 456


def test_the_story_comes_out_the_same_when_told_event_by_event_with_a_new_process_each_time(
    home: str | None,
) -> None:
    with ms.open() as log:
        visit(log)
        run(log, active(), conversion(), until="head")
        whole = [log.scan("alerts").collect(), log.scan("conversions").collect()]

        with ms.open(home) as other:
            for event in log.read("clicks"):
                other.append("clicks", event.event)
                run(other, active(), conversion(), until="head")
            assert other.scan("alerts").collect().equals(whole[0])
            assert other.scan("conversions").collect().equals(whole[1])


def test_a_backtest_tells_the_same_story_and_writes_nothing(home: str | None) -> None:
    with ms.open(home) as log:
        visit(log)
        head = log.head
        assert active().over(log).select("user", "clicks").rows() == [(123, 50)]
        assert conversion().over(log)["user"].to_list() == [456]
        assert log.head == head
