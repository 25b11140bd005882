"""Copy a log to another home as it is: positions, versions, times, append ids and hashes intact.

The target's own head is all that a copy remembers: killed at any moment, it goes on from there. A copy is a replica:
it follows its source and takes no appends of its own, until `millstream.log.moving.switch` makes it a home.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ...errors import ConnectionFailed, DepotUnavailable, InvalidPosition, NotAPrefix, NotFound, UsageError
from ...storage.base import Head
from ...storage.raw import RawPage, RawSource, RawTarget, State
from ...time import now_micros
from ..log import check_log
from ..positions import Place
from .segments import Segments

if TYPE_CHECKING:
    from ..log import Log

HOME_EVERY = 0.02
"""Seconds between two pages of a copy that follows into another home."""
DEPOT_EVERY = 1.0
"""Seconds between two segments of a copy that follows into a depot, which are its recovery point."""
_STATE_EVERY = 10.0
"""Seconds between two pages that hold nothing new but consumers' state."""
_LOOK = 0.25
_PATIENCE = 30.0


class Progress(msgspec.Struct, frozen=True):
    """How far a copy is.

    Attributes:
        position: The target's head.
        head: The source's head, as of the last look.
        events: How many events this copy has moved.
        seconds: How long that took.
        lag: For how many seconds the oldest event of the last page was in the source alone.
        level: The target has all that the source had.
        trouble: Why it waits, when the target cannot be reached.
    """

    position: int
    head: int
    events: int
    seconds: float
    lag: float = 0.0
    level: bool = False
    trouble: str = ""

    @property
    def behind(self) -> int:
        """How many positions the target is behind."""
        return max(self.head - self.position, 0)

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds until it is level, at this rate; None before there is one."""
        return self.behind / self.rate if self.rate else None


class Copied(msgspec.Struct, frozen=True):
    """What a copy did.

    Attributes:
        position: The target's head afterwards.
        hash: That head's hash, in hex: the source's at the same position.
        events: How many events this copy moved; fewer than ``position`` when it went on where another ended.
        seconds: How long it took.
        verified: The whole target was walked afterwards, bodies and all.
    """

    position: int
    hash: str
    events: int
    seconds: float
    verified: bool = False


Report = Callable[[Progress], None]


def copy(
    source: Log | Segments,
    target: Log | Segments,
    *,
    until: Place | None = None,
    follow: bool = False,
    every: float | None = None,
    verify: bool = False,
    progress: Report | None = None,
    stop: threading.Event | None = None,
) -> Copied:
    """Copy a log to an empty target, or go on with a copy of it.

    Others go on appending to the source meanwhile. An append is placed whole: readers of the copy see all of it or
    nothing, unless it is larger than a page (16 MB, 16,384 runs).

    Args:
        source: A log, or the segments of one.
        target: An empty log, one that an earlier copy went to, or a depot's `Segments`.
        until: Stop before this place. A moment falls between commits; a position inside a run is refused.
        follow: When level, go on with what comes, until ``stop`` is set.
        every: With ``follow``, seconds between two pages (`HOME_EVERY`, `DEPOT_EVERY`).
        verify: Walk the target afterwards, up to the source's hash: each header, each body.
        progress: Called after each page.
        stop: Ends it after the page under way.

    Raises:
        NotAPrefix: What is in the target is not the beginning of the source.
        NotFound: There are no segments where the source's are said to be.
        DamagedLog: A header or an inline body of the source does not match its hash. What came before it is copied.
        InvalidPosition: ``until`` is inside a run, or before what is copied already.
    """
    if follow and until is not None:
        raise UsageError("a copy that follows has no end", hint="Give follow= or until=, not both")
    for given in (source, target):
        if not isinstance(given, Segments):
            check_log(given)
    if isinstance(source, Segments) and not source.raw_head().log_id:
        raise NotFound(f"there is no copy of a log at {source.location}", hint="Check the place; nothing was copied")
    return _Copy(source, target, until, every, progress, stop).run(follow, verify)


class _Copy:
    """One copy under way."""

    def __init__(
        self,
        source: Log | Segments,
        target: Log | Segments,
        until: Place | None,
        every: float | None,
        progress: Report | None,
        stop: threading.Event | None,
    ) -> None:
        self._log = source
        self._copy = target
        self._source: RawSource = source if isinstance(source, Segments) else source.store
        self._target: RawTarget = target if isinstance(target, Segments) else target.store
        self._every = every if every is not None else DEPOT_EVERY if isinstance(target, Segments) else HOME_EVERY
        self._progress = progress
        self._stop = stop or threading.Event()
        self._begun = time.monotonic()
        self._events = 0
        self._lag = 0.0
        self._known = self._target.raw_bodies()
        self._state: State | None = self._target.raw_state()
        self._stated = float("-inf")
        self._ids: set[str] = set()
        self._follow = False
        self._head = self._check()
        self._until = None if until is None else self._bound(until)

    def _check(self) -> Head:
        """See that what the target holds is the beginning of the source."""
        here, there = self._source.raw_head(), self._target.raw_head()
        if not there.head.position and there.role is None:
            return there.head
        if there.role is None:
            raise NotAPrefix(self._copy.location, "it is the home of its events, not a copy")
        if there.role.kind != "replica":
            raise there.role.refusal(self._copy.location)
        if here.log_id != there.log_id and there.log_id:
            raise NotAPrefix(self._copy.location, "it is a copy of another log")
        if there.head.position > here.head.position:
            raise NotAPrefix(
                self._copy.location,
                f"it is ahead, at position {there.head.position}, of {self._log.location}, at {here.head.position}",
            )
        found = self._source.raw_header(there.head.position) if there.head.position else None
        if there.head.position and (found is None or found[1].hash != there.head.hash):
            raise NotAPrefix(self._copy.location, f"its past differs at or before position {there.head.position}")
        return there.head

    def _bound(self, until: Place) -> int:
        if until.position is not None:
            bound = until.position
        elif until.time is not None or until.ago is not None:
            micros = until.time if until.time is not None else self._now() - (until.ago or 0)
            bound = self._source.position_at(micros) + 1
        else:
            bound = self._source.raw_head().head.position + 1
        if bound <= self._head.position:
            raise InvalidPosition(
                f"{self._copy.location} holds {self._head.position} positions already, more than were asked for",
                hint="Copy into a new place",
            )
        found = self._source.raw_header(bound - 1) if bound > 1 else None
        if found is not None and found[1].position != bound - 1:
            raise InvalidPosition(
                f"position {bound} is inside a run, which is copied whole or not at all",
                hint=f"Give {found[0]} (before the run) or {found[1].position + 1} (after it)",
            )
        return bound

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self, follow: bool, verify: bool) -> Copied:
        if verify and isinstance(self._copy, Segments):
            raise UsageError("segments are verified as they are written and read", hint="Leave verify= out")
        self._follow = follow
        page = self._take()
        while True:
            level = page.level or (self._until is not None and not page.runs)
            if self._is_news(page) or (self._until is not None and not page.runs):
                self._place(page)
            if level:
                self._tell(page.head.position, level=True)
                if not follow:
                    break
                self._await()
            if self._stop.is_set() or (follow and self._ended()):
                break
            page = self._take()
        if verify and not isinstance(self._copy, Segments):
            self._copy.verify(head=self._head.hash.hex())
        seconds = time.monotonic() - self._begun
        return Copied(self._head.position, self._head.hash.hex(), self._events, seconds, verify)

    def _take(self) -> RawPage:
        page = self._source.raw_page(self._head.position, until=self._until, known=self._known)
        if page.after.hash != self._head.hash:
            raise NotAPrefix(self._copy.location, "the source has changed beneath it")
        if page.state is not None and page.state == self._state:
            page.state = None
        return page

    def _is_news(self, page: RawPage) -> bool:
        """Whether there is anything in a page that the target does not have for certain."""
        new_ids = {each.id for each in page.appends} - self._ids
        stated = page.state is not None and (not self._follow or time.monotonic() - self._stated > _STATE_EVERY)
        return bool(page.runs or new_ids or stated or self._target.raw_head().role is None)

    def _place(self, page: RawPage) -> None:
        failures = 0
        while True:
            try:
                self._head = self._target.place_raw(page, self._log.location)
                break
            except (DepotUnavailable, ConnectionFailed) as error:
                # A copy off the machine outlasts its network: the same page, again, a little later.
                failures += 1
                if failures > 3 and not self._follow:
                    raise
                self._tell(page.head.position, trouble=error.message)
                if self._stop.wait(min(0.5 * 2**failures, _PATIENCE)):
                    raise
        self._events += page.events
        self._known.update(ref for ref in page.bodies if ref < 0)
        self._ids = {each.id for each in page.appends if each.last == self._head.position}
        if page.state is not None:
            self._state, self._stated = page.state, time.monotonic()
        if page.runs:
            self._lag = max(self._now() - page.runs[0].recorded, 0) / 1e6
        if not page.level:
            self._tell(self._source_head(), level=False)

    def _source_head(self) -> int:
        return self._source.raw_head().head.position

    def _now(self) -> int:
        return now_micros() if isinstance(self._log, Segments) else self._log.store.now()

    def _ended(self) -> bool:
        return not isinstance(self._log, Segments) and self._log.closed

    def _await(self) -> None:
        """Until there is news, and the last page is ``every`` old."""
        quiet = time.monotonic() + self._every
        while not self._stop.is_set() and not self._ended():
            # An append without events moves no head: a page is looked at now and then all the same.
            if self._log.wait(self._head.position, _LOOK) or time.monotonic() >= quiet + _LOOK:
                break
        self._stop.wait(max(quiet - time.monotonic(), 0.0))

    def _tell(self, head: int, *, level: bool = False, trouble: str = "") -> None:
        if self._progress is not None:
            bound = head if self._until is None else min(head, self._until - 1)
            self._progress(
                Progress(
                    self._head.position, bound, self._events, time.monotonic() - self._begun, self._lag, level, trouble
                )
            )
