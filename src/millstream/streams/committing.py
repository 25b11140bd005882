"""What a flow commits, whoever has worked on it: rows, the change of its state and its checkpoint, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import polars as pl

from ..errors import SchemaConflict
from ..events import Plain
from ..log.checkpoints import Checkpoint, advance, take
from ..storage.base import StagedAppend
from .delivering import delivery
from .errors import FlowError
from .flow import Flow
from .state import concat

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.base import Receipt
    from ..storage.database import Database


class Difference(Protocol):
    """What a commit does to a flow's stored state."""

    def apply(self, database: Database) -> None:
        """Write it, once or again."""


class Committer:
    """Commits what comes of a flow; the checkpoint is moved by compare-and-set, so that only one holder can."""

    checkpoint: Checkpoint

    def __init__(self, log: Log, flow: Flow) -> None:
        if flow.sink is None:
            raise FlowError("a flow that runs needs an end", hint="End it with .to(stream, type=...), or to_files(...)")
        self.log = log
        self.flow = flow
        self.sink = flow.sink
        self.name = flow.sink.name
        self.paused = False
        self._committed = 0.0
        self._delivery = delivery(flow.sink, log)
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="millstream-flow-commit")

    def _take(self, database: Database) -> None:
        """Take the flow over: who held it cannot commit any more."""
        self.checkpoint = take(database, f"flow:{self.name}")
        if self._delivery is not None:
            self._delivery.open(database)

    def _recover(self) -> None:
        """Finish what the last commit began, once the flow was taken over."""
        if self._delivery is not None:
            self._delivery.recover()

    @property
    def is_due(self) -> bool:
        """Whether what was done should be committed as soon as nothing is left to be caught up with."""
        return self._delivery is None or time.monotonic() - self._committed >= self._delivery.every

    @property
    def lags(self) -> bool:
        """Whether it has committed nothing for a while, and may."""
        return time.monotonic() - self._committed >= 1.0 and self.is_due

    def _write(
        self, position: int, outputs: list[pl.DataFrame], late: list[pl.DataFrame], difference: Difference
    ) -> None:
        """Commit, and wait for it. Call `_finish` when what follows from it is noted."""
        rows = self._given(outputs, late)
        if self._delivery is not None:
            self._delivery.give(list(_alike(outputs)), self.checkpoint.position + 1, position)
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
        self._moved(position)

    def _finish(self) -> None:
        """Finish what the commit has noted of rows that go elsewhere."""
        if self._delivery is not None:
            self._delivery.finish()

    def _write_beside(
        self, position: int, outputs: list[pl.DataFrame], late: list[pl.DataFrame], difference: Difference
    ) -> Future[Receipt] | None:
        """Commit beside the work that follows; None where the rows have to be committed as objects.

        Frames are encoded here: of two threads that look at one frame, Polars may let neither go on.
        """
        try:
            staged = [self._staged(*each, set()) for each in self._given(outputs, late)]
        except SchemaConflict:
            return None
        return self._committer.submit(self.log.commit, staged, work=self._move(position, difference))

    def _moved(self, position: int) -> None:
        self.checkpoint = Checkpoint(self.checkpoint.name, position, self.checkpoint.epoch)
        self._committed = time.monotonic()

    def _given(self, outputs: list[pl.DataFrame], late: list[pl.DataFrame]) -> list[tuple[str, str, pl.DataFrame]]:
        """What is appended, and where."""
        rows = [(self.sink.stream, self.sink.type, frame) for frame in _alike(outputs) if self._delivery is None]
        if self.flow.late is not None:
            rows += [(*self.flow.late, frame) for frame in _alike(late)]
        return rows

    def _move(self, position: int, difference: Difference) -> Callable[[Database, Receipt], None]:
        """What moves checkpoint and state in a commit."""
        checkpoint = self.checkpoint

        def work(database: Database, receipt: Receipt) -> None:
            advance(database, checkpoint, position)
            difference.apply(database)
            if self._delivery is not None:
                self._delivery.note(database)

        return work

    def _staged(self, stream: str, type: str, frame: pl.DataFrame, odd: set[tuple[str, str, str]]) -> StagedAppend:
        if any((stream, name, str(dtype)) in odd for name, dtype in frame.schema.items()):
            return self.log.stage(stream, [Plain(type, row) for row in frame.iter_rows(named=True)])
        return self.log.stage(stream, frame, type=type)


def _alike(frames: list[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The frames with neighbours of one schema together, so that no value changes with what stands beside it."""
    for _, group in groupby(frames, key=lambda frame: list(frame.schema.items())):
        yield concat(group)
