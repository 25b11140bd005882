"""Runs as inline handlers see them: inside the transaction that appends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from ..events import sealed_fields
from ..frames import decode_frame
from ..storage.base import Placed
from ..storage.database import Database
from .present import is_wanted, present_staged
from .records import Run

if TYPE_CHECKING:
    from .log import Log


def staged_runs(
    log: Log, database: Database, appends: Sequence[Placed], types: frozenset[str] | None
) -> list[list[Run]]:
    """The runs of appends that were placed in a commit, those of some types (None: all); of each append by itself."""
    last, at = appends[-1]
    rows = {row[0]: row for row in log.store.placed(database, appends[0][1], at + last.count)}
    found = []
    for append, position in appends:
        runs = []
        for staged in append.runs:
            run = UncommittedRun(log, *rows[position])
            run.staged, run.stream_name, run.database = staged, append.stream, database
            runs.append(_readable(log, run))
            position += staged.count
        found.append([run for run in present_staged(runs) if types is None or is_wanted(run, types)])
    return found


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
