"""How late the rows of a stream come: what a flow's ``lateness`` should be, by what was."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from ..errors import UsageError
from ..time import Moment
from .columns import AT, NO_TIME, micros
from .errors import FlowError
from .replay import batches, labelled
from .rows import frames_of
from .tree import Source, sources_of

if TYPE_CHECKING:
    from ..frames import Columns
    from ..log.log import Log
    from .flow import Flow


class Lateness(msgspec.Struct, frozen=True, eq=False):
    """How late the rows of a source came.

    Attributes:
        stream: The source.
        rows: How many rows there were.
        without_time: How many of them have no time; these are late whatever the lateness.
        ahead: How many of them are stamped further ahead than the flow allows; these too.
        late: How many are late under the lateness that the flow has, by the rows before them.
        worst: How far the latest came behind the greatest time before it.
    """

    stream: str
    rows: int
    without_time: int
    ahead: int
    late: int
    worst: timedelta
    behind: np.ndarray[tuple[int], np.dtype[np.int64]]
    """By how many microseconds each row that came behind did, in ascending order."""

    def __str__(self) -> str:
        share = f" ({self.late / self.rows:.2%})" if self.rows else ""
        more = [f"{n} {what}" for n, what in ((self.without_time, "without a time"), (self.ahead, "ahead")) if n]
        return (
            f"{self.stream}: {self.rows} rows, {self.late} late{share}, {', '.join([*more, f'worst by {self.worst}'])}"
        )

    def __repr__(self) -> str:
        return (
            f"Lateness(stream={self.stream!r}, rows={self.rows}, without_time={self.without_time}, ahead={self.ahead},"
            f" late={self.late}, worst={self.worst!r})"
        )

    def keeps(self, share: float) -> timedelta:
        """The least lateness under which this share (0 to 1) of the rows that have a time are not late."""
        if not 0 <= share <= 1:
            raise UsageError(f"share={share!r} is no share", hint="Give a number from 0 to 1, such as 0.999")
        timed = self.rows - self.without_time - self.ahead
        index = int(np.ceil(share * timed)) - 1 - (timed - len(self.behind))
        return timedelta(microseconds=int(self.behind[index])) if index >= 0 else timedelta()


def lateness(flow: Flow, log: Log, since: Moment | None, until: Moment | None) -> tuple[Lateness, ...]:
    """See `Flow.lateness`."""
    after = log.position_at(since) if since is not None else 0
    end = (log.position_at(until) if until is not None else log.head) + 1
    return tuple(_of(source, log, after, end) for source in sources_of(flow))


def _of(source: Source, log: Log, after: int, end: int) -> Lateness:
    name = source.time or "_time"
    wanted = frozenset([source.time] if source.time else [])
    high, rows, without, late, ahead = NO_TIME, 0, 0, 0, 0
    behind = [np.zeros(0, np.int64)]
    known: Columns = {}
    for group in batches(labelled(log, [source], after, end)):
        for frame in frames_of([run for number, run in group if number == 0], known, wanted):
            known = {**known, **{each: frame.schema[each] for each in wanted if each in frame.columns}}
            if name not in frame.columns:
                rows, without = rows + frame.height, without + frame.height
                continue
            at = micros(name, frame.schema[name])
            if at is None:
                raise FlowError(f"column {name!r} of stream {source.stream!r} is no time", hint="Name one that is")
            times = frame.select(at.cast(pl.Int64).alias(AT))[AT]
            rows, without = rows + len(times), without + times.null_count()
            if source.ahead is not None:
                possible = times <= frame["_time"].dt.epoch("us") + source.ahead
                ahead += int((~possible).sum())
                times = times.filter(possible)
            values = times.drop_nulls().to_numpy()
            if not len(values):
                continue
            reached = np.maximum.accumulate(np.concatenate([[high], values]))
            high = int(reached[-1])
            gap = reached[:-1] - values
            gap = gap[gap > 0]
            late += int((gap > source.lateness).sum())
            behind.append(gap)
    found = np.sort(np.concatenate(behind))
    worst = timedelta(microseconds=int(found[-1])) if len(found) else timedelta()
    return Lateness(source.stream, rows, without, ahead, late + without + ahead, worst, found)
