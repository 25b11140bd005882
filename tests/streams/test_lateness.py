"""How late rows came, by definition."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from referee import START, clicks

import millstream as ms
from millstream.streams import stream


@pytest.mark.parametrize("objects", [False, True])
def test_the_report_is_what_the_definition_says(objects: bool) -> None:
    rows = clicks(3, 1_000)
    with ms.open() as log:
        for start in range(0, rows.height, 37):
            part = rows.slice(start, 37)
            if objects:
                texts = part.with_columns(pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dicts()
                log.append("clicks", [ms.Plain("LatenessClick", row) for row in texts])
            else:
                log.append("clicks", part, type="LatenessClick")
        [report] = stream("clicks", time="ts", lateness="1s").lateness(log)
    high, behind = START - timedelta(days=1), []
    for at in rows["ts"]:
        behind.append(max(high - at, timedelta()))
        high = max(high, at)
    assert (report.stream, report.rows, report.without_time) == ("clicks", 1_000, 0)
    assert report.late == sum(each > timedelta(seconds=1) for each in behind)
    assert report.worst == max(behind)
    for share in (0, 0.5, 0.9, 0.999, 1):
        kept = report.keeps(share)
        assert sum(each <= kept for each in behind) >= share * 1_000
        assert not kept or sum(each < kept for each in behind) < share * 1_000
    with pytest.raises(ms.UsageError, match="no share"):
        report.keeps(99.9)


def test_rows_without_a_time_are_late_and_an_empty_past_is_no_error() -> None:
    with ms.open() as log:
        [nothing] = stream("clicks", time="ts").lateness(log)
        assert (nothing.rows, nothing.keeps(0.999)) == (0, timedelta())
        log.append(
            "clicks", [ms.Plain("LatenessClick", {"ts": "2024-01-15"}), ms.Plain("LatenessClick", {"ts": "soon"})]
        )
        log.append("clicks", ms.Plain("LatenessClick", {}))
        [report] = stream("clicks", time="ts").lateness(log)
        assert (report.rows, report.without_time, report.late) == (3, 2, 2)
        merged = stream("clicks", time="ts").merge(stream("clicks"))
        assert [each.rows for each in merged.lateness(log)] == [3, 3]


def test_late_rows_of_the_past_are_those_that_a_run_puts_aside(home: str | None) -> None:
    rows = clicks(5, 800)
    web = stream("web", time="ts")
    app = stream("app", time="ts")
    with ms.open(home) as log:
        for number, part in enumerate(rows.iter_slices(50)):
            log.append("web" if number % 3 else "app", part, type="LatenessMerged")
        log.append("web", [ms.Plain("LatenessMerged", {"user": 1, "ts": None, "other": "no time"})])
        for name, flow in {
            "one": web.group_by("user").window(ms.tumbling("1m")).agg(n=pl.len()),
            "filtered": web.filter(pl.col("user") > 2)
            .group_by("user")
            .match("a b", within="1m", define={"a": pl.col("amount") > 0, "b": pl.col("amount") < 0}),
            "merged": web.merge(app).distinct("user", within="1m"),
            "joined": web.join(app, on="user", back="10s", prefix="app_"),
        }.items():
            found = flow.late_over(log)
            ms.run(log, flow.late_to(f"late-{name}").to(f"out-{name}", type="LatenessOut"), until="head")
            aside = [event.data for event in log.read(f"late-{name}")]
            assert found.height
            assert found.select("user", "amount").rows() == [(each["user"], each.get("amount")) for each in aside]
            assert flow.late_over(log, until=START - timedelta(days=9_000)).height == 0
    whole = stream("a", time="ts").filter(pl.col("amount") > 0).window(ms.tumbling("1m")).agg(n=pl.len())
    behind = pl.col("ts") < pl.col("ts").cum_max().shift(1)
    assert_frame_equal(whole.late_over(rows), rows.filter(behind & (pl.col("amount") > 0)))
    assert web.filter(pl.col("amount") > 0).late_over(rows).height == 0
    with pytest.raises(ms.UsageError, match="several sources"):
        web.merge(app).late_over(rows)
