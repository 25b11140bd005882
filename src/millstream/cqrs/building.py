"""Another version of a read model, built beside the one that answers, and put in its place when it is level."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from ..errors import ConsumerFenced, StorageError, UsageError
from ..log import Log
from ..log.checkpoints import parts_of, take
from ..log.paging import IfTrimmed
from ..storage.database import Database
from . import versions
from .effects import Passed, is_unsettled, is_waiting, passed, passed_by, prepare, there
from .homes import Home
from .keeping import Keeper
from .lease import Stop
from .projection import Placement
from .versions import Version, VersionState


class Progress(msgspec.Struct, frozen=True):
    """How far a read model that is being built has come.

    Attributes:
        name: The projection's name.
        position: The position that it has come to.
        head: The position of the log's last event.
        rate: Positions per second, since the build began or was taken up again.
        left: How many seconds are left at that rate; None before anything is known.
    """

    name: str
    position: int
    head: int
    rate: float
    left: float | None


class Build:
    """The building of a version, in the thread that calls `run`. A kill at any moment leaves what can be gone on with.

    Args:
        parts: Its partitions, where it has any: each has a checkpoint of its own.

    Attributes:
        progress: How far it has come; None before it has begun.
    """

    def __init__(
        self, log: Log, placement: Placement, home: Home, made_by: str, parts: Sequence[Placement] = ()
    ) -> None:
        self._log = log
        self._placement = placement
        self._parts = parts or [placement]
        self._home = home
        self._made_by = made_by
        self._told: Callable[[Progress], None] | None = None
        self.progress: Progress | None = None

    def run(
        self,
        stop: Stop,
        *,
        afresh: bool = False,
        told: Callable[[Progress], None] | None = None,
        trimmed: IfTrimmed = "raise",
    ) -> Version | None:
        """Build it, and have it answer.

        Args:
            afresh: Begin anew, even if one of the same code was begun before.
            told: Called now and then with how far it has come.
            trimmed: What to do about events that retention has trimmed: the old version may have seen them.

        Returns:
            The version that answers now; None when it was time to stop.

        Raises:
            ProjectionFailed: A handler raised. The version that answers still does.
            ConsumerFenced: Another process builds it.
            Trimmed: Events that it is made of were trimmed.
        """
        if not self._home.has_room:
            raise UsageError(
                f"projection {self._placement.name!r} is kept in a log in memory, so no other version of it can be"
                " built beside it",
                hint="Keep it in a database of its own: into(':memory:'), or into('read.db')",
            )
        self._told = told
        old, new = self._begin(afresh)
        began, first = time.monotonic(), -1
        keepers: list[Keeper] = []

        def moved(position: int) -> None:
            nonlocal first
            if len(keepers) > 1:
                position = sum(keeper.seen for keeper in keepers) // len(keepers)
            if first < 0:
                first = position
            head, took = self._log.head, time.monotonic() - began
            rate = (position - first) / took if took > 0 else 0.0
            left = max(head - position, 0) / rate if rate else None
            self.progress = Progress(self._placement.name, position, head, rate, left)
            if self._told is not None:
                self._told(self.progress)

        try:
            with self._home.at(new.place).kept_open() as target:
                held = self._passed(old)
                for part in self._parts:
                    keepers.append(Keeper(self._log, part, target, moved, trimmed, held=held, building=True))
                moved(min(keeper.take() for keeper in keepers))
                while True:
                    for keeper in keepers:
                        keeper.catch_up(self._log.head, stop)
                        keeper.commit()
                    if stop.is_set():
                        break
                    swapped = self._swap(old, new, min(keeper.seen for keeper in keepers))
                    if swapped is not None:
                        return swapped
                    with self._home.target.reading() as db:
                        old = versions.live_of(db, self._placement.name) or old
        except StorageError as error:
            if self._is_gone(new):
                raise ConsumerFenced(self._placement.consumer) from error
            raise
        return None

    def _is_gone(self, version: Version) -> bool:
        """Whether a version is not to be built any more: another has begun the same anew, and removed it."""
        with self._home.target.reading() as db:
            return all(each.number != version.number for each in versions.all_of(db, version.name))

    def _begin(self, afresh: bool) -> tuple[Version, Version]:
        """The version that answers, and the one to build: one that was begun by the same code, or a new one."""
        found: list[Version] = []
        stale: list[Version] = []

        def work(db: Database) -> None:
            found.clear()
            stale.clear()
            live = versions.ensure(db, self._placement, self._made_by)
            db.make_alone()  # of two that begin at once, one forgets what the other has begun
            known = versions.all_of(db, live.name)
            building = None
            for each in known:
                if each.state is not VersionState.BUILDING:
                    continue
                if each.fingerprint == self._made_by and not afresh and building is None:
                    building = each
                else:
                    stale.append(each)
                    versions.forget(db, each)
            if building is None:
                number = max(each.number for each in known) + 1
                place = self._home.room(live.name, number)
                building = Version(live.name, number, self._made_by, place, VersionState.BUILDING)
                # A file that a kill has left behind is none of this version's.
                stale.append(building)
                versions.begin(db, building)
            found.extend((live, building))

        self._home.target.transact(work)
        for each in stale:
            self._home.remove(each.place)
        return found[0], found[1]

    def _swap(self, old: Version, new: Version, seen: int) -> Version | None:
        """Have the new version answer, if it has come as far as the old one."""
        if old.place and self._reached(old) > seen:
            return None
        dropped: list[Version] = []
        done: list[bool] = []
        known: list[Version] = []
        settle(self._home, self._placement, old)
        kept = self._with_effects()

        def work(db: Database) -> None:
            dropped.clear()
            done.clear()
            known.clear()
            db.make_alone()  # of two that have another one answer at once, one sees what the other has done
            # From here on who keeps the old one is fenced: it cannot come further than what was seen.
            if not old.place and _taken(db, self._placement) > seen:
                done.append(False)
                return
            there = versions.all_of(db, old.name)
            if new.number not in [each.number for each in there]:
                raise ConsumerFenced(self._placement.consumer)  # another has begun the same anew
            done.append(versions.swap(db, old, new, withdrawn=False))
            if not done[-1]:
                return  # yet another one answers by now, which is to be caught up with first
            for each in there:
                if each.state is VersionState.PREVIOUS:
                    known.append(each)
                if each.number not in (old.number, new.number, *kept):
                    versions.forget(db, each)
                    if each.place:
                        dropped.append(each)
                    else:
                        versions.drop_aside(db, each)

        self._home.target.transact(work)
        if not done[-1]:
            return None
        # From here on it is known which of the events since the build began the others have seen to.
        _turned(self._home, self._placement, old, new, known, dropped)
        for each in dropped:
            self._home.remove(each.place)
        return msgspec.structs.replace(new, state=VersionState.LIVE)

    def _passed(self, version: Version) -> Passed:
        """The events to whose effects other versions have seen; how far the old one will come is settled later."""
        if not self._placement.notes:
            return Passed()
        found = Passed()
        for target in [self._home.at(each.place) for each in (version, *_previous(self._home, self._placement))]:
            if there(target):
                with target.reading() as db:
                    found = found | passed(db, self._placement)
        return found

    def _with_effects(self) -> list[int]:
        """The versions that have noted effects which nobody has performed yet: they have to stay until then."""
        if not self._placement.performs:
            return []
        return [
            each.number
            for each in _previous(self._home, self._placement)
            if there(target := self._home.at(each.place)) and is_waiting(target, self._placement)
        ]

    def _reached(self, version: Version) -> int:
        with self._home.at(version.place).reading() as db:
            return max((each.position for each in parts_of(db, self._placement.consumer)), default=0)


def _taken(db: Database, placement: Placement) -> int:
    """Fence whoever keeps a version that stands here, and say how far it has come at most."""
    return max((take(db, each.name).position for each in parts_of(db, placement.consumer)), default=0)


def fence(home: Home, placement: Placement, version: Version) -> None:
    """See to it that whoever keeps a version notices, at the next commit, that it does not answer any more."""

    def work(db: Database) -> None:
        _taken(db, placement)

    if version.place and there(target := home.at(version.place)):
        target.transact(work)


def _turned(
    home: Home,
    placement: Placement,
    old: Version,
    new: Version,
    before: Sequence[Version],
    dropped: Sequence[Version] = (),
) -> None:
    """Fence whoever keeps the version that has answered until now, and hand its effects over.

    Another process may have put yet another one in the place of the new one, and removed what this is about. Then there
    is nothing left to do here, or whoever is next does it, as after a kill.

    Args:
        before: Others that may have seen to effects.
        dropped: Those of them that are to be removed here.
    """
    try:
        fence(home, placement, old)
        if placement.performs:
            hand_over(home, placement, [old, *before], new)
    except StorageError:
        with home.target.reading() as db:
            known = {each.number for each in versions.all_of(db, placement.name)}
        if known >= {each.number for each in (old, new, *before)} - {each.number for each in dropped}:
            raise


def hand_over(home: Home, placement: Placement, before: Sequence[Version], version: Version) -> None:
    """Have a version that answers from now on leave out the effects that others have seen to, which are fenced.

    What nobody has written down by now would be forgotten with them, or be done again by the next that is built.
    """
    targets = {each.number: home.at(each.place) for each in before if each.number != version.number}
    held = passed_by([target for target in targets.values() if there(target)], placement)
    home.at(version.place).transact(lambda db: prepare(db, placement, held, building=False))


def settle(home: Home, placement: Placement, version: Version) -> None:
    """Do for a version that answers what `hand_over` would have done, if a kill came before it, and no worker since."""
    if placement.performs and is_unsettled(home.at(version.place), placement):
        hand_over(home, placement, _previous(home, placement), version)


def _previous(home: Home, placement: Placement) -> list[Version]:
    with home.target.reading() as db:
        known = versions.all_of(db, placement.name)
    return [each for each in known if each.state is VersionState.PREVIOUS]


def roll_back(home: Home, placement: Placement) -> Version:
    """Have the version before answer again.

    Raises:
        NotFound: There is none.
    """
    found: list[Version] = []
    with home.target.reading() as db:
        answers = versions.live_of(db, placement.name)
    if answers is not None:
        settle(home, placement, answers)

    def work(db: Database) -> None:
        found.clear()
        db.make_alone()
        live = versions.live_of(db, placement.name)
        previous = versions.previous_of(db, placement.name)
        assert live is not None
        if not live.place:
            _taken(db, placement)
        if versions.swap(db, live, previous, withdrawn=True):
            found.extend((live, msgspec.structs.replace(previous, state=VersionState.LIVE)))

    home.target.transact(work)
    _turned(home, placement, found[0], found[1], _previous(home, placement))
    return found[1]


NEVER = threading.Event()
"""Nothing is to stop."""
