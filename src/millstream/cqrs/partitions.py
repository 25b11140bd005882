"""Projections in partitions: one read model, kept by several workers, each with the events of its keys.

The rows of all partitions stand in the same tables, of one version. Each partition has a checkpoint, a lease and a list
of failures of its own, named ``Orders/1``, ``Orders/2``. The lease ``Orders`` is for what concerns all of them: whoever
holds it builds a new version where one is needed. So the number of partitions is part of what a version is made by, and
another number is another version, built from the log beside the one that answers.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

from ..errors import MillstreamError, UsageError
from ..log import Log
from ..log.checkpoints import is_part
from ..log.handlers import InvalidHandler
from .building import NEVER
from .follower import Follower
from .holding import Mode, Until
from .homes import Kind, kind_of
from .lease import Lease, Leases, Stop
from .places import Target
from .projection import Placement
from .sharing import Sharing
from .versions import Version
from .watch import Watch

_PAUSE = 0.1
"""How long, in seconds, a worker waits that has nothing to keep."""


def is_divided(log: Log, placement: Placement) -> bool:
    """Whether a projection is to be kept in partitions: where several processes can write to it.

    Raises:
        InvalidHandler: It cannot be.
    """
    if placement.projection.partitions == 1 or placement.inline or placement.live:
        return False
    if kind_of(placement.path) in (Kind.MEMORY, Kind.DUCKDB) or (placement.path is None and not log.location):
        return False
    name = placement.projection.__qualname__
    if placement.projection.reads:
        raise InvalidHandler(
            name,
            "it is kept in partitions, each at its own pace, and reads other read models, which are as of each event",
            hint="Leave out partitions, or what it reads",
        )
    if placement.performs:
        raise InvalidHandler(
            name,
            "it is kept in partitions, and has effects, which come one after the other",
            hint="Leave out partitions; or let another projection, without them, have the effects",
        )
    return True


class Part(Follower):
    """Keeps one partition, whenever it is this process's turn to."""

    def __init__(
        self,
        log: Log,
        placement: Placement,
        leases: Leases,
        moved: threading.Condition,
        watch: Watch,
        sharing: Sharing,
        made_by: str,
    ) -> None:
        super().__init__(log, placement, leases, moved, watch)
        assert placement.share is not None
        self.made_by = made_by
        self._number = placement.share.number
        self._sharing = sharing

    def run(self, stop: Stop) -> None:
        """Keep the partition until ``stop`` is set, whenever it is this process's turn and its code is what answers."""
        with self._sharing.joined(stop):
            while not stop.is_set():
                if self._sharing.is_ours(self._number) and self._fits():
                    super().run(_Turn(stop, self))
                else:
                    self.mode = Mode.STANDBY
                    stop.wait(_PAUSE)

    def forked(self) -> None:
        """In a forked child: the worker, and the turn, are the parent's."""
        super().forked()
        self._sharing.begin()

    def is_over(self) -> bool:
        """Whether it is not this process's turn any more."""
        return not self._sharing.is_ours(self._number) or self._live.fingerprint != self.made_by

    def _fits(self) -> bool:
        self.current()
        return self._live.fingerprint == self.made_by

    def _hold(self, stop: Stop, lease: Lease) -> None:
        self._again.clear()
        live = self.look()
        if live.fingerprint == self.made_by:
            self._keep(stop, lease, live)


class _Turn:
    """Says that a partition is to be let go of: for good, or for another process to take."""

    def __init__(self, stop: Stop, part: Part) -> None:
        self._stop = stop
        self._part = part

    def is_set(self) -> bool:
        """Whether it is time."""
        return self._stop.is_set() or self._part.is_over()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, a while."""
        return self._stop.wait(timeout) or self.is_set()


class Partitioned(Follower):
    """A projection in partitions: what concerns all of them, and their followers.

    Attributes:
        parts: The followers of its partitions.
    """

    def __init__(
        self, log: Log, placement: Placement, leases: Leases, moved: threading.Condition, watch: Watch
    ) -> None:
        count = placement.projection.partitions
        self._parts: list[Part] = []
        self._failure: MillstreamError | None = None
        super().__init__(log, placement, leases, moved, watch)
        keys = placement.keys()
        by = keys.text if keys is not None else "keys"
        self.made_by = hashlib.sha256(f"{self.made_by}\n{count} partitions by {by}".encode()).hexdigest()
        sharing = Sharing(log, leases, placement.name)
        self._parts = [
            Part(log, placement.part(number, count), leases, moved, watch, sharing, self.made_by)
            for number in range(1, count + 1)
        ]
        self._placement = self._parts[0].placement
        """With which what all partitions need is made."""

    @property
    def parts(self) -> Sequence[Follower]:
        """What its rows are kept by."""
        return self._parts

    @property
    def failure(self) -> MillstreamError | None:
        """Why it, or a partition, has stopped."""
        return self._failure or next((part.failure for part in self._parts if part.failure is not None), None)

    @failure.setter
    def failure(self, error: MillstreamError | None) -> None:
        self._failure = error

    # --- keeping it -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the tables, and what each partition has beside them."""
        whole, self.placement = self.placement, self._placement
        try:
            super().prepare()
        finally:
            self.placement = whole
        self._tell_parts()

    def _keep(self, stop: Stop, lease: Lease, live: Version) -> None:
        """Nothing: the partitions are kept each by itself. To hold the lease keeps other versions of the code off."""
        self.mode = Mode.RUNNING
        self.failure = None
        until = Until(stop, lease, self._again, self, live.number)
        while not until.wait(_PAUSE):
            pass

    def _divided(self) -> list[Placement]:
        # Others than those of the followers: another thread builds.
        return [self.placement.part(number, len(self._parts)) for number in range(1, len(self._parts) + 1)]

    def _turned(self, version: Version) -> None:
        super()._turned(version)
        for part in self._parts:
            part._turned(version)

    def try_again(self) -> None:
        """Have what has failed tried again."""
        super().try_again()
        for part in self._parts:
            part.try_again()

    def look(self) -> Version:
        """The version that answers now."""
        before = self._live
        found = super().look()
        if found != before:
            self._tell_parts()
        return found

    def _tell_parts(self) -> None:
        for part in self._parts:
            part._turn_to(self._live)

    def stopped(self) -> Target | None:
        """The database of a version of which a partition stands before an event that failed."""
        return next((found for part in self._parts if (found := part.stopped()) is not None), None)

    def problem(self) -> str | None:
        """Why it is behind, in words; the first of the reasons."""
        if self._failure is not None or self.look().fingerprint != self.made_by:
            return super().problem()
        return next((found for part in self._parts if (found := part.problem()) is not None), None)

    # --- waiting for it -------------------------------------------------------------------------------

    def position(self) -> int:
        """The position up to which all partitions show the log."""
        if self._live.fingerprint != self.made_by:
            return self._stored()
        return min(part.position() for part in self._parts)

    def mark(self) -> tuple[int, ...]:
        """What tells one state of it from another: the version, and how far each partition has come."""
        self.path()
        if self._live.fingerprint != self.made_by:
            return self.number, self._stored()
        return self.number, *(each for part in self._parts for each in (part.position(), part.lacks()))

    @property
    def is_kept_here(self) -> bool:
        """Whether this process keeps all partitions, and tells when they move."""
        return all(part.is_kept_here for part in self._parts)

    def wait(self, position: int, timeout: float) -> bool:
        """Wait until all partitions show the log up to a position. False when the time is up."""
        deadline = time.monotonic() + timeout
        while self.failure is None and self._of_other_code():
            # Whoever builds the version of this code tells it in the database; until then the old one is asked.
            if self._stored() >= position or self._level(position):
                return True
            if time.monotonic() >= deadline:
                return False
            NEVER.wait(min(_PAUSE, max(deadline - time.monotonic(), 0)))
        if self._failure is not None:
            raise self._failure
        return all(part.wait(position, max(deadline - time.monotonic(), 0)) for part in self._parts)

    def _of_other_code(self) -> bool:
        self.current()
        return self._live.fingerprint != self.made_by


def check_names(names: Sequence[str]) -> None:
    """Refuse a projection that is named as the partition of another one is: that may be kept in partitions one day.

    Raises:
        UsageError: There is one.
    """
    for name in names:
        for other in names:
            if is_part(name, other):
                raise UsageError(
                    f"a projection is named {name}, as a partition of {other} is", hint="Give it another name"
                )
