"""A table's copy in another database, which is the table as the log has it, change by change."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ..change import Change, SchemaChanged, SnapshotCompleted
from ..shape import Shape, shape_of
from ..values import decode_row
from .base import RETRIES, Changes, SinkBase
from .held import Claim
from .net import Exact, Move, Net, by_shape, steps
from .target import Target

if TYPE_CHECKING:
    from ...log import Log, Recorded
    from ...storage.database import Database


class Replica(SinkBase):
    """A copy of a captured table in PostgreSQL or SQLite, kept up to date; made if it is not there.

    What is promised: the copy holds what the log had up to a position, and that position stands beside it, changed in
    the same transaction: each change takes effect exactly once. It has the source's columns, with types that hold what
    the source's do, and a unique index on its key; columns that come, go or are renamed at the source do so here.
    A value that an update left as it was, and did not tell, stays as it is.

    Args:
        url: ``postgresql://user@host/database``, with ``?schema=`` for a schema other than ``public``, or
            ``sqlite:///copy.sqlite``.
        table: The copy's name; by default the table's own.
        name: Names the follower; by default made of where the copy is.
        size: How many changes go into a transaction, at most.
        retries: As in `SinkBase`.

    Raises:
        UsageError: The URL cannot be used.

    Example:
        >>> import millstream as ms
        >>> ms.Replica("sqlite:///copy.sqlite", table="people").name
        'replica:sqlite:///copy.sqlite#people'
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        table: str | None = None,
        name: str | None = None,
        size: int = 5_000,
        retries: int | None = RETRIES,
    ) -> None:
        self._target = _target(f"sqlite:///{os.fspath(url)}" if isinstance(url, os.PathLike) else url)
        self._table = table
        self.name = name or f"replica:{self._target.location}" + (f"#{table}" if table else "")
        self.size = size
        self.retries = retries
        self._claim = Claim(self.name)
        self._shape: Shape | None = None
        """The shape that the copy was last seen to have."""

    def open(self, log: Log, stream: str) -> int | None:
        """Connect, and read the position that stands beside the copy."""
        target = self._target
        if log.path and target.path and os.path.realpath(log.path) == os.path.realpath(target.path):
            raise UsageError("the copy would be in the log's own file", hint="Give another file")
        target.connect()
        self._shape = None
        with target.transaction():
            return self._claim.open(target, log.id, stream)

    def close(self) -> None:
        """Disconnect."""
        self._claim.release()
        self._target.close()

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Apply changes in one transaction with the position."""
        target = self._target
        with target.transaction():
            for shape, some in by_shape(changes):
                self._fit(shape, some[0][0].table, [change for change, _ in some])
                for step in steps((change for change, _ in some), shape.key):
                    self._step(step, shape)
            self._claim.move(target, changes[-1][1].position)

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Change the copy's columns as the source's were."""
        target = self._target
        shape = shape_of(recorded.run.schema)
        with target.transaction():
            if isinstance(event, SchemaChanged) and shape is not None:
                self._reshape(event, shape)
            elif shape is not None:
                self._fit(shape, event.table, [])
            self._claim.move(target, recorded.position)

    # --- columns ------------------------------------------------------------------------------------------

    def _fit(self, shape: Shape, table: str, changes: Sequence[Change]) -> None:
        """See that the copy is there, and can hold rows of a shape."""
        target = self._target
        if shape != self._shape:
            name = self._table or table
            there = target.look(name)
            if not there:
                target.create(name, shape)
            elif self._claim.fresh and target.has_rows():
                raise UsageError(
                    f"table {name!r} of {target.location} is there already, and is no copy that this follower has made",
                    hint="Give the copy another name with table=, or remove what is there",
                )
            for column in shape.columns:
                if column.name not in target.types:
                    target.add(column)
            target.index(shape.key)
            self._shape = shape
        loose = [column.name for column in shape.columns if column.kind == "any"]
        if loose:
            target.widen(loose, [row for c in changes for row in (c.before, c.after) if row is not None])

    def _reshape(self, event: SchemaChanged, shape: Shape) -> None:
        target = self._target
        if not target.look(self._table or event.table):
            return
        columns = {column.name: column for column in shape.columns}
        target.index(())
        for old, new in event.renamed.items():
            if old in target.types and new not in target.types:
                target.rename(old, new)
        for name in event.dropped:
            if name in target.types and name not in columns:
                target.drop(name)
        for name in event.retyped:
            if name in columns and name in target.types:
                target.retype(columns[name])
        added: Mapping[str, Any] = decode_row(event.added, shape)
        for name, value in added.items():
            if name not in target.types and name in columns:
                target.add(columns[name])
                target.widen([name] if columns[name].kind == "any" else [], [{name: value}])
                if value is not None:
                    target.fill(name, value)
        self._shape = None

    # --- rows ---------------------------------------------------------------------------------------------

    def _step(self, step: Net | Move | Exact, shape: Shape) -> None:
        target = self._target
        if isinstance(step, Exact):
            target.insert(step.come)
            for row in step.gone:
                target.remove(row)
        elif isinstance(step, Move):
            target.delete(shape.key, [step.new])
            target.update(shape.key, [(step.old, step.row)])
        else:
            if step.truncate:
                target.truncate()
            target.delete(shape.key, list(step.gone.values()))
            target.upsert(shape.key, step.whole)
            target.update(shape.key, step.parts)


def _target(url: str) -> Target:
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        from .target_sqlite import SQLiteTarget

        return SQLiteTarget(url.removeprefix("sqlite:///"))
    if url.startswith(("postgresql://", "postgres://")):
        from ...log.log import require_postgres

        require_postgres()
        from .target_postgres import PostgresTarget

        return PostgresTarget(url)
    raise UsageError(
        f"a copy cannot be kept at {url.partition('://')[0]!r:.60}",
        hint="Write postgresql://user@host/database, or sqlite:///copy.sqlite",
    )
