"""Live projections: nothing keeps them; whoever asks has the events folded that came since the last question."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ..log import Log
from .building import NEVER
from .errors import ProjectionFailed
from .follower import Follower
from .keeping import Keeper
from .lease import Leases, Stop
from .projection import Placement
from .watch import Watch


class LiveModel(Follower):
    """The rows of a live projection, in the memory of this process, from the first question on.

    A question about a log that has not moved costs a look at its head. Failures are tried again by each question.
    """

    def __init__(
        self, log: Log, placement: Placement, leases: Leases, moved: threading.Condition, watch: Watch
    ) -> None:
        super().__init__(log, placement, leases, moved, watch)
        self._mutex = threading.RLock()
        self._keeper: Keeper | None = None
        self._open = ExitStack()

    def current(self) -> int:
        """The number of its one version."""
        return 1

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
        if self._seen >= head and self.failure is None:
            return
        with self._mutex:
            if self._seen >= head and self.failure is None:
                return
            try:
                keeper = self._keeper or self._begun()
                keeper.catch_up(head, NEVER)
            except ProjectionFailed as error:
                self.failure = error
                self._forget_keeper()
                raise
            except BaseException:
                self._forget_keeper()
                raise
            self.failure = None

    def _begun(self) -> Keeper:
        target = self._open.enter_context(self.target.kept_open())
        # What a fold from the beginning lacks would be missed without a word.
        keeper = Keeper(self._log, self.placement, target, self._announce, trimmed="raise")
        keeper.take()
        self._keeper = keeper
        return keeper

    def _forget_keeper(self) -> None:
        self._keeper = None
        self._open.close()

    def position(self) -> int:
        """The position that whoever asks is shown, at least."""
        return self._log.head if self.failure is None else self._seen

    def wait(self, position: int, timeout: float) -> bool:
        """Fold up to a position: there is nobody to wait for."""
        self.fold(position)
        return True

    def close(self) -> None:
        """Let go of its connection; the rows stay."""
        with self._mutex:
            self._forget_keeper()
