"""Following: history, then what comes. Followers that are level share what one of them has read."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LogClosed
from ..events import definitions
from ..frames import MAX_ROWS
from ..storage.base import Scope
from .present import is_wanted
from .records import Recorded, Run, recorded_events
from .singles import Singles

if TYPE_CHECKING:
    from .reading import Reader

_CROWD = 4
"""From so many followers on they share their reading: fewer read only what they want, which may be little."""
_KEPT = 2_048
"""The most runs that the tail keeps."""
_EVERYTHING = Scope()
Spanning = TypeVar("Spanning", Run, Run | Singles)
_UNKNOWN = object()
"""A generation of keys that is none."""


class Seen:
    """A run as followers get it; its events are decoded once for all of them."""

    __slots__ = ("_events", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._events: list[Recorded] | None = None

    def events(self) -> list[Recorded]:
        """The run's events."""
        found = self._events
        if found is None:
            found = recorded_events(self.run)
            # Events without a class are dicts, which a follower may change: each gets its own.
            if self.run.decodes_as is not None:
                self._events = found
        return found


class Tail:
    """The last stretch of the log, read once for all followers of this process that are level with it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._mutex = threading.Lock()
        self._seen: list[Seen] = []
        self._lasts: list[int] = []
        self._low = self._high = -1
        """It holds all runs with events after the one position up to the other; -1 when it holds none yet."""
        self._followers = 0
        self._definitions = -1
        self._keys: Any = None
        """The generation of keys that personal data was read with, if it holds any."""

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be counted as a follower."""
        with self._mutex:
            self._followers += 1
        try:
            yield
        finally:
            with self._mutex:
                self._followers = max(self._followers - 1, 0)
                if not self._followers:
                    self._forget(-1)

    def crowded(self) -> bool:
        """Whether there are so many followers that they should share."""
        return self._followers >= _CROWD

    def after(self, position: int) -> tuple[list[Seen], int] | None:
        """All runs after a position that the log has, and the position of the last; None: that is too far back, or
        beyond what is known here."""
        with self._mutex:
            if self._definitions != definitions():
                # What is held is as it was read before a class or an upcaster was defined.
                self._definitions = definitions()
                self._forget(-1)
            head = self._reader.store.signal.head
            if head < position:
                # This process has not been told yet how far the log is: who asks knows more.
                return None
            if self._keys is not None and self._keys != self._reader.keys.generation:
                self._forget(position)  # events that were decoded before a key was destroyed
            if head > self._high and not self._read_on(position, head):
                return None
            if not self._low <= position:
                return None
            found = self._seen[bisect_right(self._lasts, position) :]
            for index, seen in enumerate(found):
                if seen.run.position > position:
                    break
                # Who asks is in the middle of this run: its first events are done with.
                part = seen.run.cut(position, self._high + 1)
                assert part is not None
                found[index] = Seen(part)
            return found, self._high

    def _read_on(self, position: int, head: int) -> bool:
        """Read up to the head, if the tail reaches or may begin here."""
        if self._high < 0 or position > self._high:
            self._forget(position)
        if head - self._high > MAX_ROWS:
            return False  # so much is better read by those who want it
        try:
            # As of before what is read: a key that is destroyed meanwhile is noticed the next time. So is the first
            # personal data of all, of which nothing was known before it was read.
            keys = self._reader.keys.generation if self._reader.sealed else _UNKNOWN
            for page in self._reader.pages(_EVERYTHING, self._high, head + 1, False, None):
                self._seen.extend(Seen(run) for run in page)
                self._lasts.extend(run.last for run in page)
                sealed = self._reader.sealed
                if sealed and self._keys is None and any(run.kind_id in sealed for run in page):
                    self._keys = keys
            self._high = head
            surplus = len(self._seen) - _KEPT
            if surplus > 0:
                self._low = self._lasts[surplus - 1]
                del self._seen[:surplus], self._lasts[:surplus]
        except BaseException:
            self._forget(-1)  # what was read in part, before an error or an interrupt, will be read again
            raise
        return True

    def _forget(self, position: int) -> None:
        self._seen, self._lasts, self._keys = [], [], None
        self._low = self._high = position

    def forked(self) -> None:
        """In a forked child: who has joined, and who may be just reading, is in the parent."""
        self._mutex = threading.Lock()
        self._followers = 0
        self._forget(-1)

    def forget(self) -> None:
        """Nothing that was read is to be trusted."""
        with self._mutex:
            self._forget(-1)


def follow(reader: Reader, scope: Scope, position: int, limit: float | None) -> Iterator[list[Seen]]:
    """Runs of a scope after a position, in lists as they are found; ends when nothing came for so many seconds."""
    tail = reader.tail
    # By tags, the index leads to the few runs that are wanted: to share all of them would cost more.
    may_share = scope.matching is None
    with tail.joined():
        quiet_since = time.monotonic()
        while True:
            left = None if limit is None else limit - (time.monotonic() - quiet_since)
            try:
                if not (reader.store.signal.wait(position, left) if tail.crowded() else reader.wait(position, left)):
                    return
                shared = tail.after(position) if may_share and tail.crowded() else None
                if shared is not None:
                    found, position = shared
                    wanted = [seen for seen in found if wants(scope, seen.run)]
                    if wanted:
                        yield wanted
                        quiet_since = time.monotonic()
                    continue
                head = reader.head
                for page in reader.pages(scope, position, head + 1, False, None):
                    for batch in grouped(page, MAX_ROWS):
                        yield [Seen(run) for run in batch]
                        quiet_since = time.monotonic()
            except LogClosed:
                return
            position = head


def wants(scope: Scope, run: Run) -> bool:
    """Whether a run is of a scope."""
    if scope.shown is not None and not is_wanted(run, scope.shown):
        return False
    if scope.stream is not None:
        return run.stream == scope.stream
    return scope.prefix is None or run.stream.startswith(scope.prefix)


def grouped(runs: Iterable[Spanning], rows: int) -> Iterator[list[Spanning]]:
    """Runs in groups, each closed by the run with which it has this many events."""
    group: list[Spanning] = []
    count = 0
    for run in runs:
        group.append(run)
        count += run.count
        if count >= rows:
            yield group
            group, count = [], 0
    if group:
        yield group
