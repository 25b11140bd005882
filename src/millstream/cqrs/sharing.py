"""Which of a projection's partitions each process is to keep: all that run it divide them among themselves.

Each process that runs it says so in a row of its own among the leases, and shows there that it lives. The rows, sorted,
say whose turn each partition is: nothing has to be agreed on. While processes see different rows, for some seconds, a
partition may be nobody's, or wanted by two: its lease, and the epoch of its checkpoint, let one of them have it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import StorageError
from ..log import Log
from ..storage.base import Receipt
from ..storage.database import Database
from .lease import EXPIRES, TABLE, Lease, Leases, Row, Stop, is_dead, is_holder

_LOOK = 0.3
"""How often, in seconds, a process looks who else there is."""


class Sharing:
    """What is this process's part of the partitions of one projection.

    Args:
        name: The projection's name.
    """

    def __init__(self, log: Log, leases: Leases, name: str) -> None:
        self._log = log
        self._leases = leases
        self._begins = f"{name}~"
        self.begin()

    def begin(self) -> None:
        """Take no part yet, as a process of its own: also in a forked child, once its leases have begun."""
        self._own = f"{self._begins}{self._leases.holder}"
        self._lease: Lease | None = None
        self._inside = 0
        self._mutex = threading.Lock()
        self._looked = float("-inf")
        self._rank: tuple[int, int] | None = None
        self._seen: dict[str, tuple[int, float]] = {}
        """Of each other process: its last beat, and when that was first seen."""

    @contextmanager
    def joined(self, stop: Stop) -> Iterator[None]:
        """Take part, for as long as any of the threads that called this is inside."""
        with self._mutex:
            self._inside += 1
        try:
            with self._mutex:
                if self._lease is None or self._lease.lost.is_set():
                    self._join(stop)
            yield
        finally:
            with self._mutex:
                self._inside -= 1
                lease, last = self._lease, self._inside == 0
                if last:
                    self._lease = self._rank = None
                    self._looked = float("-inf")
            if last and lease is not None:
                self._leases.release(lease)
                with suppress(StorageError):  # whoever looks next finds that there are no more beats
                    self._remove([self._own])

    def is_ours(self, number: int) -> bool:
        """Whether a partition is for this process to keep."""
        if self._log.store.readonly:
            return True
        with self._mutex:
            if time.monotonic() - self._looked >= _LOOK:
                self._looked = time.monotonic()
                self._rank = self._look()
            if self._rank is None:
                return False
            rank, members = self._rank
        return (number - 1) % members == rank

    def _join(self, stop: Stop) -> None:
        self._lease = self._leases.acquire(self._own, stop, lambda paused: None)
        self._looked = float("-inf")

    def _look(self) -> tuple[int, int] | None:
        """Which of how many processes this one is; None while it is not among them."""
        if self._lease is None:
            return None
        if self._lease.lost.is_set():
            # This process stood still for so long that it was taken for dead.
            self._join(_NOW)
        rows = [row for row in self._leases.rows(self._begins) if self._is_member(row)]
        dead = [row.name for row in rows if row.name != self._own and self._is_gone(row)]
        if dead:
            self._remove(dead)
        names = sorted(row.name for row in rows if row.name not in dead)
        return (names.index(self._own), len(names)) if self._own in names else None

    def _is_member(self, row: Row) -> bool:
        """Whether a row stands for a process: a projection may have a name that begins like it."""
        rest = row.name.removeprefix(self._begins)
        return rest == row.holder or (not row.holder and is_holder(rest))

    def _is_gone(self, row: Row) -> bool:
        if not row.holder or is_dead(row.holder):
            return True
        beat, since = self._seen.get(row.name, (-1, 0.0))
        if beat != row.beat:
            self._seen[row.name] = row.beat, time.monotonic()
            return False
        return time.monotonic() - since >= EXPIRES

    def _remove(self, names: list[str]) -> None:
        def work(db: Database, receipt: Receipt) -> None:
            db.executemany(f"delete from {db.own(TABLE)} where name = ?", [(name,) for name in names])

        self._log.commit(work=work)
        for name in names:
            self._seen.pop(name, None)


class _Now:
    """Never says that it is time to stop."""

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        time.sleep(timeout or 0.0)
        return False


_NOW = _Now()
