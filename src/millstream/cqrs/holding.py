"""What a worker does with a read model that it holds, and when it is to let go of it."""

from __future__ import annotations

import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING

from .lease import Lease, Stop

if TYPE_CHECKING:
    from .follower import Follower

CHECK = 0.5
"""How often, in seconds, a worker looks whether it keeps the version that answers."""


class Mode(StrEnum):
    """What a worker does."""

    RUNNING = "running"
    STANDBY = "standby"
    PAUSED = "paused"
    BUILDING = "building"


class Until:
    """Says that a worker is to let go of what it keeps: for good, or because something has changed."""

    def __init__(self, stop: Stop, lease: Lease, again: threading.Event, follower: Follower, number: int = 0) -> None:
        self._stop = stop
        self._lease = lease
        self._again = again
        self._follower = follower
        self._number = number or follower.number
        self._looked = time.monotonic()

    def is_set(self) -> bool:
        """Whether it is time."""
        if self._stop.is_set() or self._lease.lost.is_set() or self._again.is_set():
            return True
        if self._follower.number != self._number:
            return True
        now = time.monotonic()
        if now - self._looked >= CHECK:
            self._looked = now
            return self._follower.look().number != self._number
        return False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, a while."""
        return self._stop.wait(timeout) or self.is_set()
