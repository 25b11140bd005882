"""Sources that fall silent, and rows that are stamped further ahead than can be."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, play

import millstream as ms
from millstream.log.log import Log
from millstream.streams import Flow, MissingColumn, Running, run, stream, tumbling
from millstream.streams.replay import replay
from millstream.streams.runner import Worker
from millstream.testing import FakeClock


def counts(**options: Any) -> Flow:
    source = stream("silent", time="ts", **options)
    return source.group_by("user").window(tumbling("1m")).agg(n=pl.len()).to("silent-counts", type="SilentCount")


def row(at: datetime, user: int = 1) -> ms.Plain:
    return ms.Plain("SilentRow", {"user": user, "ts": at.isoformat()})


def told(log: Log) -> list[dict[str, Any]]:
    return [event.data for event in log.read("silent-counts")]


def catch_up(worker: Worker, log: Log) -> None:
    """What a run does until it has nothing to do but wait, and once it has waited."""
    head = log.head
    while worker.advance(head):
        pass
    worker.listen(log.head)
    head = log.head
    while worker.advance(head):
        pass


def test_the_windows_of_a_silent_source_close_and_a_replay_sees_the_same() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        with Running(log, counts(idle="30s")) as running:
            receipt = log.append("silent", row(START + timedelta(seconds=10)))
            assert running.wait(receipt.position, 10)
            for _ in range(2):
                clock.advance("30s")
                assert wait_for(log, "$idle", log.head + 1)
            assert wait_for(log, "silent-counts", log.head)
        assert [each["n"] for each in told(log)] == [1]
        reached = [event.data["reached"] for event in log.read("$idle")]
        assert reached == [(START + timedelta(seconds=s)).isoformat() for s in (40, 70)]
        log.append("silent", row(START + timedelta(seconds=50)))
        again = counts(idle="30s")
        assert again.over(log)["n"].to_list() == [1]
        # Another wait is another flow: what was said for this one is not for it.
        assert counts(idle="31s").over(log)["n"].to_list() == [2]
        assert counts().over(log)["n"].to_list() == [2]


def wait_for(log: Log, stream: str, position: int) -> bool:
    for _ in range(200):
        if log.head >= position and next(log.read(stream), None) is not None:
            return True
        log.wait(log.head, 0.05)
    return False


def test_nothing_is_said_where_no_result_waits_nor_before_there_was_a_row() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        worker = Worker(log, counts(idle="30s"))
        clock.advance("1h")
        catch_up(worker, log)
        assert log.head == 0
        log.append("silent", row(START))
        for _ in range(8):
            clock.advance("30s")
            catch_up(worker, log)
        assert [each["n"] for each in told(log)] == [1]
        assert len(list(log.read("$idle"))) == 2
        worker.close()


def test_a_worker_that_starts_anew_knows_since_when_a_source_is_silent() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        log.append("silent", row(START + timedelta(days=-3)))
        for _ in range(3):
            worker = Worker(log, counts(idle="30s"))
            catch_up(worker, log)
            worker.close()
            clock.advance("31s")
        # The source's time is three days behind, and goes on from there.
        reached = [event.data["reached"] for event in log.read("$idle")]
        assert reached == [(START + timedelta(days=-3, seconds=s)).isoformat() for s in (31, 62)]
        assert len(told(log)) == 1


def test_a_silent_source_no_longer_holds_back_those_it_was_merged_with() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        quiet, busy = stream("quiet", time="ts", idle="1m"), stream("busy", time="ts")
        both = quiet.merge(busy).window(tumbling("1m")).agg(n=pl.len()).to("silent-counts", type="SilentCount")
        log.append("quiet", row(START))
        worker = Worker(log, both)
        for minute in range(5):
            log.append("busy", row(START + timedelta(minutes=minute, seconds=1)))
            catch_up(worker, log)
            clock.advance("1m")
        assert [each["n"] for each in told(log)] == [2, 1, 1, 1]
        expected = both.over(log, final=False)
        for rows in (1, 2, 1000):
            assert replay(both, log, final=False, rows=rows).equals(expected)
        assert expected["n"].to_list() == [2, 1, 1, 1]
        worker.close()


def test_a_join_that_was_put_away_can_be_asked_whether_a_result_waits() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        quiet, busy = stream("quiet", time="ts", idle="1m"), stream("busy", time="ts", idle="1m")
        alone = quiet.join(busy, on="user", ahead="2m", how="anti").to("silent-counts", type="SilentAlone")
        log.append("quiet", row(START))
        log.append("busy", row(START, user=2))
        for _ in range(5):
            worker = Worker(log, alone)
            catch_up(worker, log)
            worker.close()
            clock.advance("1m")
        assert [event.data["user"] for event in log.read("silent-counts")] == [1]
        assert len(list(log.read("$idle"))) == 6


def test_a_join_that_was_put_away_and_asked_goes_on_with_a_side_that_has_had_no_row() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        quiet, busy = stream("quiet", time="ts", idle="1m"), stream("busy", time="ts", idle="1m")
        flow = quiet.join(busy, on="user", back="1m", how="full", prefix="b_").to("silent-counts", type="SilentMet")
        for user in range(4):
            worker = Worker(log, flow, commit_every=0)
            for _ in range(2):
                catch_up(worker, log)
                clock.advance("70s")
            log.append("quiet", row(clock(), user=user))
            catch_up(worker, log)
            worker.close()
        log.append("busy", row(clock(), user=3))
        run(log, flow, until="head")
        assert [event.data["user"] for event in log.read("silent-counts")] == [0, 1, 2]
        assert flow.over(log, final=False)["user"].to_list() == [0, 1, 2]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(["row", "wait", "restart"]), st.integers(0, 100)), max_size=25),
    st.sampled_from(["0s", "20s"]),
)
def test_what_comes_out_is_what_the_definition_says(steps: list[tuple[str, int]], lateness: str) -> None:
    clock = FakeClock(START)
    flow = counts(idle="40s", lateness=lateness)
    with ms.open(clock=clock) as log:
        worker = Worker(log, flow)
        for what, seconds in steps:
            if what == "row":
                log.append("silent", row(log.now() - timedelta(seconds=seconds), user=seconds % 2))
            elif what == "wait":
                clock.advance(timedelta(seconds=seconds))
            else:
                worker.close()
                worker = Worker(log, flow)
            catch_up(worker, log)
        worker.close()
        allowed = timedelta(seconds=int(lateness[:-1]))
        high, closed, late = START - timedelta(days=1), Counter[tuple[datetime, int]](), 0
        for event in log.read(None):
            if event.stream == "silent":
                at = datetime.fromisoformat(event.data["ts"])
                if at < high - allowed:
                    late += 1
                else:
                    closed[at.replace(second=0), event.data["user"]] += 1
                high = max(high, at)
            elif event.stream == "$idle":
                high = max(high, datetime.fromisoformat(event.data["reached"]))
        expected = {key: n for key, n in closed.items() if key[0] + timedelta(minutes=1) <= high - allowed}
        rows = [((each["window_start"], each["user"]), each["n"]) for each in told(log)]
        assert rows == sorted(expected.items())
        assert worker.state.late == late
        past = flow.over(log, final=False)
        assert (past["n"].to_list() if past.height else []) == [n for _, n in rows]


def test_a_stamp_too_far_ahead_moves_no_watermark_and_goes_aside() -> None:
    clock = FakeClock(START)
    with ms.open(clock=clock) as log:
        for minutes in (0, 60, 61, 9_000, 1, 2):
            log.append("silent", row(START + timedelta(minutes=minutes)))
        guarded = counts(ahead="1h", lateness="1h")
        aside = guarded.late_to("silent-late")
        run(log, aside, until="head")
        assert [event.data["ts"] for event in log.read("silent-late")] == [
            (START + timedelta(minutes=m)).isoformat() for m in (61, 9_000)
        ]
        assert guarded.over(log)["n"].to_list() == [1, 1, 1, 1]
        assert counts(lateness="1h").over(log)["n"].to_list() == [1, 1, 1, 1]
        for rows in (1, 2, 3):
            assert replay(guarded, log, rows=rows).equals(guarded.over(log))
        [report] = guarded.lateness(log)
        assert (report.rows, report.ahead, report.late, report.without_time) == (6, 2, 2, 0)
        assert report.worst == timedelta(minutes=59)
        merged = stream("silent", time="ts", ahead="1h", lateness="1h").merge(stream("other", time="ts"))
        assert merged.window(tumbling("1m")).agg(n=pl.len()).over(log)["n"].sum() == 4


def test_a_frame_without_recorded_times_cannot_be_guarded_and_no_wait_is_no_silence() -> None:
    rows = pl.DataFrame({"user": [1], "ts": [START]})
    with pytest.raises(MissingColumn, match="_time"):
        play(counts(ahead="1h"), rows)
    assert play(counts(ahead="1h"), rows.with_columns(_time=pl.col("ts"))).height == 1
    with pytest.raises(ms.UsageError, match="silent at once"):
        counts(idle="0s")
