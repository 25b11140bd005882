"""Flows live on a log: history first, then what comes, each row exactly once.

A commit holds the output of some batches, the change of the state that they made, and the checkpoint, moved
by compare-and-set. So a flow that is killed goes on where its last commit was, with the state of that
moment; and when two workers run the same flow, the one that took it first loses its next commit, and stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING

import polars as pl

from ..errors import SchemaConflict
from ..events import Plain
from ..frames import MAX_ROWS
from ..log.checkpoints import Checkpoint, advance, take
from ..storage.base import StagedAppend
from .ahead import read_ahead, worth_it
from .compatible import tell
from .delivering import delivery
from .enriching import ROWS, asks
from .errors import FlowError
from .flow import Flow
from .idle import Listener
from .pipeline import FlowState, Pipeline
from .progress import FlowProgress, Meter, heights, told
from .replay import Labelled, batches, frames, labelled
from .spilling import Spill
from .state import concat
from .store import Change, change, load

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.base import Receipt
    from ..storage.database import Database

_COMMIT_EVERY = 1.0
"""Seconds of work in a commit when there is much to catch up with: state that comes and goes within is not written."""

_SLICE = 0.2
"""Seconds that a flow works at a time, so that others have their turn."""

_ROWS = 262_144
"""Rows of output in a commit, at most a batch more."""


class _Ahead:
    """What a worker has done since its last commit."""

    def __init__(self, state: FlowState, position: int) -> None:
        self.state = state
        self.position = position
        self.outputs: list[pl.DataFrame] = []
        self.late: list[pl.DataFrame] = []
        self.worked = 0.0

    @property
    def is_enough(self) -> bool:
        """Whether a commit should not become larger."""
        return sum(output.height for output in self.outputs) >= _ROWS


class Worker:
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
        rows: int = MAX_ROWS,
        commit_every: float = _COMMIT_EVERY,
        spill: Spill | None = None,
    ) -> None:
        if flow.sink is None:
            raise FlowError("a flow that runs needs an end", hint="End it with .to(stream, type=...), or to_files(...)")
        self.log = log
        self.flow = flow
        self.sink = flow.sink
        self.pipeline = Pipeline(flow)
        self.name = flow.sink.name
        self._asks = asks(flow)
        self._rows = min(rows, ROWS) if self._asks else rows
        self._commit_every = commit_every
        self._committed = 0.0
        self._delivery = delivery(flow.sink, log)
        self._spill = spill
        with log.transaction() as tx:
            # Taking it over and reading the state in one transaction: the old holder cannot write in between.
            self.checkpoint = take(tx.db, f"flow:{self.name}")
            self.state, self._stored = load(tx.db, self.name, self.pipeline, spill)
            tell(tx.db, flow, self.name)
            if self._delivery is not None:
                self._delivery.open(tx.db)
        if self._delivery is not None:
            self._delivery.recover()
        self._listener = Listener(log, self.pipeline)
        self.paused = False
        self._meter = Meter([*(source.stream for source in self.pipeline.sources), ""])
        self._seen = self.checkpoint.position
        self._ahead: _Ahead | None = None
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="millstream-flow-commit")
        self._reading: Generator[list[Labelled]] | None = None
        self._read = self._reading_to = 0
        """Up to where what is read ahead was taken in, and to where it goes."""
        self._under_way: tuple[Future[Receipt], _Ahead, Change] | None = None

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
            Whether there may be more up to there.

        Raises:
            ConsumerFenced: Another worker has taken the flow over.
        """
        ahead = self._ahead or _Ahead(self.state, self._seen)
        if ahead.position >= head and self._ahead is None:
            return False
        self._ahead = None  # what fails is done anew
        try:
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
            return False
        if not done and ahead.worked < self._commit_every and not ahead.is_enough:
            self._ahead = ahead
            return True
        if done and not ahead.is_enough and not self.is_due:
            self._ahead = ahead
            return False
        self.pipeline.check(ahead.state)
        if done or not self._commit_every or self._delivery is not None:
            self._commit(ahead.state, head if done else ahead.position, ahead.outputs, ahead.late)
            return not done
        self._settle()
        self._begin(ahead)
        self._ahead = _Ahead(ahead.state, ahead.position)
        return True

    @property
    def is_due(self) -> bool:
        """Whether what was done should be committed as soon as nothing is left to be caught up with."""
        return self._delivery is None or time.monotonic() - self._committed >= self._delivery.every

    @property
    def lags(self) -> bool:
        """Whether it has committed nothing for a while, and may."""
        return time.monotonic() - self._committed >= 1.0 and self.is_due

    def _begin(self, ahead: _Ahead) -> None:
        """Commit beside the work that follows.

        Frames are encoded here: of two threads that look at one frame, Polars may let neither go on.
        """
        difference = change(self.name, ahead.state, self._stored)
        try:
            staged = [self._staged(*each, set()) for each in self._given(ahead.outputs, ahead.late)]
        except SchemaConflict:
            self._commit(ahead.state, ahead.position, ahead.outputs, ahead.late)
            return
        work = self._move(ahead.position, difference)
        self._under_way = self._committer.submit(self.log.commit, staged, work=work), ahead, difference

    def _settle(self) -> None:
        """Wait for the commit that is under way."""
        if self._under_way is None:
            return
        (under_way, ahead, difference), self._under_way = self._under_way, None
        try:
            under_way.result()
        except SchemaConflict:
            self._commit(ahead.state, ahead.position, ahead.outputs, ahead.late)
        else:
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
            for group in self._groups(ahead.position, head):
                self._listener.hear(group)
                for frame in frames(self.pipeline, ahead.state, group):
                    ahead.state, output, aside = self.pipeline.step(ahead.state, frame, fill=True)
                    if self._spill is not None:
                        self._spill.keep(self.name, ahead.state.bodies)
                    self._meter.add(*heights(frame), output.height)
                    if output.height:
                        ahead.outputs.append(output)
                    if aside is not None:
                        ahead.late.append(aside)
                ahead.position = self._read = group[-1][1].last
                slice = min(_SLICE, self._commit_every)
                enough = time.monotonic() - began >= slice or ahead.is_enough
                if enough and self.pipeline.absent(ahead.state) is None:
                    return False
            self._let_go()
            return True
        except BaseException:
            self._let_go()
            raise
        finally:
            ahead.worked += time.monotonic() - began

    def _groups(self, after: int, head: int) -> Iterator[list[Labelled]]:
        """The groups of runs that come next, up to a position: those that were read ahead, if they go on from there."""
        if self._reading is not None and self._read == after and self._reading_to == head:
            return self._reading
        self._let_go()
        groups = batches(labelled(self.log, self.pipeline.sources, after, head + 1), self._rows)
        if self._asks:
            groups = self._cut(groups)
        if head - after > 2 * self._rows and worth_it():
            self._reading, self._read, self._reading_to = read_ahead(groups, self.pipeline.needs), after, head
            return self._reading
        return groups

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

    def _commit(self, state: FlowState, position: int, outputs: list[pl.DataFrame], late: list[pl.DataFrame]) -> None:
        rows = self._given(outputs, late)
        if self._delivery is not None:
            self._delivery.give(list(_alike(outputs)), self.checkpoint.position + 1, position)
        difference = change(self.name, state, self._stored)
        work = self._move(position, difference)
        odd: set[tuple[str, str, str]] = set()
        while True:
            try:
                self.log.commit([self._staged(*each, odd) for each in rows], work=work)
                break
            except SchemaConflict as conflict:
                # A type has drifted in the source, and its stream holds another: as objects the rows fit.
                what = (conflict.stream, conflict.column, conflict.given)
                if what in odd:
                    raise
                odd.add(what)
        self._done(state, position, difference)
        if self._delivery is not None:
            self._delivery.finish()

    def _given(self, outputs: list[pl.DataFrame], late: list[pl.DataFrame]) -> list[tuple[str, str, pl.DataFrame]]:
        """What is appended, and where."""
        rows = [(self.sink.stream, self.sink.type, frame) for frame in _alike(outputs) if self._delivery is None]
        if self.flow.late is not None:
            rows += [(*self.flow.late, frame) for frame in _alike(late)]
        return rows

    def _move(self, position: int, difference: Change) -> Callable[[Database, Receipt], None]:
        """What moves checkpoint and state in a commit."""
        checkpoint = self.checkpoint

        def work(database: Database, receipt: Receipt) -> None:
            advance(database, checkpoint, position)
            difference.apply(database)
            if self._delivery is not None:
                self._delivery.note(database)

        return work

    def _done(self, state: FlowState, position: int, difference: Change) -> None:
        self.checkpoint = Checkpoint(self.checkpoint.name, position, self.checkpoint.epoch)
        self.state, self._stored = state, difference.stored
        self._seen = position
        self._committed = time.monotonic()

    def _staged(self, stream: str, type: str, frame: pl.DataFrame, odd: set[tuple[str, str, str]]) -> StagedAppend:
        if any((stream, name, str(dtype)) in odd for name, dtype in frame.schema.items()):
            return self.log.stage(stream, [Plain(type, row) for row in frame.iter_rows(named=True)])
        return self.log.stage(stream, frame, type=type)


def _alike(frames: list[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The frames with neighbours of one schema together, so that no value changes with what stands beside it."""
    for _, group in groupby(frames, key=lambda frame: list(frame.schema.items())):
        yield concat(group)
