"""A pause of whoever takes a queue's contents, for those that are about to join it."""

from __future__ import annotations

import threading
from collections.abc import Sized

_PAUSE = 0.0002
"""Seconds without a newcomer after which it waits no longer."""


class Arrivals:
    """Lets the one that takes all of a queue wait until as many are there as are expected.

    Those that were answered together come back at about the same time, and the first of them leads the next: without a
    pause it would go alone, and every second turn would be one of one.

    Args:
        mutex: Held by whoever changes the queue.
        queue: The queue.
    """

    def __init__(self, mutex: threading.Lock, queue: Sized) -> None:
        self._mutex = mutex
        self._queue = queue
        self._wanted = 0
        """How many must be in the queue for the pause to end; 0 when nobody pauses."""
        self._there = threading.Lock()
        self._there.acquire()

    def came(self) -> None:
        """The queue has become longer. Call with the mutex held."""
        if self._wanted and len(self._queue) >= self._wanted:
            self._wanted = 0
            self._there.release()

    def wait(self, wanted: int) -> None:
        """Pause until so many are in the queue, or none came for a moment."""
        with self._mutex:
            self._wanted = wanted
            seen = len(self._queue)
        while seen < wanted:
            if self._there.acquire(timeout=_PAUSE):
                break
            grown = len(self._queue)
            if grown == seen:
                break
            seen = grown
        with self._mutex:
            self._wanted = 0
        self._there.acquire(blocking=False)
