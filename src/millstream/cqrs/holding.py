"""Work that one process at a time does, of all that could: whoever holds it, and when it is to let go of it."""

from __future__ import annotations

import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import ConsumerFenced
from .lease import Lease, Leases, Stop

if TYPE_CHECKING:
    from .follower import Follower

CHECK = 0.5
"""How often, in seconds, a worker looks whether it keeps the version that answers, and whether its turn is over."""

_BRIEF = 0.01
"""How long, in seconds, a worker waits that finds another one at its work."""


class Mode(StrEnum):
    """What a worker does."""

    RUNNING = "running"
    STANDBY = "standby"
    PAUSED = "paused"
    BUILDING = "building"


class Turn:
    """Says that a worker is to let go of what it holds: for good, or because it is another one's."""

    def __init__(self, stop: Stop, lease: Lease) -> None:
        self._stop = stop
        self.lease = lease

    def is_set(self) -> bool:
        """Whether it is time."""
        return self._stop.is_set() or self.lease.lost.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, a while."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, CHECK))
        return self.is_set()


class Held:
    """Work that whoever holds its lease does, in the thread that calls `run`; all others stand by.

    Args:
        held_as: The lease's name.

    Attributes:
        mode: What the worker does.
    """

    def __init__(self, leases: Leases, held_as: str) -> None:
        self.mode = Mode.STANDBY
        self._leases = leases
        self._held_as = held_as

    def run(self, stop: Stop) -> None:
        """Do it until ``stop`` is set, whenever nobody else does."""
        while not stop.is_set():
            self.mode = Mode.STANDBY
            lease = self._acquire(stop)
            if lease is None:
                return
            try:
                self._while_held(stop, lease)
            finally:
                self._leases.release(lease)

    def _acquire(self, stop: Stop) -> Lease | None:
        """Wait for the lease; None when it is time to stop."""
        return self._leases.acquire(self._held_as, stop, self._waits)

    def _waits(self, paused: bool) -> None:
        self.mode = Mode.PAUSED if paused else Mode.STANDBY

    def _while_held(self, stop: Stop, lease: Lease) -> None:
        self.mode = Mode.RUNNING
        try:
            self._work(Turn(stop, lease))
        except ConsumerFenced:
            # This process was paused, and another one has taken over: the lease tells who is next.
            stop.wait(_BRIEF)

    def forked(self) -> None:
        """In a forked child: the worker is in the parent, which goes on."""
        self.mode = Mode.STANDBY

    def _work(self, turn: Turn) -> None:
        """Do it until the turn is over.

        Raises:
            ConsumerFenced: Another process does.
        """
        raise NotImplementedError


class Until(Turn):
    """The same of a read model; also because something has changed."""

    def __init__(self, stop: Stop, lease: Lease, again: threading.Event, follower: Follower, number: int = 0) -> None:
        super().__init__(stop, lease)
        self._again = again
        self._follower = follower
        self._number = number or follower.number
        self._looked = time.monotonic()

    def is_set(self) -> bool:
        """Whether it is time."""
        if super().is_set() or self._again.is_set():
            return True
        if self._follower.number != self._number:
            return True
        now = time.monotonic()
        if now - self._looked >= CHECK:
            self._looked = now
            return self._follower.look().number != self._number
        return False
