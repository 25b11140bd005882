"""What is done about read models by command: build them anew, go back, compare, pause, and settle what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ..cqrs import failures
from ..cqrs.building import Progress
from ..cqrs.comparing import Comparison, compare
from ..cqrs.errors import UnknownProjection
from ..cqrs.failures import Failure
from ..cqrs.follower import Follower
from ..cqrs.inline import InlineProjection
from ..cqrs.lease import Leases
from ..cqrs.projection import Projection
from ..cqrs.settling import retry, skip
from ..cqrs.versions import Version
from ..errors import UsageError
from ..log import Log
from ..log.checkpoints import is_part
from ..log.paging import IfTrimmed

Which = type[Projection] | str
"""A projection: its class, or its name."""


class Partition(msgspec.Struct, frozen=True):
    """A partition of a read model at a glance.

    Attributes:
        name: The projection's name, and the partition's number: ``Orders/2``.
        position: The position up to which it has applied the events that are its own.
        holder: Whether some process keeps it now.
    """

    name: str
    position: int
    holder: bool


class ReadModel(msgspec.Struct, frozen=True):
    """A read model at a glance.

    Attributes:
        name: The projection's name.
        place: The file that its tables are in; None for the log's own database.
        inline: Whether it is kept in the appending commits.
        live: Whether it is computed when it is asked.
        position: The position up to which it shows the log.
        behind: How many positions that is from the log's head.
        holder: Whether some process keeps it now.
        paused: Whether it is paused.
        building: How far a new version of it has come, if this process builds one.
        versions: Its versions, the oldest first.
        failures: The events that it could not apply.
        partitions: How each of its partitions is, if it has any.
    """

    name: str
    place: str | None
    inline: bool
    live: bool
    position: int
    behind: int
    holder: bool
    paused: bool
    building: Progress | None
    versions: Sequence[Version]
    failures: Sequence[Failure]
    partitions: Sequence[Partition] = ()


class ReadSide:
    """The part of an `App` that looks after read models."""

    log: Log
    _followers: dict[str, Follower]
    _inline: list[InlineProjection]
    _leases: Leases

    def read_models(self) -> list[ReadModel]:
        """The read models at a glance."""
        head = self.log.head
        found = []
        for inline in self._inline:
            position = inline.position()
            found.append(
                ReadModel(
                    inline.placement.name,
                    None,
                    True,
                    False,
                    position,
                    max(0, head - position),
                    True,
                    False,
                    None,
                    (),
                    (),
                )
            )
        for follower in self._followers.values():
            position = follower.position()
            lease = self._leases.row(follower.placement.name)
            parts = [self._partition(part) for part in follower.parts if part is not follower]
            found.append(
                ReadModel(
                    follower.placement.name,
                    follower.path(),
                    False,
                    follower.placement.live,
                    position,
                    max(0, head - position),
                    all(part.holder for part in parts) if parts else lease is not None and bool(lease.holder),
                    lease is not None and bool(lease.paused),
                    follower.building,
                    follower.all_versions(),
                    self.failures(follower.placement.name),
                    parts,
                )
            )
        return found

    def _partition(self, part: Follower) -> Partition:
        lease = self._leases.row(part.placement.kept_as)
        return Partition(part.placement.kept_as, part.position(), lease is not None and bool(lease.holder))

    def rebuild(
        self,
        projection: Which,
        *,
        progress: Callable[[Progress], None] | None = None,
        trimmed: IfTrimmed = "raise",
    ) -> Version:
        """Build a read model anew beside the one that answers, and put it in its place when it is level.

        Queries are answered by the old one until then, and whoever keeps it goes on. The swap is one transaction. The
        old one stays, for `rollback`, until the next is built. Killed at any moment, the old one answers as before.

        Args:
            projection: The projection.
            progress: Called now and then with how far it has come: rate, and time left.
            trimmed: What to do about events that retention has trimmed: ``"raise"``, or ``"skip"`` them, so that the
                new version lacks what the old one may have of them.

        Returns:
            The version that answers now.

        Raises:
            UsageError: It is inline or live, or in the database of a log in memory.
            ProjectionFailed: A handler raised. The old one answers as before.
            Trimmed: Events that it is made of were trimmed.
            ConsumerFenced: Another process began the same after this one.
        """
        return self._kept(projection).rebuild(progress, trimmed)

    def rollback(self, projection: Which) -> Version:
        """Have the version of a read model that answered before answer again: one transaction.

        It goes on from where it was, if it is of the code that runs. This code is not built again by itself.

        Raises:
            NotFound: There is no version to go back to.
        """
        return self._kept(projection).roll_back()

    def compare(self, projection: Which) -> Comparison:
        """Replay the log apart, up to where a read model stands, and compare what both hold by content.

        Nothing is changed. It needs the memory for the read model twice, and the time of a rebuild.
        """
        follower = self._kept(projection)
        follower.look()
        parts = [part.placement for part in follower.parts if part is not follower]
        return compare(self.log, follower.placement, follower.home, follower.target, parts)

    def failures(self, projection: Which) -> list[Failure]:
        """The events that a projection could not apply, with what has become of them, in order of position."""
        follower = self._follower(projection)
        follower.path()
        found: list[Failure] = []
        for part in follower.parts:
            found += self._failures_of(part)
        return sorted(found, key=lambda failure: failure.position)

    def retry(self, projection: Which, *, position: int | None = None) -> int:
        """Try again what failed: the event that a projection stands before, and those that are parked.

        Of each stream, what is parked takes effect in order, in one transaction.

        Args:
            position: Only what failed there, with what waits behind it.

        Returns:
            How many events. The one that the projection stands before is tried by the worker that keeps it.

        Raises:
            NotFound: Nothing failed at that position.
            ProjectionFailed: One raised again; it stays parked.
        """
        follower = self._kept(projection)
        follower.look()
        done = 0
        for part in self._failed(follower, position):
            done += retry(self.log, part.placement, part.stopped() or part.target, position)
        follower.try_again()
        return done

    def skip(self, projection: Which, *, position: int | None = None) -> Failure:
        """Leave out an event that failed: the one that a projection stands before, or one that is parked.

        Args:
            position: The position of a parked one.

        Raises:
            NotFound: Nothing failed at that position, or the projection does not stand before an event.
        """
        follower = self._kept(projection)
        follower.look()
        for part in self._failed(follower, position, stopped=position is None):
            found = skip(self.log, part.placement, part.stopped() or part.target, position)
        follower.try_again()
        return found

    def pause(self, projection: Which) -> None:
        """Have no worker keep a projection, in whichever process, until `resume`. Queries answer with what is there.

        Raises:
            UsageError: It is inline or live, or in memory, where each process keeps its own.
        """
        self._pause(projection, True)

    def resume(self, projection: Which) -> None:
        """Have a projection that was paused kept again."""
        self._pause(projection, False)

    def _pause(self, projection: Which, paused: bool) -> None:
        follower = self._kept(projection)
        if not follower.home.is_shared:
            raise UsageError(
                f"projection {follower.placement.name!r} is kept in memory, by each process for itself: nothing can be"
                " paused for all of them",
                hint="Keep it where all processes see it, such as into('read.db'); or stop the app: app.stop()",
            )
        names = [part.placement.kept_as for part in follower.all_parts]
        if not paused:
            # Those of another number of partitions, from when it was paused, would stay so until that is back.
            begins = f"{follower.placement.name}/"
            known = [row.name for row in self._leases.rows(begins) if row.paused]
            names += [name for name in known if name not in names and is_part(name, follower.placement.name)]
        for name in names:
            self._leases.pause(name, paused)

    def fill(self) -> None:
        """Have what is kept in memory read the log, in this thread: for a process that asks and runs no workers.

        Raises:
            ProjectionFailed: A handler raised. All before that event is kept.
        """
        for follower in self._followers.values():
            if not follower.home.is_shared:
                follower.fill()

    def _failures_of(self, part: Follower) -> list[Failure]:
        with (part.stopped() or part.target).reading() as db:
            return failures.all_of(db, part.placement.kept_as)

    def _failed(self, follower: Follower, position: int | None, *, stopped: bool = False) -> Sequence[Follower]:
        """Of its partitions those in which an event failed, at a position or at any; where none did, the first.

        Args:
            stopped: Where no position is named, only the one that stands before an event, before the first such event.
        """
        if len(follower.parts) == 1:
            return follower.parts
        known = [(failure, part) for part in follower.parts for failure in self._failures_of(part)]
        if position is not None:
            known = [(failure, part) for failure, part in known if failure.position == position]
        elif stopped:
            known = [(failure, part) for failure, part in known if failure.state is failures.FailureState.STOPPED]
            known = sorted(known, key=lambda each: each[0].position)[:1]
        return list(dict.fromkeys(part for _, part in known)) or follower.parts[:1]

    def _kept(self, projection: Which) -> Follower:
        """What keeps a projection whose rows are there between queries."""
        found = self._follower(projection)
        if found.placement.live:
            raise UsageError(
                f"projection {found.placement.name!r} is live, computed by each query: nothing is kept of it",
                hint="Correct its code and ask again; to have it kept, write .into(…)",
            )
        return found

    def _follower(self, projection: Which) -> Follower:
        name = projection if isinstance(projection, str) else getattr(projection, "name", repr(projection))
        found = self._followers.get(name)
        if found is not None:
            return found
        if any(inline.placement.name == name for inline in self._inline):
            raise UsageError(
                f"projection {name!r} is kept in the commits that append: it has no worker, and no version beside it",
                hint="Give the new version another name and tables, or keep it with .into(…)",
            )
        raise UnknownProjection(name, sorted(self._followers))
