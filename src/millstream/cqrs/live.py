"""Live projections: nothing keeps them; whoever asks has the events folded that came since the last question."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

from ..log import Log
from ..storage.sqlite.database import open_database
from .building import NEVER
from .errors import ProjectionFailed
from .follower import Follower
from .homes import Spot
from .keeping import Keeper
from .lease import Leases, Stop
from .past import is_personal
from .places import Target
from .projection import Placement
from .watch import Watch

_SPARE = 1
"""How many copies are kept that nobody reads, beside the one that is folded into."""


class _Copy:
    """The rows as of one position, in the memory of this process.

    Attributes:
        readers: How many queries are being answered from it: nothing is folded into it meanwhile.
    """

    def __init__(self, number: int, place: str) -> None:
        self.number = number
        self.place = place
        self.readers = 0
        self.seen = 0
        self.keeper: Keeper | None = None
        self.open = ExitStack()


class LiveModel(Follower):
    """The rows of a live projection, in the memory of this process, from the first question on.

    A question about a log that has not moved costs a look at its head. Failures are tried again by each question. What
    is being read is left alone: what has come meanwhile is folded into a copy, so that nobody waits for a reader.
    """

    def __init__(
        self, log: Log, placement: Placement, leases: Leases, moved: threading.Condition, watch: Watch
    ) -> None:
        super().__init__(log, placement, leases, moved, watch)
        self._mutex = threading.RLock()
        self._now = _Copy(1, "")
        self._copies = [self._now]
        self._made = 1
        self._personal = is_personal(placement)
        self._keys: Any = None
        self._shown = threading.local()
        self.on_drop: Callable[[str], None] = lambda path: None
        """Told the path of a copy that is gone."""

    @property
    def target(self) -> Target:
        """The database of the rows that this thread is shown."""
        return self.home.at(self._of_thread.place)

    @property
    def number(self) -> int:
        """Which copy of the rows this thread is shown."""
        return self._of_thread.number

    def current(self) -> int:
        """The same."""
        return self._of_thread.number

    def spot(self) -> Spot:
        """Where the copy stands that this thread is shown."""
        return self.home.spot(self._of_thread.place)

    @property
    def _of_thread(self) -> _Copy:
        held: list[_Copy] = getattr(self._shown, "held", [])
        return held[-1] if held else self._now

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show this thread the rows as of now, and have them stay as they are for as long as the block lasts.

        One that fails shows all before the event that failed.
        """
        with self._mutex:
            with suppress(ProjectionFailed):
                self.fold()
            copy = self._now
            copy.readers += 1
        held: list[_Copy] = self._shown.__dict__.setdefault("held", [])
        held.append(copy)
        try:
            yield
        finally:
            held.pop()
            with self._mutex:
                copy.readers -= 1
                self._drop_spare()

    def forked(self) -> None:
        """In a forked child: who held the lock may not be here."""
        super().forked()
        self._mutex = threading.RLock()

    def run(self, stop: Stop) -> None:
        """Nothing: it has no worker."""

    def fill(self) -> None:
        """The same as `fold`."""
        self.fold()

    def fold(self, position: int = 0) -> None:
        """Fold what the log has and the rows have not.

        Args:
            position: Up to which position at least; by default to the end of the log.

        Raises:
            ProjectionFailed: A handler raised. All before that event is kept.
            Trimmed: Events that it is made of were trimmed.
        """
        head = max(position, self._log.head)
        if self._seen >= head and self.failure is None and not self._personal:
            return
        with self._mutex:
            if self._personal:
                self._forget()
            if self._seen >= head and self.failure is None:
                return
            copy = self._writable()
            try:
                keeper = copy.keeper or self._begun(copy)
                keeper.catch_up(head, NEVER)
            except ProjectionFailed as error:
                self.failure = error
                self._let_go(copy)
                raise
            except BaseException:
                self._let_go(copy)
                raise
            finally:
                self._now = copy
            self.failure = None

    def _forget(self) -> None:
        """Begin anew when a key was destroyed since: somebody is to be forgotten."""
        keys = self._log.keys.generation
        if keys == self._keys:
            return
        if self._seen:
            self._now = self._another()
            self._announce(0)
            for copy in self._copies[:-1]:
                copy.seen = -1  # to be dropped when it is read no more
            self._drop_spare()
        self._keys = keys

    def _writable(self) -> _Copy:
        """A copy that nobody reads: the one that was shown last, or another one that is made like it."""
        if not self._now.readers:
            return self._now
        free = next((copy for copy in self._copies if not copy.readers and copy.seen >= 0), None)
        if free is not None:
            return free
        made = self._another()
        with (
            closing(open_database(self.home.file(self._now.place))) as source,
            closing(open_database(self.home.file(made.place))) as target,
        ):
            source.connection.backup(target.connection)
        return made

    def _another(self) -> _Copy:
        self._made += 1
        copy = _Copy(self._made, f"{self.placement.name}-{uuid.uuid4().hex}")
        self.home.at(copy.place)  # it is there for as long as it is open
        self._copies.append(copy)
        return copy

    def _drop_spare(self) -> None:
        idle = [copy for copy in self._copies if not copy.readers and copy is not self._now]
        fresh = [copy for copy in idle if copy.seen >= 0]
        for copy in [copy for copy in idle if copy.seen < 0] + fresh[_SPARE:]:
            self._copies.remove(copy)
            self._let_go(copy)
            self.home.remove(copy.place)
            self.on_drop(self.home.file(copy.place))

    def _begun(self, copy: _Copy) -> Keeper:
        target = copy.open.enter_context(self.home.at(copy.place).kept_open())

        def moved(position: int) -> None:
            copy.seen = position
            self._announce(position)

        # What a fold from the beginning lacks would be missed without a word.
        keeper = Keeper(self._log, self.placement, target, moved, trimmed="raise")
        copy.seen = keeper.take()
        copy.keeper = keeper
        return keeper

    def _let_go(self, copy: _Copy) -> None:
        copy.keeper = None
        copy.open.close()

    def position(self) -> int:
        """The position that whoever asks is shown, at least."""
        return self._log.head if self.failure is None else self._seen

    def wait(self, position: int, timeout: float) -> bool:
        """Fold up to a position: there is nobody to wait for."""
        self.fold(position)
        return True

    def close(self) -> None:
        """Let go of its connections; the rows stay."""
        with self._mutex:
            for copy in self._copies:
                self._let_go(copy)
