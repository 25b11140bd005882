"""Runs as inline handlers see them: inside the transaction that appends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from ..events import sealed_fields
from ..frames import decode_frame
from ..storage.base import StagedAppend
from ..storage.database import Database
from .present import is_wanted, present_staged
from .records import Run

if TYPE_CHECKING:
    from .log import Log


def staged_runs(
    log: Log, database: Database, append: StagedAppend, position: int, types: frozenset[str] | None
) -> list[Run]:
    """The runs of an append that was placed from a position on, those of some types (None: all)."""
    rows = log.store.placed(database, position, position + append.count)
    runs = [UncommittedRun(log, *row) for row in rows]
    for run, staged in zip(runs, append.runs, strict=True):
        run.staged, run.stream_name, run.database = staged, append.stream, database
    return [
        run for run in present_staged(_readable(log, run) for run in runs) if types is None or is_wanted(run, types)
    ]


def _readable(log: Log, run: Run) -> Run:
    """The run, or one to be read in its place if fields of it are sealed."""
    fields = sealed_fields(run.schema)
    if not fields:
        return run
    from .personal.sealing import unsealed

    return unsealed(log, run, fields)


class UncommittedRun(Run, eq=False):
    """A run inside the transaction that appends it: what other connections cannot see yet, it has at hand."""

    staged: Any = None
    stream_name: str = ""
    database: Any = None

    @property
    def stream(self) -> str:
        return self.stream_name

    @property
    def type(self) -> str:
        return str(self.staged.type)

    @property
    def schema(self) -> str:
        return str(self.staged.schema)

    @property
    def stored_schema(self) -> str:
        return str(self.staged.schema)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.staged.tags)

    @property
    def _bytes(self) -> bytes:
        """The body; where it was put ahead of its header, as it stands in the log."""
        if self.staged.ref is not None:
            return self.log.store.body(self.staged.ref)[1]
        return bytes(self.staged.body)

    def lines(self) -> list[Any]:
        if self.staged.count == 1:
            return [self._bytes]
        return self._bytes.split(b"\n")[self.body_offset : self.body_offset + self.count]

    def _text(self) -> bytes:
        return self._bytes

    def frame(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        if not self.is_frame:
            return super().frame(columns)
        frame = decode_frame(self._bytes)
        return frame.select(c for c in columns if c in frame.columns) if columns is not None else frame
