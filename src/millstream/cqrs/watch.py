"""New events, looked at once for all projections of an app: each is woken only by what it handles.

A hundred workers that all wake with each append would leave no time for the appends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..errors import LogClosed, StorageError
from ..frames import MAX_ROWS
from ..log import Log
from ..log.present import Presented
from ..storage.base import Scope

_EVERYTHING = Scope()
_LOOK = 0.5
"""How often, in seconds, the thread looks whether anyone still waits."""


class Watch:
    """Which types the events of the log's end are of, found by one thread while anyone waits.

    Args:
        moved: Told whenever more of the log has been looked at.
    """

    def __init__(self, log: Log, moved: threading.Condition) -> None:
        self._log = log
        self._moved = moved
        self.begin()

    def begin(self) -> None:
        """Know nothing, and look at nothing, yet: also in a forked child, where the thread is not that looks."""
        self._mutex = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}
        self._count = 0
        self._last: dict[str, int] = {}
        self._since = self._head = -1
        """It knows all events after the one position, up to the other; -1 when it knows none."""
        self._thread: threading.Thread | None = None

    def passed(self, types: Iterable[str], after: int) -> int:
        """The position up to which no event of some types stands after a position; that one when it is not known."""
        with self._mutex:
            if self._since < 0 or after < self._since or any(self._last.get(name, 0) > after for name in types):
                return after
            return max(after, self._head)

    def wait(self, types: tuple[str, ...], after: int, timeout: float) -> int:
        """Wait for events of some types after a position.

        Returns:
            The position up to which there is none: the worker may take all before as seen.
        """
        event = threading.Event()
        with self._mutex:
            self._begin(after)
            for name in types:
                self._waiting.setdefault(name, set()).add(event)
            self._count += 1
            # What came before this was registered is not missed.
            come = after < self._since or any(self._last.get(name, 0) > after for name in types)
        try:
            if not come:
                event.wait(timeout)
        finally:
            with self._mutex:
                self._count -= 1
                for name in types:
                    self._waiting[name].discard(event)
        return self.passed(types, after)

    def _begin(self, after: int) -> None:
        """Have the thread look, from this position on at the latest."""
        if self._thread is None or not self._thread.is_alive():
            self._since = self._head = after
            self._last.clear()
            self._thread = threading.Thread(target=self._look, name="millstream-watch", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        idle = 0
        while not self._log.closed:
            with self._mutex:
                idle = 0 if self._count else idle + 1
                if idle > 4:
                    self._thread = None
                    return
            try:
                if self._log.wait(self._head, _LOOK):
                    self._read_on(self._log.head)
            except LogClosed:
                return
            except StorageError:
                threading.Event().wait(_LOOK)  # whoever keeps a projection is told of it too

    def _read_on(self, head: int) -> None:
        if head - self._head > MAX_ROWS:
            # So much is better read by those who want it: all are to look for themselves.
            with self._mutex:
                self._since = self._head = head
                self._last.clear()
                self._wake(list(self._waiting))
        else:
            for page in self._log.pages(_EVERYTHING, self._head, head + 1, False, None):
                with self._mutex:
                    names: set[str] = set()
                    for run in page:
                        found = (run.type, *run.may_be) if isinstance(run, Presented) else (run.type,)
                        names.update(found)
                        for name in found:
                            self._last[name] = run.last
                    self._head = page[-1].last
                    self._wake(names)
            with self._mutex:
                self._head = head
        with self._moved:
            self._moved.notify_all()

    def wake(self, types: Iterable[str]) -> None:
        """Have those that wait for events of some types look around now."""
        with self._mutex:
            self._wake(types)

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            for event in self._waiting.get(name, ()):
                event.set()
