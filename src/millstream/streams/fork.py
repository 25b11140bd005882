"""A changed flow beside the one that runs: backfilled, compared, and put in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..errors import StreamNotFound
from ..log import checkpoints
from .beginnings import begin
from .compatible import tell, told
from .describing import end
from .ends import Sink, name_of
from .errors import FlowError
from .flow import Flow
from .pipeline import Pipeline
from .referee.check import differences
from .runner import Worker
from .store import TABLES

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.database import Database


class ForkComparison(msgspec.Struct, frozen=True, eq=False):
    """What a fork gave beside what the flow that runs has given, up to the same position.

    Attributes:
        position: The position.
        rows: How many rows the flow has given.
        forked: How many the fork has given.
        only_before: The rows of the flow that the fork does not give.
        only_after: The rows of the fork that the flow has not given.
        same: How many rows both give.
    """

    position: int
    rows: int
    forked: int
    only_before: pl.DataFrame
    only_after: pl.DataFrame

    @property
    def same(self) -> int:
        """How many rows both give."""
        return self.rows - self.only_before.height


class Fork:
    """A changed flow beside the one of its name that runs; made by `Flow.fork`.

    It has a stream of its own, and never goes beyond where the flow that runs is.

    Attributes:
        flow: The changed flow, with the fork's name and stream.
    """

    def __init__(self, log: Log, changed: Flow, stream: str | None = None) -> None:
        name = name_of(changed)
        assert changed.sink is not None
        self._log = log
        self._name = name
        self._changed = changed
        if not isinstance(changed.sink, Sink):
            raise FlowError(
                "a flow that ends outside the log cannot be forked",
                hint="Fork it with to(stream, type=...) for its end",
            )
        sink = Sink(stream or f"fork-{changed.sink.stream}", changed.sink.type, f"{name}~fork")
        if sink.stream == changed.sink.stream or changed._reads(sink.stream):
            raise FlowError(f"a fork cannot write to {sink.stream!r}", hint="Give stream= one of its own")
        self.flow = msgspec.structs.replace(changed, sink=sink, late=None)
        with log.connect() as database:
            if checkpoints.peek(database, f"flow:{name}") is None:
                raise FlowError(f"flow {name!r} has not been run, so there is nothing to fork", hint="Just run it")
            before = (told(database, name) or [""])[-1]
        if before not in ("", end(changed.sink)):
            raise FlowError(
                f"flow {name!r} goes {before}, and its fork {end(changed.sink)}, so that they cannot be compared",
                hint="Let the changed flow end as the other does, or run it under another name",
            )

    def run(self) -> int:
        """Backfill, or catch up: to where the flow that runs is now; and that position."""
        with self._log.transaction() as tx:
            if checkpoints.peek(tx.db, self._began) is None:
                # What stands in its stream is of forks before it.
                checkpoints.take(tx.db, self._began, start=self._log.head)
        with self._log.connect() as database:
            position = checkpoints.reached(database, f"flow:{self._name}")
        self._advance(position)
        return position

    def _advance(self, position: int) -> None:
        worker = Worker(self._log, self.flow)
        try:
            if worker.position < position:
                while worker.advance(position):
                    pass
                worker.flush()
        finally:
            worker.close()

    def compare(self, *, tolerance: float = 1e-9) -> ForkComparison:
        """What the fork gives beside what the flow that runs has given, row by row, both ways, up to its position.

        Needs DuckDB. `run` is done first.
        """
        while True:
            position = self.run()
            head = self._log.head
            # The flow that runs may have moved on, and written more.
            with self._log.connect() as database:
                if checkpoints.reached(database, f"flow:{self._name}") == position:
                    break
        assert self._changed.sink is not None
        assert self.flow.sink is not None
        with self._log.connect() as database:
            began = checkpoints.reached(database, self._began)
        before, after = self._written(self._changed.sink, 0, head), self._written(self.flow.sink, began, head)
        only_after, only_before, _ = differences(after, before, tolerance)
        return ForkComparison(position, before.height, after.height, only_before, only_after)

    @property
    def _began(self) -> str:
        """The checkpoint that notes where the log ended when it began."""
        return f"fork:{self._name}"

    def _written(self, sink: Sink, after: int, head: int) -> pl.DataFrame:
        try:
            rows = self._log.scan(sink.stream, types=[sink.type], envelope=True).collect()
        except StreamNotFound:
            return pl.DataFrame()
        rows = rows.filter(pl.col("_position").is_between(after, head, closed="right"))
        return rows.select(name for name in rows.columns if not name.startswith("_"))

    def switch(self) -> int:
        """Put the changed flow in the place of the one that runs, which stops with `ConsumerFenced`; and where.

        From that position on, the changed flow under its own name goes on with the fork's state, and writes to the
        stream of the flow that ran. What that one wrote stays; what the fork wrote stays in its own stream. There is no
        position that neither or both would tell of.

        Raises:
            ConsumerFenced: Somebody has started the flow, or the fork, anew meanwhile: try again.
        """
        # What may fail fails before the flow that runs is stopped.
        self.run()
        with self._log.transaction() as tx:
            # The one that runs loses its next commit; so its checkpoint stays where it is.
            held = checkpoints.take(tx.db, f"flow:{self._name}")
        self._advance(held.position)
        fork = f"{self._name}~fork"
        with self._log.transaction() as tx:
            checkpoints.advance(tx.db, held, held.position)
            mine = checkpoints.peek(tx.db, f"flow:{fork}")
            if mine is None or mine.position != held.position:
                raise FlowError("the fork is not where the flow is", hint="Somebody else runs it: stop that, and again")
            for table in ("flow_state", "flow_info"):
                tx.db.execute(f"delete from {tx.db.own(table)} where flow = ?", (self._name,))
                tx.db.execute(f"update {tx.db.own(table)} set flow = ? where flow = ?", (self._name, fork))
            tell(tx.db, Pipeline(self._changed), self._name)
            begin(tx.db, self._name, held.position, self._log.head)
            self._forget(tx.db, fork)
        return held.position

    def drop(self) -> None:
        """Give the fork up: its state and its checkpoint go; what it wrote stays in its stream."""
        with self._log.transaction() as tx:
            self._forget(tx.db, f"{self._name}~fork")

    def _forget(self, database: Database, name: str) -> None:
        for table in ("flow_state", "flow_info", "flow_told"):
            database.ensure_table(table, TABLES[table])
            database.execute(f"delete from {database.own(table)} where flow = ?", (name,))
        for checkpoint in (f"flow:{name}", self._began):
            checkpoints.drop(database, checkpoint)
