"""A captured table while its changes are applied, whatever it is: with a key or without, its columns changing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ...conversion import ready
from ...errors import DamagedLog
from ..change import Change, Row, SchemaChanged, SnapshotCompleted
from ..shape import Shape, shape_of
from .ahead import with_texts
from .exact import ExactRows
from .lines import Held, Layout, Left, Lines, decode_lines, held_of, layout_of
from .recast import as_json, in_json, recast, shape_of_rows
from .rows import GONE, KeyedRows, KeyIsNull, MovedAndLeft, changes_of
from .typed import typed_column

if TYPE_CHECKING:
    from ...log import Run

TYPES = (Change, SchemaChanged, SnapshotCompleted)
"""What the stream of a captured table tells."""

BATCH_BYTES = 16 << 20
"""About how many bytes of changes are decoded at once."""

_TRUNCATE = b'"TRUNCATE"'


class About(msgspec.Struct):
    """What is known of a table besides its rows.

    Attributes:
        columns: The table's columns, in its order.
        held: How the columns of the rows are held.
        key: What tells a row from others.
        complete: Whether every row is there: a snapshot was finished since the table was last read anew.
    """

    columns: list[str] = []
    held: dict[str, Held] = {}
    key: list[str] = []
    complete: bool = False


class TableState:
    """The rows of a table as of a position of the log."""

    def __init__(self, about: About | None = None, frame: pl.DataFrame | None = None) -> None:
        self.about = about or About()
        frame = frame if frame is not None else pl.DataFrame()
        self._rows: KeyedRows | ExactRows = KeyedRows(frame, self.about.key)
        self._shape: Shape | None = None
        if frame.height and not self._can_be_keyed(frame):
            self._become_exact()

    # --- reading ----------------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """How many rows there are."""
        return self.stored.height

    @property
    def stored(self) -> pl.DataFrame:
        """The rows as they are held, all columns that were ever told."""
        if isinstance(self._rows, KeyedRows):
            return self._rows.frame
        return self._rows.frame({name: held.dtype for name, held in self.about.held.items()})

    def frame(self) -> pl.DataFrame:
        """The rows as a reader gets them: typed columns, in the order of the key where that can be."""
        stored, held = self.stored, self.about.held
        columns = []
        for name in self.about.columns:
            if name in held and name in stored.columns:
                columns.append(typed_column(stored[name], held[name]))
            else:
                columns.append(pl.Series(name, [None] * stored.height, dtype=pl.Null))
        frame = pl.DataFrame(columns)
        key = [name for name in self.about.key if name in frame.columns]
        if key and not any(frame[name].dtype.is_nested() for name in key):
            return frame.sort(key)
        return frame

    @property
    def is_keyed(self) -> bool:
        """Whether a key tells each row from the others."""
        return isinstance(self._rows, KeyedRows) and bool(self.about.key)

    def json_rows(self, stored: pl.DataFrame) -> Iterator[Row]:
        """Rows of `stored` in JSON, as in a `Change`: the columns of the last shape."""
        names = self._shape.names if self._shape is not None else tuple(self.about.held)
        columns = [in_json(stored[name], self.about.held[name]) for name in names]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))

    def held_as(self, rows: Sequence[Row], table: str) -> pl.DataFrame:
        """Rows in JSON, of the last shape and with a key, as `stored` holds them, in their order. Where a value is
        beyond what a column holds, `stored` is changed to hold it."""
        assert self._shape is not None
        head = b'{"operation":"READ","table":%b,"before":null,"after":' % msgspec.json.encode(table)
        text = b"\n".join(head + msgspec.json.encode(row) + b"}" for row in rows)
        lines = self._fitted(decode_lines(text, self._layout(layout_of(self._shape))))
        return self._conformed(changes_of(lines, self._shape.key)).select(list(self.about.held))

    # --- applying ---------------------------------------------------------------------------------------

    def add(self, runs: Iterable[Run]) -> int:
        """Apply runs, the next ones of the stream, in order; how many changes they held."""
        parts: list[bytes] = []
        first: Run | None = None
        size = count = 0
        for run, text in with_texts(runs):
            count += run.count
            alone = not text or _TRUNCATE in text
            if first is not None and (alone or run.kind_id != first.kind_id or size >= BATCH_BYTES):
                self._changes(parts, first)
                parts, size, first = [], 0, None
            if not text:
                self._told(run)
            elif alone:
                self._with_truncation(text, run)
            else:
                first = first or run
                parts.append(text)
                size += len(text)
        if first is not None:
            self._changes(parts, first)
        return count

    def _told(self, run: Run) -> None:
        for event in run.events():
            if isinstance(event, SnapshotCompleted):
                self.about.complete, self.about.columns = True, event.columns
            else:
                self._schema_changed(event, shape_of(run.schema))

    def _with_truncation(self, text: bytes, run: Run) -> None:
        lines = text.split(b"\n")
        operation = msgspec.json.Decoder(ready(_Operation))
        last = -1
        for index, line in enumerate(lines):
            if _TRUNCATE in line and operation.decode(line).operation == "TRUNCATE":
                last = index
        if last >= 0:
            self._rows.clear()
            self._shape = None
            # One that a capture tells before it reads a table again leaves it half; the source's own leaves it empty.
            if run.metadata.get("snapshot") or not self.about.complete:
                self.about.complete = False
        if last + 1 < len(lines):
            self._changes(lines[last + 1 :], run)

    def _changes(self, parts: Sequence[bytes], run: Run) -> None:
        shape = shape_of(run.schema)
        text = parts[0] if len(parts) == 1 else b"\n".join(parts)
        try:
            if shape is None:
                shape = shape_of_rows(text)
            self.adopt(shape)
            if isinstance(self._rows, KeyedRows) and shape.key:
                try:
                    self._keyed(text, shape)
                    return
                except KeyIsNull:
                    pass
            self._become_exact()
            self._exactly(text, shape)
        except msgspec.DecodeError as error:
            raise DamagedLog(run.position, f"its changes cannot be decoded ({error})") from error

    def _keyed(self, text: bytes, shape: Shape) -> None:
        lines = self._fitted(decode_lines(text, self._layout(layout_of(shape))))
        rows = self._rows
        assert isinstance(rows, KeyedRows)
        while lines.events:
            try:
                rows.apply(self._conformed(changes_of(lines, shape.key)))
                return
            except MovedAndLeft as stop:
                # What the moved row left as it was stands under its old key.
                ahead = Lines(lines.layout, lines.events[: stop.index], True)
                if ahead.events:
                    rows.apply(self._conformed(changes_of(ahead, shape.key)))
                self._move(lines, lines.events[stop.index], list(shape.key))
                lines = Lines(lines.layout, lines.events[stop.index + 1 :], True)

    def _move(self, lines: Lines, event: Any, key: list[str]) -> None:
        """Apply one change that gives a row another key and leaves some columns as they were."""
        rows = self._rows
        assert isinstance(rows, KeyedRows)
        now = {name: lines.values([event.after], name)[0] for name in lines.names}
        was = {name: lines.values([event.before], name)[0] for name in key}
        frame = rows.frame
        same = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(was[name], frame.schema[name])) for name in key)
        known = frame.filter(same)
        old = known.row(0, named=True) if known.height else {}
        now = {name: old.get(name) if value.__class__ is Left else value for name, value in now.items()}
        both = [
            pl.Series(name, [was.get(name), now.get(name)], dtype=held.dtype) for name, held in self.about.held.items()
        ]
        rows.apply(pl.DataFrame([*both, pl.Series(GONE, [True, False])]))

    def _exactly(self, text: bytes, shape: Shape) -> None:
        lines = self._fitted(decode_lines(text, self._layout(layout_of(shape, whole=True))))
        rows = self._rows
        assert isinstance(rows, ExactRows)
        befores = iter(self._tuples(lines, [e.before for e in lines.events if e.before is not None]))
        afters = iter(self._tuples(lines, [e.after for e in lines.events if e.after is not None]))
        for event in lines.events:
            rows.apply(
                next(befores) if event.before is not None else None,
                next(afters) if event.after is not None else None,
            )

    def _tuples(self, lines: Lines, found: list[Any]) -> Iterable[tuple[Any, ...]]:
        assert isinstance(self._rows, ExactRows)
        columns = [
            lines.values(found, name) if name in lines.names else [None] * len(found) for name in self._rows.names
        ]
        return zip(*columns, strict=True)

    # --- columns ----------------------------------------------------------------------------------------

    def _layout(self, layout: Layout) -> Layout:
        """A shape's layout, with those columns as JSON that are so in the rows already."""
        held = tuple(self.about.held.get(name, own) for name, own in zip(layout.names, layout.held, strict=True))
        return msgspec.structs.replace(layout, held=held) if held != layout.held else layout

    def _fitted(self, lines: Lines) -> Lines:
        """Decoded lines, after the rows were brought to hold their columns in the same way."""
        for name, held in zip(lines.names, lines.layout.held, strict=True):
            if held != self.about.held[name]:
                self._hold(name, held)
        return lines

    def _conformed(self, changes: pl.DataFrame) -> pl.DataFrame:
        """Changes with all columns of the rows, in the same order."""
        if isinstance(self._rows, KeyedRows):
            own = [
                pl.lit(None, dtype=held.dtype).alias(name)
                for name, held in self.about.held.items()
                if name not in changes.columns
            ]
            names = [*self.about.held, *[name for name in changes.columns if name.startswith("\0")]]
            return changes.with_columns(own).select(names)
        return changes

    def adopt(self, shape: Shape) -> None:
        """Make the rows hold the columns of a shape, by its key."""
        if shape is self._shape or shape == self._shape:
            return
        self._shape = shape
        for column in shape.columns:
            held, now = self.about.held.get(column.name), held_of(column.kind, column.type)
            if held is None:
                self._add_column(column.name, now, None)
            elif held.kind != now.kind or held.type != now.type:
                self._retype(column.name, held, now)
        if list(shape.key) != self.about.key:
            self.about.key = list(shape.key)
            stored = self.stored
            self._rows = KeyedRows(stored, self.about.key)
            if stored.height and not self._can_be_keyed(stored):
                self._become_exact()

    def _can_be_keyed(self, frame: pl.DataFrame) -> bool:
        key = self.about.key
        return bool(key) and not any(frame[name].null_count() for name in key)

    def _become_exact(self) -> None:
        if isinstance(self._rows, ExactRows):
            return
        frame = self._rows.frame
        self._rows = ExactRows(list(self.about.held), self.about.key)
        if frame.height:
            self._rows.fill(frame)

    def _replace(self, frame: pl.DataFrame) -> None:
        """Take other columns for the same rows."""
        exact = isinstance(self._rows, ExactRows)
        self._rows = KeyedRows(frame, self.about.key)
        if exact:
            self._become_exact()

    def _add_column(self, name: str, held: Held, value: Any) -> None:
        frame = self.stored
        self.about.held[name] = held
        if not frame.width:
            self._replace(pl.DataFrame(schema={name: held.dtype}))
        else:
            self._replace(frame.with_columns(pl.lit(value, dtype=held.dtype).alias(name)))

    def _hold(self, name: str, held: Held) -> None:
        """Hold a column as JSON from now on."""
        frame, before = self.stored, self.about.held[name]
        assert held.json
        assert not before.json
        self.about.held[name] = held
        self._replace(frame.with_columns(as_json(frame[name])))

    def _retype(self, name: str, before: Held, now: Held) -> None:
        """Rows that were there keep their values, as far as the new kind has them."""
        frame = self.stored
        if before.kind == now.kind:
            now = msgspec.structs.replace(now, json=before.json)
        column = recast(frame[name], before, now)
        if column is None:
            now = Held("any", True, now.type)
            column = as_json(frame[name]) if not before.json else frame[name]
        self.about.held[name] = now
        self._replace(frame.with_columns(column))

    def _schema_changed(self, event: SchemaChanged, shape: Shape | None) -> None:
        about = self.about
        frame = self.stored
        renamed = {old: new for old, new in event.renamed.items() if old in about.held}
        gone = [n for n in (*event.dropped, *renamed.values()) if n in about.held and n not in renamed]
        frame = frame.drop(gone, strict=False).rename(renamed, strict=False)
        about.held = {renamed.get(n, n): held for n, held in about.held.items() if n not in gone}
        about.key = [renamed.get(n, n) for n in about.key if n not in gone]
        about.columns = event.columns
        self._shape = None
        self._replace(frame)
        if shape is not None:
            kinds = {column.name: column for column in shape.columns}
            for name, value in event.added.items():
                if name not in about.held and name in kinds:
                    self._fill_added(name, held_of(kinds[name].kind, kinds[name].type), value)
            self.adopt(shape)

    def _fill_added(self, name: str, held: Held, value: Any) -> None:
        if value is not None and held.json:
            value = msgspec.json.encode(value).decode()
        try:
            self._add_column(name, held, value)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            self._add_column(name, msgspec.structs.replace(held, json=True), msgspec.json.encode(value).decode())


class _Operation(msgspec.Struct):
    operation: str
