"""Whether the log says of a table what the source has: compared row by row at one position, and repaired on request."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import polars as pl

from ..errors import CaptureError, UsageError, VersionConflict
from ..log.checkpoints import reached
from ..log.reading import scope_of
from ..personal import Erased
from ..storage.base import Encoding, StagedAppend, StagedRun
from ..time import from_micros
from .capture import Capture
from .change import Change
from .past.recast import as_json
from .past.state import TYPES, TableState
from .source import Piece, RowReader, pieces_of, reader_of
from .table import state_at
from .values import Row, decode_row
from .worker import captured_tables

if TYPE_CHECKING:
    from ..log import Log, Run

Kind = Literal["missing", "extra", "different"]
"""What is wrong with a row: the log lacks it, only the log has it, or the two have other values."""

PATIENCE = 10.0
"""Seconds that a capture is given to bring the log up to the source."""


class RowDifference(msgspec.Struct, frozen=True):
    """A row that the log has otherwise than the source.

    Attributes:
        table: The table.
        kind: What is wrong.
        key: The row's key; the whole row when it has none.
        columns: The columns that differ.
        source: The row as the source has it; None when it does not.
        log: The row as the log has it; None when it does not.
    """

    table: str
    kind: Kind
    key: dict[str, Any]
    columns: tuple[str, ...]
    source: Row | None
    log: Row | None

    def __str__(self) -> str:
        key = ", ".join(f"{name}={value!r}" for name, value in self.key.items())
        if self.kind != "different" or self.source is None or self.log is None:
            return f"{self.table} {self.kind}: {key}"
        parts = (f"{name} is {self.source.get(name)!r}, in the log {self.log.get(name)!r}" for name in self.columns)
        return f"{self.table} different: {key}: {'; '.join(parts)}"


class TableVerified(msgspec.Struct, frozen=True):
    """How a table compares.

    Attributes:
        table: The table.
        position: The position of the log at which it was compared.
        rows: How many rows the source has.
        differences: Every row that differs.
        repaired: How many of them corrective events were appended for.
    """

    table: str
    position: int
    rows: int
    differences: tuple[RowDifference, ...] = ()
    repaired: int = 0


class CaptureVerified(msgspec.Struct, frozen=True):
    """What `millstream.cdc.verify` has found."""

    tables: tuple[TableVerified, ...]

    @property
    def differences(self) -> tuple[RowDifference, ...]:
        """Every row that differs, of all tables."""
        return tuple(difference for table in self.tables for difference in table.differences)

    @property
    def rows(self) -> int:
        """How many rows were compared."""
        return sum(table.rows for table in self.tables)

    @property
    def repaired(self) -> int:
        """How many rows corrective events were appended for."""
        return sum(table.repaired for table in self.tables)

    @property
    def ok(self) -> bool:
        """Whether the log has every row as the source has it, after what was repaired."""
        return len(self.differences) == self.repaired

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = []
        for table in self.tables:
            said = f"{table.table}: {table.rows:,} rows at position {table.position}"
            count = len(table.differences)
            said += f", {count:,} differ" if count else ", all as in the source"
            lines.append(said + (f", {table.repaired:,} repaired" if table.repaired else ""))
            lines += [f"  {difference}" for difference in table.differences]
        return "\n".join(lines)


def verify(
    capture: Capture,
    log: Log,
    table: str | None = None,
    *,
    repair: bool = False,
    chunk: int = 10_000,
    patience: float = PATIENCE,
    progress: Callable[[str, int], None] | None = None,
) -> CaptureVerified:
    """Compare what the log says of captured tables with the source itself, at one position, every row.

    The source is read in one transaction, a chunk of rows at a time, and may be written to meanwhile; the log's table
    is taken as of the last change that this transaction shows. A row that differs is named with its columns.

    Repairing appends to the table's stream what makes the log agree: READ for a row that is missing or different,
    DELETE for one too many, with ``{"repair": true}`` in the metadata. A row that has changed in the log since the
    comparison is left to the next one.

    Args:
        capture: The capture; it may be running, here or elsewhere, or not. It is not taken over.
        table: Only this table; by default all that were captured.
        repair: Make the log agree.
        chunk: How many rows are read and compared at once.
        patience: How many seconds a capture that is behind the source has to catch up.
        progress: Called after each chunk with the table and how many of its rows were compared.

    Raises:
        CaptureError: The source cannot be read, or the log is behind it and does not catch up.
        NotCapturedYet, Trimmed: As in `table`.
    """
    if chunk < 1:
        raise UsageError(f"chunk={chunk} is no number of rows", hint="Give a whole number from 1 on")
    with reader_of(capture.source) as reader:
        known = captured_tables(log, capture.checkpoint)
        if not known or (table is not None and table not in known):
            raise CaptureError(
                f"{capture.source.url if table is None else repr(table)} is not captured into this log",
                hint=f"The log has these tables of it: {', '.join(known) or 'none'}",
            )
        tables = known if table is None else [table]
        _wait(capture, log, reader.position, patience)
        return CaptureVerified(
            tuple(_Comparison(capture, log, reader, name, chunk, progress).run(repair) for name in tables)
        )


def _wait(capture: Capture, log: Log, position: int, patience: float) -> None:
    """Until the log has all that the rows show."""
    end = time.monotonic() + patience
    name = capture.checkpoint
    while True:
        with log.connect() as db:
            done = reached(db, name)
        if done >= position:
            return
        if time.monotonic() >= end:
            raise CaptureError(
                f"the log has the changes of {capture.source.url} up to {done} only, and the source is at {position}",
                hint="Let the capture run meanwhile, or call its catch_up before",
            )
        time.sleep(0.02)


class _Comparison:
    """One table, compared."""

    def __init__(
        self,
        capture: Capture,
        log: Log,
        reader: RowReader,
        table: str,
        chunk: int,
        progress: Callable[[str, int], None] | None,
    ) -> None:
        self.log = log
        self.reader = reader
        self.table = table
        self.chunk = chunk
        self.stream = capture.stream(table)
        self.filter = capture.filters.of(table) if capture.filters is not None else None
        self.source_shape = reader.shape(table)
        self.shape = self.filter.shape(self.source_shape) if self.filter is not None else self.source_shape
        self._progress = progress
        self.rows = 0

    def run(self, repair: bool) -> TableVerified:
        position = _cut(self.log, self.stream, self.reader)
        state = state_at(self.log, self.stream, position)
        if not state.about.complete:
            raise CaptureError(
                f"the snapshot of {self.table!r} is not complete", hint="Let the capture finish it, then compare"
            )
        state.adopt(self.shape)
        keyed = bool(self.shape.key) and state.is_keyed
        found = list(self._by_key(state) if keyed else self._by_count(state))
        repaired = 0
        if repair and found:
            repaired = self._repair(found, position, keyed)
        return TableVerified(self.table, position, self.rows, tuple(each[0] for each in found), repaired)

    def _chunks(self) -> Iterator[list[Row]]:
        last: Row | None = None
        while rows := self.reader.rows(self.table, last, self.chunk):
            last = rows[-1]
            if self.filter is not None:
                wanted = [row for row in rows if self.filter.wants(row, self.source_shape) is not False]
                rows = [self.filter.row(row, self.source_shape) for row in wanted]
            self.rows += len(rows)
            if rows:
                yield rows
            if self._progress is not None:
                self._progress(self.table, self.rows)

    def _by_key(self, state: TableState) -> Iterator[tuple[RowDifference, Row | None, Row | None]]:
        key = list(self.shape.key)
        stored = state.stored
        seen: list[pl.DataFrame] = []
        for rows in self._chunks():
            held = [state.about.held[name] for name in key]
            mine = state.held_as(rows, self.table)
            stored = state.stored
            for name, before in zip(key, held, strict=True):
                if state.about.held[name] != before:  # a value of another kind came: all are held as JSON now
                    seen = [part.with_columns(as_json(part[name])) for part in seen]
            seen.append(mine.select(key))
            yield from self._chunk(state, rows, mine, stored)
        known = pl.concat(seen) if seen else stored.select(key).clear()
        for row in state.json_rows(stored.join(known, on=key, how="anti")):
            yield self._difference("extra", (), None, row), None, row

    def _chunk(
        self, state: TableState, rows: list[Row], mine: pl.DataFrame, stored: pl.DataFrame
    ) -> Iterator[tuple[RowDifference, Row | None, Row | None]]:
        key, names = list(self.shape.key), list(self.shape.names)
        others = [name for name in names if name not in key]
        mine = mine.with_row_index("\0index")
        theirs = stored.join(mine.select(key), on=key, how="semi")
        both = mine.join(theirs.with_columns(pl.lit(True).alias("\0there")), on=key, how="left", suffix="\0log")
        same = [pl.col(name).eq_missing(pl.col(f"{name}\0log")) for name in others]
        wrong = both.filter(pl.col("\0there").is_null() | ~pl.all_horizontal(pl.lit(True), *same))
        if not wrong.height:
            return
        suspects = theirs.join(wrong.select(key), on=key, how="semi")
        in_log = {_line(row, key): row for row in state.json_rows(suspects)}
        for index in wrong["\0index"]:
            row = rows[index]
            known = in_log.get(_line(row, key))
            if known is None:
                yield self._difference("missing", (), row, None), row, None
            elif differing := self._differing(row, known):
                yield self._difference("different", differing, row, known), row, known

    def _differing(self, row: Row, known: Row) -> tuple[str, ...]:
        """The columns whose values are not the same; two texts of one value are."""
        mine, theirs = decode_row(row, self.shape), decode_row(known, self.shape)
        erased = {
            column.name
            for column in self.shape.columns
            if column.name in self.shape.personal
            and known.get(column.name) == (Erased if column.kind in ("any", "text") else None)
        }
        return tuple(
            name for name in self.shape.names if name not in erased and not _equal(mine.get(name), theirs.get(name))
        )

    def _by_count(self, state: TableState) -> Iterator[tuple[RowDifference, Row | None, Row | None]]:
        """Rows without a key: how often each stands on either side."""
        names = self.shape.names
        counts: Counter[bytes] = Counter(_line(row, names) for row in state.json_rows(state.stored))
        lacking: list[Row] = []
        for rows in self._chunks():
            for row in rows:
                line = _line(row, names)
                if counts[line] > 0:
                    counts[line] -= 1
                else:
                    lacking.append(row)
        for row in lacking:
            yield self._difference("missing", (), row, None), row, None
        for line, count in (+counts).items():
            for _ in range(count):
                row = dict(zip(names, msgspec.json.decode(line), strict=True))
                yield self._difference("extra", (), None, row), None, row

    def _difference(self, kind: Kind, columns: tuple[str, ...], row: Row | None, known: Row | None) -> RowDifference:
        mine = None if row is None else decode_row(row, self.shape)
        theirs = None if known is None else decode_row(known, self.shape)
        whole = mine or theirs or {}
        key = {name: whole.get(name) for name in (self.shape.key or self.shape.names)}
        return RowDifference(self.table, kind, key, columns, mine, theirs)

    # --- repairing --------------------------------------------------------------------------------------

    def _repair(self, found: list[tuple[RowDifference, Row | None, Row | None]], position: int, keyed: bool) -> int:
        """Append what makes the log agree, of rows that have not changed there since; how many rows."""
        names = self.shape.key if keyed else self.shape.names
        touched: set[bytes] = set()
        while True:
            version = self.log.version(self.stream)
            for run in self.log.runs(self.stream, types=TYPES, after=position):
                position = run.last
                if run.type != "Change":
                    raise CaptureError(
                        f"the columns of {self.table!r} have changed, or it was read again, while it was compared",
                        hint="Compare it again",
                    )
                for change in run.events(Change):
                    if change.operation == "TRUNCATE":
                        raise CaptureError(f"{self.table!r} was emptied while it was compared", hint="Compare it again")
                    touched.update(_line(row, names) for row in (change.before, change.after) if row is not None)
            due = [each for each in found if _line(each[1] or each[2] or {}, names) not in touched]
            if not due:
                return 0
            try:
                self._append(due, version)
            except VersionConflict:
                continue
            return len(due)

    def _append(self, due: Sequence[tuple[RowDifference, Row | None, Row | None]], version: int) -> None:
        moment = from_micros(self.log.store.now())
        events = [
            Change(operation="DELETE", table=self.table, before=known, after=None, timestamp=moment)
            if row is None
            else Change(operation="READ", table=self.table, before=None, after=row, timestamp=moment)
            for _, row, known in due
        ]
        pieces = pieces_of(self.table, self.shape, events, {"repair": True})
        for piece in pieces:
            if self.filter is not None:
                self.filter.seal(piece, self.log.keys)
        append = StagedAppend(self.stream, [_staged(piece) for piece in pieces], expect=version)
        append.count = len(events)
        self.log.commit([append])


def _staged(piece: Piece) -> StagedRun:
    encoding = Encoding.JSON if piece.count == 1 else Encoding.NDJSON
    digest = hashlib.sha256(piece.body).digest()
    schema = piece.shape.text if piece.shape is not None else "1"
    return StagedRun(piece.type, schema, piece.count, encoding, piece.body, digest, (), piece.metadata)


def _cut(log: Log, stream: str, reader: RowReader) -> int:
    """The position of the last event of a stream that the rows show already."""
    repaired = 0
    for runs in log.pages(scope_of(stream, TYPES), 0, log.head + 1, True, None):
        for run in runs:
            if _own(run):
                repaired = repaired or run.last
                continue
            if count := reader.held(run):
                return repaired if repaired and count == run.count else run.position + count - 1
            repaired = 0  # it repairs what is not to be seen yet
    return repaired


def _own(run: Run) -> bool:
    """Whether a run is a repair, which is of the log alone."""
    return run.metadata.get("repair") is True


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _line(row: Row, names: Sequence[str]) -> bytes:
    """Some columns of a row in JSON, to be compared."""
    return msgspec.json.encode([row.get(name) for name in names])
