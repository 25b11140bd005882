"""Followers that share what one of them has read."""

from __future__ import annotations

from contextlib import ExitStack

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
