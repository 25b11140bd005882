"""What a flow commits, whoever has worked on it: rows, the change of its state and its checkpoint, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, TypeVar

import polars as pl

from ..errors import SchemaConflict
from ..events import Plain
from ..log.checkpoints import Checkpoint, advance, take
from ..storage.base import StagedAppend
from .aside import Aside
from .columns import dicts
from .delivering import delivery
from .errors import FlowError
from .flow import Flow
from .state import concat

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.base import Receipt
    from ..storage.database import Database


PIECE = 524_288
"""About so many rows of output are encoded at a time; a commit of more has their bodies put ahead of it."""

_AHEAD = "flow_ahead"
TABLES = {_AHEAD: "ref bigint primary key, flow text not null"}
"""What is noted of bodies that were put ahead of a commit, so that they go if it never comes."""

Outputs = Sequence[pl.DataFrame | Aside]


class Difference(Protocol):
    """What a commit does to a flow's stored state."""

    def apply(self, database: Database) -> None:
        """Write it, once or again."""


Changed = TypeVar("Changed", bound=Difference)


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
        self._committed = float("-inf")
        self._delivery = delivery(flow.sink, log)
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="millstream-flow-commit")

    def _take(self, database: Database) -> None:
        """Take the flow over: who held it cannot commit any more."""
        self.checkpoint = take(database, f"flow:{self.name}")
        database.ensure_table(_AHEAD, TABLES[_AHEAD])
        if self._delivery is not None:
            self._delivery.open(database)

    def _recover(self) -> None:
        """Finish what the last commit began, once the flow was taken over; and drop what was put ahead of none."""
        with self.log.connect() as database:
            table = database.own(_AHEAD)
            some = database.has_table(_AHEAD)
            found = database.query(f"select ref from {table} where flow = ?", (self.name,)) if some else []
        self._drop([row["ref"] for row in found])
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

    def _write(self, position: int, outputs: Outputs, late: list[pl.DataFrame], difference: Difference) -> None:
        """Commit, and wait for it. Call `_finish` when what follows from it is noted."""
        if self._delivery is not None:
            self._delivery.give(_alike(outputs), self.checkpoint.position + 1, position)
        is_much = self._delivery is None and sum(output.height for output in outputs) > PIECE
        odd: set[tuple[str, str, str]] = set()
        while True:
            ahead: list[int] = []
            try:
                appends = []
                for each in self._given(outputs, late):
                    appends.append(self._staged(*each, odd))
                    if is_much:
                        ahead += self._put_ahead(appends[-1])
                self.log.commit(appends, work=self._move(position, difference, ahead))
                break
            except SchemaConflict as conflict:
                # A type has drifted in the source, and its stream holds another: as objects the rows fit.
                self._drop(ahead)
                what = (conflict.stream, conflict.column, conflict.given)
                if what in odd:
                    raise
                odd.add(what)
            except BaseException:
                # Where this does not come to it, whoever takes the flow up drops what is noted.
                with suppress(Exception):
                    self._drop(ahead)
                raise
        self._moved(position)

    def _put_ahead(self, append: StagedAppend) -> list[int]:
        """Put the bodies of an append into the log in short commits, unseen until the commit of all; their numbers."""

        def note(database: Database, ref: int) -> None:
            database.execute(f"insert into {database.own(_AHEAD)} (ref, flow) values (?, ?)", (ref, self.name))

        for run in append.runs:
            run.ref = self.log.store.put_body(run, note)
            run.body = b""
        return [run.ref for run in append.runs if run.ref is not None]

    def _drop(self, ahead: Sequence[int]) -> None:
        """Remove bodies that were put ahead of a commit that did not come."""
        if ahead:
            self.log.store.drop_bodies(ahead, lambda database: _forget(database, ahead))

    def _finish(self) -> None:
        """Finish what the commit has noted of rows that go elsewhere."""
        if self._delivery is not None:
            self._delivery.finish()

    def _write_beside(
        self, position: int, outputs: Outputs, late: list[pl.DataFrame], difference: Callable[[], Changed]
    ) -> Future[Changed] | None:
        """Commit beside the work that follows, and say what became of the state; None where the rows are too many.

        All that has to be encoded is encoded beside it, too.
        """
        if sum(output.height for output in outputs) > PIECE:
            return None
        # Of two threads that look at one frame, Polars may let neither go on: so these are nobody else's.
        given = [(stream, type, frame.clone()) for stream, type, frame in self._given(outputs, late)]

        def commit() -> Changed:
            change = difference()
            self.log.commit([self._staged(*each, set()) for each in given], work=self._move(position, change))
            return change

        return self._committer.submit(commit)

    def _moved(self, position: int) -> None:
        self.checkpoint = Checkpoint(self.checkpoint.name, position, self.checkpoint.epoch)
        self._committed = time.monotonic()

    def _given(self, outputs: Outputs, late: list[pl.DataFrame]) -> Iterator[tuple[str, str, pl.DataFrame]]:
        """What is appended, and where."""
        if self._delivery is None:
            yield from ((self.sink.stream, self.sink.type, frame) for frame in _alike(outputs))
        if self.flow.late is not None:
            yield from ((*self.flow.late, frame) for frame in _alike(late))

    def _move(
        self, position: int, difference: Difference, ahead: Sequence[int] = ()
    ) -> Callable[[Database, Receipt], None]:
        """What moves checkpoint and state in a commit."""
        checkpoint = self.checkpoint

        def work(database: Database, receipt: Receipt) -> None:
            advance(database, checkpoint, position)
            difference.apply(database)
            if ahead:
                _forget(database, ahead)
            if self._delivery is not None:
                self._delivery.note(database)

        return work

    def _staged(self, stream: str, type: str, frame: pl.DataFrame, odd: set[tuple[str, str, str]]) -> StagedAppend:
        if any((stream, name, str(dtype)) in odd for name, dtype in frame.schema.items()):
            return self.log.stage(stream, [Plain(type, row) for row in dicts(frame)])
        return self.log.stage(stream, frame, type=type)


def _forget(database: Database, ahead: Sequence[int]) -> None:
    database.executemany(f"delete from {database.own(_AHEAD)} where ref = ?", [(ref,) for ref in ahead])


def _alike(outputs: Outputs) -> Iterator[pl.DataFrame]:
    """The rows with neighbours of one schema together, so that no value changes with what stands beside it; of very
    many some at a time."""
    for _, group in groupby(outputs, key=lambda output: list(output.schema.items())):
        held: list[pl.DataFrame] = []
        for output in group:
            held.append(output.frame if isinstance(output, Aside) else output)
            if sum(frame.height for frame in held) >= PIECE:
                yield concat(held)
                held = []
        if held:
            yield concat(held)
