"""Aggregates that were used last, kept in memory: checked against the log at each use, and lent to one at a time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

from .root import Root

_LONGEST_TURN = 0.1
"""Seconds; then a caller goes on without: two changes that nest must not wait for each other for ever."""


class Kept:
    """An aggregate in the cache.

    Attributes:
        root: The aggregate as it was when it was last used.
        snapshot: The version of its last snapshot.
        generation: Which keys it was made with, if it holds personal data.
    """

    __slots__ = ("generation", "root", "snapshot")

    def __init__(self, root: Root, snapshot: int, generation: Any) -> None:
        self.root = root
        self.snapshot = snapshot
        self.generation = generation


class Cache:
    """The aggregates of one repository that were used last.

    Args:
        size: How many are kept; 0 for none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._begin()

    def _begin(self) -> None:
        self._mutex = threading.Lock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._turns: dict[str, tuple[threading.RLock, int]] = {}
        self._pid = os.getpid()  # last: other threads take it to be done then

    def take(self, id: str) -> Kept | None:
        """Take one out, to be changed or carried forward; None when it is not there."""
        with self._mutex:
            return self._kept.pop(id, None)

    def put(self, kept: Kept) -> None:
        """Keep one, unless a newer state of it is there."""
        if not self._size:
            return
        id = kept.root.id
        with self._mutex:
            found = self._kept.get(id)
            if found is None or found.root.version <= kept.root.version:
                self._kept[id] = kept
            self._kept.move_to_end(id)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing of what there is."""
        with self._mutex:
            self._kept.clear()

    def turn(self, id: str) -> _Turn:
        """To be alone with an aggregate within the process, as far as that is to be had soon."""
        if self._pid != os.getpid():
            self._begin()  # in a forked child: locks may have been left in the hands of threads that are not here
        return _Turn(self._mutex, self._turns, id)


class _Turn:
    """A turn with one aggregate, for a ``with``."""

    __slots__ = ("_id", "_lock", "_mine", "_mutex", "_turns")

    def __init__(self, mutex: threading.Lock, turns: dict[str, tuple[threading.RLock, int]], id: str) -> None:
        self._mutex = mutex
        self._turns = turns
        self._id = id

    def __enter__(self) -> None:
        with self._mutex:
            self._lock, users = self._turns.get(self._id) or (threading.RLock(), 0)
            self._turns[self._id] = (self._lock, users + 1)
        try:
            self._mine = self._lock.acquire(timeout=_LONGEST_TURN)
        except BaseException:  # an interrupt
            self._leave()
            raise

    def __exit__(self, *exc: object) -> None:
        if self._mine:
            self._lock.release()
        self._leave()

    def _leave(self) -> None:
        with self._mutex:
            users = self._turns[self._id][1] - 1
            if users:
                self._turns[self._id] = (self._lock, users)
            else:
                del self._turns[self._id]
