"""Flows live on a log: history first, then what comes, each row exactly once.

A commit holds the output of some batches, the change of the state that they made, and the checkpoint, moved
by compare-and-set. So a flow that is killed goes on where its last commit was, with the state of that
moment; and when two workers run the same flow, the one that took it first loses its next commit, and stops.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from ..errors import SchemaConflict
from .ahead import Taken, has_spare_core, read_ahead
from .arriving import heights
from .aside import Aside
from .committing import Committer
from .compatible import check_held, tell
from .enriching import ROWS
from .flow import Flow
from .idle import Listener
from .naming import named
from .overtaking import answered, asks, waits
from .pipeline import Pipeline
from .progress import FlowProgress, Meter, told
from .replay import BATCH, Labelled, batches, frames, labelled
from .spilling import Spill
from .steps import FlowState, Prepared, Rows
from .store import Change, change, load

if TYPE_CHECKING:
    from ..log.log import Log

COMMIT_EVERY = 1.0
"""Seconds of work in a commit when there is much to catch up with: state that comes and goes within is not written."""

SLICE = 0.2
"""Seconds that a flow works at a time, so that others have their turn."""

OUTPUT = 393_216
"""Rows of output in a commit, at most a batch more."""


class _Ahead:
    """What a worker has done since its last commit."""

    def __init__(self, state: FlowState, position: int) -> None:
        self.state = state
        self.position = position
        self.outputs: list[Aside] = []
        self.late: list[pl.DataFrame] = []
        self.worked = 0.0

    @property
    def is_enough(self) -> bool:
        """Whether a commit should not become larger."""
        return sum(output.height for output in self.outputs) >= OUTPUT

    def give(self, output: pl.DataFrame, spill: Spill | None) -> None:
        """Rows that go into the commit; what is more than a commit usually holds waits for it on disk."""
        if not output.height:
            return
        aside = spill is not None and self.is_enough
        self.outputs.append(spill.put_aside(output) if spill is not None and aside else Aside(output))


class Worker(Committer):
    """One flow on one log.

    Args:
        rows: The most rows of a batch. It makes no difference to the output.
        commit_every: Seconds of work in a commit when there is much to catch up with.
        spill: Keeps what it holds, together with other workers, within a limit.
    """

    def __init__(
        self,
        log: Log,
        flow: Flow,
        *,
        rows: int = BATCH,
        commit_every: float = COMMIT_EVERY,
        spill: Spill | None = None,
    ) -> None:
        super().__init__(log, flow)
        self.pipeline = Pipeline(flow)
        self._asks = asks(flow)
        self._rows = min(rows, ROWS) if self._asks else rows
        self._commit_every = commit_every
        self._spill = spill
        with log.transaction() as tx:
            # Taking it over and reading the state in one transaction: the old holder cannot write in between.
            self._take(tx.db)
            self.state, self._stored = load(tx.db, self.name, self.pipeline, spill)
            check_held(tx.db, self.pipeline, self.name)
            tell(tx.db, self.pipeline, self.name)
        self._recover()
        self._listener = Listener(log, self.pipeline)
        self._meter = Meter([*(source.stream for source in self.pipeline.sources), ""])
        self._seen = self.checkpoint.position
        self._ahead: _Ahead | None = None
        self._reading: Generator[Taken] | None = None
        self._read = self._reading_to = 0
        """Up to where what is read ahead was taken in, and to where it goes."""
        self._under_way: tuple[Future[Change], _Ahead] | None = None

    @property
    def position(self) -> int:
        """The last position of the log that it is done with."""
        return self._seen

    def progress(self, head: int) -> FlowProgress:
        """How it is getting on. May be called from another thread."""
        return told(self.pipeline, self.state, self._meter, self._seen, head, self.paused)

    def advance(self, head: int) -> bool:
        """Take in what the log holds up to a position: for a while. What was done is committed at the end, or when it
        has become much; then beside the work that follows.

        Returns:
            Whether there may be more up to there: also while a row waits for an answer.

        Raises:
            ConsumerFenced: Another worker has taken the flow over.
        """
        ahead = self._ahead or _Ahead(self.state, self._seen)
        if ahead.position >= head and self._ahead is None:
            there = answered(self.state)
            if not there:
                return there is not None
        self._ahead = None  # what fails is done anew
        try:
            with named(self.log):
                done = self._work(ahead, head)
        except BaseException:
            self._settle()
            raise
        if done:
            self._settle()
        if done and ahead.state is self.state:
            # Nothing was for this flow. The checkpoint need not follow each step of others.
            self._seen = head
            if time.monotonic() - self._committed >= 1.0:
                self.flush()
            return waits(self.state)
        if not done and ahead.worked < self._commit_every and not ahead.is_enough:
            self._ahead = ahead
            return True
        if done and not ahead.is_enough and not self.is_due:
            self._ahead = ahead
            return waits(ahead.state)
        with named(self.log):
            self.pipeline.check(ahead.state)
        if done or not self._commit_every or self._delivery is not None:
            self._commit(ahead.state, head if done else ahead.position, ahead.outputs, ahead.late)
            return not done or waits(ahead.state)
        self._settle()
        self._begin(ahead)
        self._ahead = _Ahead(ahead.state, ahead.position)
        return True

    def _begin(self, ahead: _Ahead) -> None:
        """Commit beside the work that follows."""
        difference = partial(change, self.name, ahead.state, self._stored)
        under_way = self._write_beside(ahead.position, ahead.outputs, ahead.late, difference)
        if under_way is None:
            self._commit(ahead.state, ahead.position, ahead.outputs, ahead.late)
            return
        self._under_way = under_way, ahead

    def _settle(self) -> None:
        """Wait for the commit that is under way."""
        if self._under_way is None:
            return
        (under_way, ahead), self._under_way = self._under_way, None
        try:
            difference = under_way.result()
        except SchemaConflict:
            self._commit(ahead.state, ahead.position, ahead.outputs, ahead.late)
        else:
            self._moved(ahead.position)
            self._done(ahead.state, ahead.position, difference)

    def listen(self, head: int) -> None:
        """Have the log say which sources are silent, when all up to its head is taken in and results wait for them."""
        if self._ahead is None and self._seen >= head:
            self._listener.tell(self.state)

    def close(self) -> None:
        """End the threads that commit and read; what was not committed is done anew by whoever goes on."""
        self._committer.shutdown()
        self._let_go()
        if self._spill is not None:
            self._spill.forget(self.name)

    def _work(self, ahead: _Ahead, head: int) -> bool:
        """Take in rows for a while; whether all up to a position were."""
        began = time.monotonic()
        try:
            for group, prepared in self._groups(ahead, head):
                self._listener.hear(group)
                taken: Iterable[Rows] = frames(self.pipeline, ahead.state.sources, group)
                for rows in taken if prepared is None else prepared:
                    given = self._step(ahead, rows)
                    if self._spill is not None:
                        self._spill.keep(self.name, ahead.state.bodies)
                    self._meter.add(*(rows.heights if isinstance(rows, Prepared) else heights(rows)), given)
                ahead.position = self._read = group[-1][1].last
                slice = min(SLICE, self._commit_every)
                enough = time.monotonic() - began >= slice or ahead.is_enough
                if enough and self.pipeline.absent(ahead.state) is None:
                    return False
            self._let_go()
            if answered(ahead.state):
                # No row came, but an answer for one that did.
                self._step(ahead, [None] * len(self.pipeline.sources))
            return True
        except BaseException:
            self._let_go()
            raise
        finally:
            ahead.worked += time.monotonic() - began

    def _step(self, ahead: _Ahead, rows: Rows) -> int:
        """Take in rows; how many came out."""
        put = Aside if self._spill is None else self._spill.put_aside
        stepping = self.pipeline.stepping(ahead.state, rows, fill=True, put=put)
        given = 0
        while True:
            try:
                output = next(stepping)
            except StopIteration as done:
                ahead.state, late = done.value
                break
            given += output.height
            ahead.give(output, self._spill)
        ahead.late += late
        return given

    def _groups(self, ahead: _Ahead, head: int) -> Iterator[Taken]:
        """The groups of runs that come next, up to a position: those that were read ahead, if they go on from there."""
        after = ahead.position
        if self._reading is not None and self._read == after and self._reading_to == head:
            return self._reading
        self._let_go()
        groups = batches(labelled(self.log, self.pipeline.sources, after, head + 1), self._rows)
        if self._asks:
            groups = self._cut(groups)
        if head - after > 2 * self._rows and has_spare_core():
            self._reading = read_ahead(groups, self.pipeline, ahead.state.sources)
            self._read, self._reading_to = after, head
            return self._reading
        return ((group, None) for group in groups)

    def _cut(self, groups: Iterator[list[Labelled]]) -> Iterator[list[Labelled]]:
        """The groups in smaller ones, by position, where a run is longer than a batch."""
        for group in groups:
            if sum(run.count for _, run in group) <= self._rows:
                yield group
                continue
            last = group[-1][1].last
            for low in range(group[0][1].position - 1, last, self._rows):
                part = list(labelled(self.log, self.pipeline.sources, low, min(low + self._rows, last) + 1))
                if part:
                    yield part

    def _let_go(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()

    def flush(self) -> None:
        """Commit what was done, and the checkpoint where it lags behind what was seen."""
        self._settle()
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.state is self.state:
            self._seen = max(self._seen, ahead.position)
        elif ahead is not None and self.pipeline.absent(ahead.state) is None:
            self._commit(ahead.state, ahead.position, ahead.outputs, ahead.late)
        if self._seen > self.checkpoint.position:
            self._commit(self.state, self._seen, [], [])

    def _commit(self, state: FlowState, position: int, outputs: list[Aside], late: list[pl.DataFrame]) -> None:
        difference = change(self.name, state, self._stored)
        self._write(position, outputs, late, difference)
        self._done(state, position, difference)
        self._finish()

    def _done(self, state: FlowState, position: int, difference: Change) -> None:
        self.state, self._stored = state, difference.stored
        self._seen = position
