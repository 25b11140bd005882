"""What a log promises of reading, of time, and of following."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any

import pytest

from ... import errors
from ...events import Plain
from ...log import Log
from ..clock import FakeClock
from .opening import Counted, Opening


class Reading(Opening):
    """Reading and following."""

    def test_reading_goes_forwards_and_backwards_between_bounds(self, log: Log) -> None:
        log.append("a", [Counted(n=n) for n in range(5)])
        log.append("b", [Counted(n=n) for n in range(5, 8)])
        log.append("a", [Counted(n=n) for n in range(8, 10)])

        def ns(**options: Any) -> list[int]:
            return [e.data["n"] for e in log.read(**options)]

        assert ns(after=2) == [2, 3, 4, 5, 6, 7, 8, 9]
        assert ns(since_position=3, until_position=7) == [2, 3, 4, 5]
        assert ns(backwards=True, limit=4) == [9, 8, 7, 6]
        assert ns(stream="a", since_version=4, until_version=7) == [3, 4, 8]
        assert ns(stream="a", backwards=True, until_version=7, limit=2) == [8, 4]
        assert ns(stream="a", since_version=8) == []
        assert ns(stream="a", until_version=1) == []
        assert ns(stream="a", after=6) == [8, 9]
        assert ns(stream="nowhere") == []
        assert ns(limit=0) == []

    def test_a_category_is_read_across_its_streams_in_order(self, log: Log) -> None:
        for n in range(30):
            log.append(f"account-{n % 7}", Counted(n=n))
            log.append("accounting", Plain("Other", {"n": -1}))
            log.append(f"order-{n}", Plain("Order", {"n": n}))
        assert [e.data["n"] for e in log.read("account-*")] == list(range(30))
        assert [e.data["n"] for e in log.read("account-*", backwards=True, limit=3)] == [29, 28, 27]
        assert len(list(log.read("account*"))) == 60
        assert [e.stream for e in log.read("order-2*")] == ["order-2"] + [f"order-{n}" for n in range(20, 30)]

    def test_reading_by_type_takes_those_types_only(self, log: Log) -> None:
        for n in range(20):
            log.append("s", [Counted(n=n), Plain(f"T{n % 3}", {"n": n})])
        assert [e.data["n"] for e in log.read(types=[Counted], after=30)] == list(range(15, 20))
        assert {e.type for e in log.read(types=["T0", "T2"])} == {"T0", "T2"}
        assert [e.data["n"] for e in log.read("s", types="T1")] == [1, 4, 7, 10, 13, 16, 19]
        assert list(log.read(types=[])) == []

    def test_reading_until_a_moment_excludes_that_moment(self) -> None:
        clock = FakeClock("2024-01-15T11:59:00Z")
        log = self.open(clock=clock)
        for _ in range(3):
            log.append("s", Plain("T", {}))
            clock.advance("1m")
        assert [e.position for e in log.read_until("2024-01-15T12:00:00Z")] == [1]
        assert [e.position for e in log.read(until="2024-01-15T12:00:00.000001Z")] == [1, 2]
        assert [e.position for e in log.read(since="2024-01-15T12:00:00Z")] == [2, 3]
        assert log.position_at("2024-01-15T12:00:00Z") == 1
        assert log.position_at("2020-01-01T00:00:00Z") == 0
        log.close()

    @pytest.mark.parametrize(
        "options",
        [{"after": -1}, {"limit": "3"}, {"until_version": 2}, {"since": "noon"}, {"until": datetime(2024, 1, 1)}],
    )
    def test_bounds_that_make_no_sense_are_refused(self, log: Log, options: dict[str, Any]) -> None:
        with pytest.raises(errors.UsageError):
            log.read(**options)

    def test_streams_are_listed_by_name_and_by_prefix(self, log: Log) -> None:
        for name in ("b-1", "a-2", "a-1", "ä"):
            log.append(name, [Plain("T", {}), Plain("T", {})])
        assert [s.name for s in log.streams()] == ["a-1", "a-2", "b-1", "ä"]
        assert [(s.name, s.version, s.last_position) for s in log.streams("a-*")] == [("a-1", 2, 6), ("a-2", 2, 4)]
        assert [s.name for s in log.streams("b-1")] == ["b-1"]

    def test_a_large_event_and_many_events_come_back_whole(self, log: Log) -> None:
        text = "ü" * 1_000_000
        log.append("big", Plain("T", {"text": text}))
        log.append("big", [Counted(n=n) for n in range(100_000)])
        events = log.read("big")
        assert next(events).data == {"text": text}
        assert sum(e.event.n for e in events) == sum(range(100_000))  # type: ignore[union-attr]
        log.verify()

    # --- time -----------------------------------------------------------------------------------------

    def test_recorded_times_never_go_backwards(self) -> None:
        clock = FakeClock("2024-01-01T12:00:00Z")
        log = self.open(clock=clock)
        for moment in ("2024-01-01T12:00:00Z", "2024-01-01T11:00:00Z", "2024-01-01T13:00:00Z"):
            clock.set(moment)
            log.append("s", Plain("T", {}))
        assert [e.time.hour for e in log.read()] == [12, 12, 13]
        log.close()

    # --- follow ---------------------------------------------------------------------------------------

    def test_a_follower_sees_history_then_what_comes_gapless_and_in_order(self, log: Log) -> None:
        log.append("s", [Counted(n=n) for n in range(10)])
        seen: list[int] = []

        def follow() -> None:
            for event in log.follow(after=4, timeout=20):
                seen.append(event.position)
                if event.position == 410:
                    return

        follower = threading.Thread(target=follow)
        follower.start()
        writers = [
            threading.Thread(target=lambda k=k: [log.append(f"w-{k}", Counted(n=n)) for n in range(100)])
            for k in range(4)
        ]
        for thread in writers:
            thread.start()
        for thread in [*writers, follower]:
            thread.join()
        assert seen == list(range(5, 411))

    def test_a_follower_of_a_category_sees_only_that(self, log: Log) -> None:
        for n in range(5):
            log.append(f"a-{n}", Counted(n=n))
            log.append("b", Counted(n=-n))
        assert [e.data["n"] for e in log.follow("a-*", timeout=0.01)] == list(range(5))
        assert [e.data["n"] for e in log.follow(types=[Counted], after=8, timeout=0.01)] == [4, -4]

    def test_closing_the_log_ends_its_followers(self, log: Log) -> None:
        ended = threading.Event()

        def follow() -> None:
            list(log.follow())
            ended.set()

        threading.Thread(target=follow, daemon=True).start()
        time.sleep(0.05)
        log.close()
        assert ended.wait(5)
        with pytest.raises(errors.LogClosed):
            log.append("s", Plain("T", {}))
