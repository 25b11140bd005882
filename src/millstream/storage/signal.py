"""How followers learn of a commit: at once inside the process, by a poll of the file for other processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

_QUICK = 0.002
_SLOW = 0.004
_CALM_AFTER = 5.0
_LINGER = 1.0
_CROWD = 16
"""More waiters than this are woken together, a little later."""
_WAKE = 0.0002
"""The rest after a crowd was woken, in seconds for each of it."""


class Probe(Protocol):
    """Looks at the log for what other processes have committed. Used by one thread."""

    waits: bool
    """Whether `look` waits for news itself."""

    def look(self) -> tuple[object, Callable[[], int]]:
        """Something that changes whenever any process commits, and what gives the head."""

    def close(self) -> None:
        """Nobody waits any more."""


class Signal:
    """The head as this process knows it, and a way to wait until it moves.

    Args:
        probe: Makes what looks at the log; None for a store that no other process can write. It is used in a thread
            of its own, only while somebody waits.
    """

    def __init__(self, probe: Callable[[], Probe] | None) -> None:
        self._condition = threading.Condition()
        self._probe = probe
        self._head = 0
        self._waiters = 0
        self._poller: threading.Thread | None = None
        self._closed = False
        self._waker: threading.Thread | None = None
        self._news = threading.Event()

    @property
    def head(self) -> int:
        """The log's head, as far as this process knows."""
        return self._head

    def announce(self, head: int) -> None:
        """The log's head is (at least) here."""
        if head > self._head:
            self._head = head
        # A waiter counts itself before it looks at the head, so that none is missed without the lock.
        if self._waiters > _CROWD:
            self._wake_soon()
        elif self._waiters:
            with self._condition:
                self._condition.notify_all()

    def _wake_soon(self) -> None:
        """Wake a crowd from a thread of its own, and not for every commit: each that wakes costs some 20 µs."""
        with self._condition:
            self._news.set()
            if self._waker is None:
                waker = threading.Thread(target=self._wake, name="millstream-wake", daemon=True)
                waker.start()
                self._waker = waker

    def _wake(self) -> None:
        while True:
            called = self._news.wait(_LINGER)
            with self._condition:
                if self._closed or not (called or self._news.is_set()):
                    self._waker = None
                    return
                self._news.clear()
                waiters = self._waiters
                self._condition.notify_all()
            time.sleep(waiters * _WAKE)

    def wait(self, after: int, timeout: float | None) -> bool:
        """Wait until the head is beyond a position. False when the time is up or the log was closed."""
        with self._condition:
            if self._head > after:
                return True
            self._waiters += 1
            try:
                if self._probe is not None and self._poller is None:
                    poller = threading.Thread(target=self._poll, name="millstream-poll", daemon=True)
                    poller.start()  # Ctrl-C may end this very call: only what has started is there to be joined
                    self._poller = poller
                self._condition.wait_for(lambda: self._head > after or self._closed, timeout)
                return self._head > after
            finally:
                self._waiters -= 1

    def close(self, *, patience: float = 0.0) -> None:
        """Wake everyone for good.

        Args:
            patience: The longest wait, in seconds, for what looks at the log to be closed.
        """
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            poller = self._poller
        if patience and poller is not None and poller is not threading.current_thread():
            poller.join(patience)

    def _poll(self) -> None:
        assert self._probe is not None
        probe: Probe | None = None
        last: object = None
        moved = wanted = time.monotonic()
        while True:
            with self._condition:
                if self._waiters:
                    wanted = time.monotonic()
                # A follower that handles an event is back in a moment: linger rather than start anew.
                if self._closed or time.monotonic() - wanted > _LINGER:
                    self._poller = None
                    break
            try:
                probe = probe or self._probe()
                mark, read_head = probe.look()
                if mark != last:
                    last, moved = mark, time.monotonic()
                    self.announce(read_head())
                if probe.waits:
                    continue
            except Exception:
                # The file is busy or being replaced, the server away: the next look will tell.
                last = None
                if probe is not None and probe.waits:
                    probe.close()
                    probe = None
            time.sleep(_QUICK if time.monotonic() - moved < _CALM_AFTER else _SLOW)
        if probe is not None:
            probe.close()
