"""Asynchronous projections: who keeps one, which version of it answers, and how far that has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from ..errors import ConsumerFenced, MillstreamError, ReadOnlyLog, StorageError, Trimmed, UsageError
from ..log import Log
from ..log.checkpoints import parts_of, reached
from ..log.paging import IfTrimmed
from ..storage.database import Database
from . import effects, failures, versions
from .building import NEVER, Build, Progress, roll_back
from .errors import ForeignReadModel, ProjectionFailed, ReadModelChanged
from .failures import FailureState
from .holding import CHECK, Held, Mode, Until
from .homes import Home, Spot
from .keeping import Keeper
from .lease import Lease, Leases, Stop
from .performing import Performer
from .places import Target
from .projection import Placement
from .versions import Version, VersionState
from .watch import Watch

_POLL = 0.01
"""How often, in seconds, to look at the checkpoint of a projection that another process keeps."""

_FRESH = 0.05
"""For so many seconds a version is taken for the one that answers without a look: others may have swapped it."""

_LONGEST = 3600.0
"""The longest wait, in seconds, before another look: what a thread can wait for is limited."""


class Follower(Held):
    """Keeps an asynchronous projection, in the thread that calls `run`.

    One holder at a time, by a lease in the log's database, and by the epoch of the checkpoint, which each new holder
    raises. When the code or the schema is not what the read model was made by, a new version is built beside it first.

    Args:
        moved: Told whenever a read model of the app has moved.
        watch: Says when something has come that it handles.

    Attributes:
        failure: Why the projection has stopped, if a handler raised or its tables do not fit.
    """

    def __init__(
        self, log: Log, placement: Placement, leases: Leases, moved: threading.Condition, watch: Watch
    ) -> None:
        super().__init__(leases, placement.kept_as)
        self.placement = placement
        self.failure: MillstreamError | None = None
        self.home = Home(log, placement.name, placement.path)
        self._has_room = self.home.has_room
        self.made_by = versions.fingerprint(placement.projection)
        self.building: Progress | None = None
        self._log = log
        self._moved = moved
        self._watch = watch
        self._seen = 0
        self._running = False
        self._heard = False
        """Whether the worker has said how far the version has come that answers."""
        self._live = Version(placement.name, 1, self.made_by, "", VersionState.LIVE)
        self._turns = 0
        self._looked = self._counted = float("-inf")
        self._lacks = 0
        self._performer: Performer | None = None
        self.is_outside = False
        """Whether the worker waits for nothing but what it has begun to do outside."""
        if placement.performs and not self.home.is_shared:
            raise UsageError(
                f"projection {placement.name!r} has effects, and is kept in memory: each process would have them",
                hint="Keep it where it lasts, such as into('read.db')",
            )
        self._again = threading.Event()
        """Set when another version answers, or a failure was settled, by this process."""

    # --- which version answers ------------------------------------------------------------------------

    @property
    def target(self) -> Target:
        """The database of the version that answers."""
        return self.home.at(self._live.place)

    @property
    def number(self) -> int:
        """The number of the version that answers, as far as this process knows."""
        return self._live.number

    @property
    def turns(self) -> int:
        """How often another version has come to answer, or the same one again, as far as this process knows."""
        return sum(part._turns for part in self.all_parts)

    @property
    def all_parts(self) -> list[Follower]:
        """Itself and its parts, each once."""
        return list(dict.fromkeys([self, *self.parts]))

    def path(self) -> str | None:
        """The file of the version that answers; None for the log's own database."""
        self.current()
        return self.home.path(self._live.place)

    def spot(self) -> Spot:
        """Where the version that answers stands."""
        return self.home.spot(self._live.place)

    def current(self) -> int:
        """The number of the version that answers; others may have swapped it some hundredths of a second ago."""
        if self._has_room and time.monotonic() - self._looked > _FRESH:
            self.look()
        return self._live.number

    def look(self) -> Version:
        """The version that answers now."""
        turns = self._turns
        with self.home.target.reading() as db:
            found = versions.live_of(db, self.placement.name)
        self._looked = time.monotonic()
        # Another thread may have turned to a later version since this one was looked up.
        if found is not None and found != self._live and turns == self._turns:
            self._turn_to(found)
        return self._live

    def _turn_to(self, version: Version) -> None:
        """Go on with another version."""
        self._turns += 1  # before as well as after: whoever sees it unchanged has met no part of this
        if version.number != self._live.number:
            with self._moved:
                self._live = version
                self._seen = 0
                self._heard = False
                self._moved.notify_all()
            self._watch.wake(self.placement.types)  # the worker is to take it at once
        self._live = version
        self._turns += 1

    def all_versions(self) -> list[Version]:
        """All its versions, the oldest first."""
        with self.home.target.reading() as db:
            return versions.all_of(db, self.placement.name)

    def prepare(self) -> None:
        """Create the read model's tables, so that queries find them; note it when they do not fit."""
        found: list[Version] = []

        def work(db: Database) -> None:
            found.clear()
            live = versions.ensure(db, self.placement, self.made_by)
            if not live.place:
                self.placement.check(db, self._log)
                if live.fingerprint != self.made_by and not self.home.has_room:
                    live = self._adopted(db, live)
                if live.fingerprint == self.made_by:
                    self.placement.prepare(db, self._log)
            found.append(live)

        try:
            self.home.target.transact(work)
            self._live = found[-1]
            if self._live.place:
                with self.home.at(self._live.place).reading() as db:
                    self.placement.check(db, self._log)
        except (ReadModelChanged, ForeignReadModel) as error:
            self.failure = error
        except ReadOnlyLog:
            self.look()  # its tables are in a log that is only read here: those who write it keep them

    def _adopted(self, db: Database, live: Version) -> Version:
        """Tables beside which there is no room for others: changed code goes on with them, another schema cannot."""
        if live.fingerprint.startswith("schema ") or not self.placement.fits(db):
            raise ReadModelChanged(self.placement.name)
        return versions.adopt(db, live, self.made_by)

    # --- keeping it -----------------------------------------------------------------------------------

    def position(self) -> int:
        """The position up to which the read model shows the log; of other workers' too."""
        # Of a version that answers now, the worker says nothing before it has taken it: its checkpoint knows.
        return self._seen if self._running and self._seen else max(self._seen, self._stored())

    def run(self, stop: Stop) -> None:
        """Keep the projection until ``stop`` is set, whenever nobody else does.

        Raises:
            ConsumerFenced: Another worker has taken the projection over, and there is no lease to wait for.
            ProjectionFailed: A handler raised. All before that event is kept.
            ReadModelChanged, ForeignReadModel: The tables do not fit the projection, or the log.
        """
        super().run(stop)

    def _acquire(self, stop: Stop) -> Lease | None:
        # What no other process sees, each keeps for itself.
        return super()._acquire(stop) if self.home.is_shared else Lease(self._held_as)

    def _while_held(self, stop: Stop, lease: Lease) -> None:
        try:
            while self._hold_once(stop, lease):
                pass
        except (ProjectionFailed, ReadModelChanged, ForeignReadModel, Trimmed) as error:
            self.failure = error
            raise
        finally:
            with self._moved:
                self._running = False
                self._moved.notify_all()
            self._wait_for_effects()

    def _hold_once(self, stop: Stop, lease: Lease) -> bool:
        """Hold it until something changes; whether it is to be held on to.

        That is so while something is being done outside, though another version answers from now on: nobody else may
        begin before that is done, and the rows of that version do not wait for it.
        """
        before = self._live.number
        try:
            self._hold(stop, lease)
        except ConsumerFenced:
            # Another version answers, or another holder is at work: there is a lease to tell who is next.
            if self._log.store.readonly:
                raise
            stop.wait(_POLL)
            if self.look().number == before:
                return False
        busy = self._performer is not None and self._performer.is_busy
        return busy and not stop.is_set() and not lease.lost.is_set()

    def _wait_for_effects(self) -> None:
        """Whoever is next may begin nothing outside before what is being done there is done."""
        if self._performer is not None:
            self.is_outside = True
            try:
                self._performer.wait()
            finally:
                self.is_outside = False

    def _hold(self, stop: Stop, lease: Lease) -> None:
        self._again.clear()
        live = self.look()
        if live.fingerprint != self.made_by:
            if any(each.withdrawn and each.fingerprint == self.made_by for each in self.all_versions()):
                raise ReadModelChanged(self.placement.name, withdrawn=True)
            self.mode = Mode.BUILDING
            self._build(Until(stop, lease, NEVER, self), afresh=False, told=None)
            return
        self._keep(stop, lease, live)

    def _keep(self, stop: Stop, lease: Lease, live: Version) -> None:
        """Keep the version that answers."""
        self.mode = Mode.RUNNING
        with self.home.at(live.place).kept_open() as target:
            performer = self._performer_of(lease, live) if self.placement.performs else None
            tell = partial(self._announce, of=live.number)
            keeper = self._keeper_of(target, tell, performer)
            taken = keeper.take()
            # Whoever has another version answer fences this one afterwards: to be the last to take it is not enough.
            if self.look().number != live.number:
                raise ConsumerFenced(self.placement.consumer)
            self.failure = None
            self._running = True
            tell(taken)
            if performer is not None:
                self._performer = performer
                performer.start()
            try:
                with self._log.tail.joined():
                    keeper.follow(Until(stop, lease, self._again, self, live.number), self._watch)
            finally:
                if performer is not None:
                    performer.end()

    def _keeper_of(self, target: Target, moved: Callable[[int], None], performer: Performer | None) -> Keeper:
        if performer is None:
            return Keeper(self._log, self.placement, target, moved)
        held = effects.passed_by(self._before(), self.placement)
        return Keeper(self._log, self.placement, target, moved, held=held, told=performer.tell)

    def _performer_of(self, lease: Lease, live: Version) -> Performer:
        targets = [*self._before(), self.home.at(live.place)]
        return Performer(self.placement, targets, self.placement.projection().perform, lease, self._performer)

    def _before(self) -> list[Target]:
        """The databases of the versions that do not answer any more."""
        found = [self.home.at(each.place) for each in self.all_versions() if each.state is VersionState.PREVIOUS]
        return [each for each in found if effects.there(each)]

    def forked(self) -> None:
        """In a forked child: the worker is in the parent, which goes on."""
        super().forked()
        self._running = self.is_outside = False
        self._performer = self.building = None
        self.home.fork()

    def fill(self) -> None:
        """Bring it level with the log, in this thread, and let go of it."""
        live = self._live
        with self.home.at(live.place).kept_open() as target:
            keeper = Keeper(self._log, self.placement, target, partial(self._announce, of=live.number))
            keeper.take()
            keeper.catch_up(self._log.head, NEVER)
            keeper.commit()

    def rebuild(self, told: Callable[[Progress], None] | None, trimmed: IfTrimmed) -> Version:
        """Build a new version beside the one that answers, and have it answer; in this thread."""
        found = self._build(NEVER, afresh=True, told=told, trimmed=trimmed)
        assert found is not None
        return found

    def _build(
        self,
        stop: Stop,
        *,
        afresh: bool,
        told: Callable[[Progress], None] | None,
        trimmed: IfTrimmed = "raise",
    ) -> Version | None:
        def tell(progress: Progress) -> None:
            self.building = progress
            if told is not None:
                told(progress)

        try:
            build = Build(self._log, self.placement, self.home, self.made_by, self._divided())
            made = build.run(stop, afresh=afresh, told=tell, trimmed=trimmed)
        finally:
            self.building = None
        if made is not None:
            self._turned(made)
        return made

    def _divided(self) -> list[Placement]:
        """The partitions that a version of it is built of, if it has any."""
        return []

    @property
    def parts(self) -> Sequence[Follower]:
        """What its rows are kept by: itself, or one for each of its partitions."""
        return [self]

    def roll_back(self) -> Version:
        """Have the version before answer again.

        Raises:
            NotFound: There is none.
        """
        found = roll_back(self.home, self.placement)
        self._turned(found)
        return found

    def _turned(self, version: Version) -> None:
        self.failure = None
        self._turn_to(version)
        self._looked = time.monotonic()
        self._again.set()

    def try_again(self) -> None:
        """Have what has failed tried again."""
        if self.failure is not None:
            if isinstance(self.failure, ProjectionFailed):
                self.failure = None
            self._again.set()

    def settled(self, stop: Stop) -> bool:
        """Wait until what has stopped it is settled, by whichever process; False when it is time to stop."""
        while not stop.is_set():
            if self._again.is_set():
                self._again.clear()
                return True
            before = self._live.number
            if self.look().number != before:
                return True
            stuck = self.failure is None or isinstance(self.failure, ProjectionFailed)
            if stuck and self.stopped() is None:
                return True
            stop.wait(CHECK)
        return False

    def stopped(self) -> Target | None:
        """The database of the version that stands before an event that failed: the one that answers, or is built."""
        for version in self.all_versions():
            if version.state is not VersionState.PREVIOUS and version.fingerprint == self.made_by:
                target = self.home.at(version.place)
                # One that is about to be built may have no file yet.
                with suppress(StorageError), target.reading() as db:
                    if failures.stopped_at(db, self.placement.kept_as) is not None:
                        return target
        return None

    def problem(self) -> str | None:
        """Why the read model is behind, in words, if that is more than the moment that a worker takes."""
        if self.failure is not None:
            return str(self.failure)
        name = self.placement.kept_as
        if self.look().fingerprint != self.made_by:
            return (
                f"read model {name!r} is of an older version of its projection; a new one is being built, or is to be"
            )
        with (self.stopped() or self.target).reading() as db:
            found = [each for each in failures.all_of(db, name) if each.state is not FailureState.SKIPPED]
        if found and found[0].state is FailureState.STOPPED:
            return f"projection {name!r} stands before position {found[0].position}: {found[0].error}"
        if found:
            return f"read model {name!r} lacks {len(found)} parked events, the first at position {found[0].position}"
        if self._performer is not None and self._performer.error is not None:
            return f"an effect of projection {name!r} cannot be performed: {self._performer.error}"
        lease = self._leases.row(name)
        return f"projection {name!r} is paused" if lease is not None and lease.paused else None

    def mark(self) -> tuple[int, ...]:
        """What tells one state of the read model from another: the version, how far it has come, and what it lacks."""
        self.path()
        return self.number, self.position(), self.lacks()

    def lacks(self) -> int:
        """How many events are parked, as of some hundredths of a second ago: once tried again, they change the rows."""
        now = time.monotonic()
        if self.placement.projection.on_failure == "park" and now - self._counted > _FRESH:
            self._counted = now
            # A version that has gone meanwhile has made room for another one.
            with suppress(StorageError), self.target.reading() as db:
                self._lacks = failures.count_waiting(db, self.placement.kept_as)
        return self._lacks

    @property
    def is_kept_here(self) -> bool:
        """Whether this process keeps it, and tells when it moves."""
        return self._running

    # --- waiting for it -------------------------------------------------------------------------------

    def wait(self, position: int, timeout: float) -> bool:
        """Wait until the read model shows the log up to a position. False when the time is up.

        Raises:
            ProjectionFailed, ReadModelChanged, ForeignReadModel: The projection has stopped.
        """
        deadline = time.monotonic() + timeout
        while self._seen < position:
            if self.failure is not None:
                raise self.failure
            left = deadline - time.monotonic()
            if self._running and self._heard:
                if self._watch.passed(self.placement.types, self._seen) >= position:
                    return True  # nothing of its types lies between
                with self._moved:
                    self._moved.wait_for(lambda: self._reached(position), min(max(left, 0), _LONGEST))
            elif self._level(position):
                return True
            elif left > 0:
                # Whoever else keeps it, or is about to, cannot wake this thread: look at its checkpoint now and then.
                time.sleep(min(_POLL, left))
            if left <= 0:
                return self._seen >= position
        return True

    def _reached(self, position: int) -> bool:
        if self._seen >= position or not (self._running and self._heard):
            return True
        return self._watch.passed(self.placement.types, self._seen) >= position

    def _level(self, position: int) -> bool:
        """Whether the stored checkpoint is there, or nothing of the projection's lies between."""
        self.path()
        stored = max(self._seen, self._stored())
        if stored >= position or position > self._log.head:
            return stored >= position
        missing = self._log.runs(types=self.placement.types, after=stored, until_position=position + 1)
        return next(missing, None) is None

    def _stored(self) -> int:
        while True:
            live = self._live
            try:
                with self.home.at(live.place).reading() as db:
                    if live.fingerprint == self.made_by:
                        return reached(db, self.placement.consumer)
                    # By other code, it may be kept in partitions, or in one piece.
                    parts = parts_of(db, f"projection:{self.placement.name}")
                    return min((each.position for each in parts), default=0)
            except StorageError:
                # Another process may have put another version in its place, and removed it.
                if self.look().number == live.number:
                    raise

    def _announce(self, position: int, of: int = 0) -> None:
        """Say how far a version has come, by its number: one that does not answer any more may still be at it."""
        with self._moved:
            if of in (0, self._live.number):
                self._seen = position
                self._heard = True
            self._moved.notify_all()
