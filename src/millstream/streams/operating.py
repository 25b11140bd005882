"""What is done with a flow that runs, or has run: it waits, is kept, is looked at as it was, is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..log.log import check_log

if TYPE_CHECKING:
    import polars as pl

    from ..log.log import Log
    from ..time import Moment
    from .compatible import Compatibility
    from .flow import Flow
    from .fork import Fork
    from .savepoints import Savepoint


class Operating:
    """What `Flow` has of that."""

    __slots__ = ()

    @property
    def _flow(self) -> Flow:
        raise NotImplementedError

    def pause(self, log: Log) -> None:
        """Have the flow wait, in whatever process it runs: noted in the log, until `resume`.

        It commits what it has taken in, within a quarter of a second or a batch, and takes in no more. A run until the
        head returns without it. Restarts change nothing about that.
        """
        check_log(log)
        from .ends import name_of
        from .pausing import set_paused

        set_paused(log, [name_of(self._flow)], True)

    def resume(self, log: Log) -> None:
        """Have the flow go on where it was."""
        check_log(log)
        from .ends import name_of
        from .pausing import set_paused

        set_paused(log, [name_of(self._flow)], False)

    def savepoint(self, log: Log, label: str) -> Savepoint:
        """Keep what the flow holds at its checkpoint, under a label. It may be running.

        `at` begins at the nearest savepoint, and a flow of the same shape may start from it: see `start_from`. It costs
        a copy of the state, in one transaction.

        Raises:
            FlowError: The flow has not been run.
            UsageError: There is a savepoint of that label.
        """
        check_log(log)
        from .savepoints import savepoint

        return savepoint(self._flow, log, label)

    def savepoints(self, log: Log) -> list[Savepoint]:
        """The savepoints of the flow, by position."""
        check_log(log)
        from .savepoints import savepoints

        return savepoints(self._flow, log)

    def drop_savepoint(self, log: Log, label: str) -> None:
        """Delete a savepoint.

        Raises:
            NotFound: There is none of that label.
        """
        check_log(log)
        from .savepoints import drop_savepoint

        drop_savepoint(self._flow, log, label)

    def start_from(self, log: Log, saved: Savepoint) -> None:
        """Have this flow, which has not been run, begin where a savepoint is, with what it holds.

        Raises:
            FlowChanged: The savepoint is of a flow of another shape, or of one whose rows lack what is asked of them.
            FlowError: This flow has been run already.
        """
        check_log(log)
        from .savepoints import start_from

        start_from(self._flow, log, saved)

    def at(self, log: Log, moment: Moment | None = None) -> pl.DataFrame:
        """What is open in the flow at a moment: the rows that it would give if time then went on, and nothing came.

        So for windows, their content so far; for joins, the rows that wait for a partner; for patterns, what only time
        decides. The log is played from the nearest savepoint of the flow before the moment, from its checkpoint, or
        from the beginning; nothing is written.

        Args:
            log: The log.
            moment: With all that was recorded before this time. By default where the run of the flow is now, or, if it
                is not run, the end of the log.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> log = ms.open()
            >>> receipt = log.append("clicks", pl.DataFrame({"user": [1, 2, 1]}), type="Click")
            >>> counts = ms.stream("clicks").group_by("user").window(ms.tumbling("1h")).agg(n=pl.len())
            >>> counts.at(log).select("user", "n").rows()
            [(1, 2), (2, 1)]
        """
        check_log(log)
        from .savepoints import at

        return at(self._flow, log, moment)

    def compatible(self, log: Log) -> Compatibility:
        """Whether the flow can go on with what the one of its name has left in the log, and what has changed.

        It can where what its state depends on is the same: sources, windows, keys, aggregates, patterns, joins. Changed
        conditions and columns are named; they apply from where it goes on. Of Python functions the compiled code is
        compared, with its constants, defaults and what it closes over; what they call is not.
        """
        check_log(log)
        from .compatible import compatible

        return compatible(self._flow, log)

    def fork(self, log: Log, *, stream: str | None = None) -> Fork:
        """The changed flow beside the one of its name that runs: to be backfilled, compared and put in its place.

        Args:
            log: The log.
            stream: Where the fork writes; by default ``"fork-"`` and the flow's own stream.

        Raises:
            FlowError: No flow of its name has been run.
        """
        check_log(log)
        from .fork import Fork

        return Fork(log, self._flow, stream)
