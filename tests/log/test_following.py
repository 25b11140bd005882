"""Followers that share what one of them has read."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

import millstream as ms


class Noted(ms.Event, type="following.Noted"):
    n: int


@pytest.mark.parametrize("error", [ms.errors.ConnectionFailed("x", "y"), KeyboardInterrupt()])
def test_a_read_that_was_cut_short_gives_no_event_twice(error, monkeypatch):
    with ms.open() as log, ExitStack() as stack:
        for n in range(3):
            log.append("a", Noted(n=n))
        for _ in range(5):
            stack.enter_context(log.tail.joined())
        log.tail.after(log.head)
        for n in range(1_040):  # more than a page
            log.append("a", Noted(n=n))
        calls = []
        real = log.store.page

        def page(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise error
            return real(*arguments)

        monkeypatch.setattr(log.store, "page", page)
        with pytest.raises(type(error)):
            log.tail.after(3)
        found = log.tail.after(3)
        assert found is not None
        assert [seen.run.position for seen in found[0]] == list(range(4, 1_044))


def test_a_follower_in_the_middle_of_a_run_gets_the_rest_of_it_alone():
    with ms.open() as log, ExitStack() as stack:
        log.append("a", [Noted(n=n) for n in range(1, 11)])
        log.append("a", Noted(n=11))
        for _ in range(5):
            stack.enter_context(log.tail.joined())
        assert log.tail.after(0) is not None
        for after in range(12):
            found = log.tail.after(after)
            assert found is not None
            assert [e.event.n for seen in found[0] for e in seen.events()] == list(range(after + 1, 12))
            assert [e.position for e in log.follow(after=after, timeout=0)] == list(range(after + 1, 12))
            assert [e.version for runs in log.follow_runs(after=after, timeout=0) for run in runs for e in run] == list(
                range(after + 1, 12)
            )


def test_who_is_ahead_of_what_this_process_was_told_of_is_not_sent_back(tmp_path):
    """As a worker is that takes a read model over from another process which has just moved it."""
    path = str(tmp_path / "log.db")
    with ms.open(path) as log, ms.open(path) as other:
        other.append("a", [Noted(n=n) for n in range(10)])
        with log.tail.joined():
            found = log.tail.after(8)
            assert found is None or (found[1] >= 8 and all(seen.run.last > 8 for seen in found[0]))


def test_a_log_closes_though_ctrl_c_came_while_its_watch_started(tmp_path: Path, monkeypatch):
    log = ms.open(tmp_path / "shop.db")

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(iter(log.follow(timeout=5)))
    log.close()
