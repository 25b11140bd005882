"""What of a source does not come into the log as it is: tables' columns left out or masked, rows left out.

All of it happens before anything is written, to every kind of source alike: what is filtered out is neither in the
events nor in the shapes that the runs carry.
"""

from __future__ import annotations

import hashlib
import hmac
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import CaptureError, CaptureWarning, UsageError
from ..log.handlers import check_plain
from .masking import Personal
from .shape import Column, Shape
from .source import Batch, Piece, Source, reader_of
from .values import UNCHANGED, Row, Unchanged, decode_row, encode_any

if TYPE_CHECKING:
    from ..log.personal.keys import Keys

Mask = str | Callable[[Any], Any]
"""``"drop"``, ``"hash"``, ``"redact"``, ``"personal"``, or a function of a value."""

RowFilter = Callable[[Row], object]

REDACTED = "***"
_RANGES = ("changes", "sequence")
"""What in the metadata numbers the events of a run, by ranges of the source's numbers."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_rows = msgspec.json.Decoder(dict[str, Any])


class Filters:
    """The filters of a capture, by table; made of what `millstream.cdc.capture` is given.

    Raises:
        UsageError: They contradict one another, or what they need is missing.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[str]] | None,
        rows: Mapping[str, RowFilter] | None,
        mask: Mapping[str, Mask] | None,
        mask_key: bytes | str | None,
        tables: Sequence[str] | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> None:
        key = mask_key.encode() if isinstance(mask_key, str) else mask_key
        masks: dict[str, dict[str, Mask]] = {}
        for name, how in (mask or {}).items():
            table, dot, column = name.rpartition(".")
            if not dot or not table or not column:
                raise UsageError(f"mask= names {name!r}", hint="Write table and column: mask={'users.email': 'hash'}")
            if not callable(how) and how not in ("drop", "hash", "redact", "personal"):
                raise UsageError(
                    f"{name!r} cannot be masked by {how!r:.40}",
                    hint="Give 'drop', 'hash', 'redact', 'personal' or a function",
                )
            if how == "personal" and table not in (subjects or {}):
                raise UsageError(
                    f"{name!r} is to be personal, but nothing says whose it is",
                    hint=f"Name the person by columns of the row: subjects={{{table!r}: 'customer-{{id}}'}}",
                )
            if how == "hash" and not key:
                raise UsageError(
                    f"{name!r} is to be hashed without a key: whoever guesses a value could tell its hash",
                    hint="Give mask_key=, 32 random bytes that are kept apart from the log",
                )
            masks.setdefault(table, {})[column] = how
        for table, names in (columns or {}).items():
            if isinstance(names, str) or not names:
                raise UsageError(f"columns= gives {names!r} for {table!r}", hint="Give a list of column names")
        for table, wanted in (rows or {}).items():
            if not callable(wanted):
                raise UsageError(f"rows= gives {wanted!r:.40} for {table!r}", hint="Give a function of a row")
            check_plain(wanted)
        for table in subjects or {}:
            if "personal" not in masks.get(table, {}).values():
                raise UsageError(
                    f"subjects= names {table!r}, of which nothing is personal",
                    hint=f"Say what is: mask={{'{table}.email': 'personal'}}",
                )
        named = {*(columns or {}), *(rows or {}), *masks}
        if tables is not None and (unknown := sorted(named - set(tables))):
            raise UsageError(
                f"filters are given for {unknown[0]!r}, which is not captured", hint=f"tables= has {', '.join(tables)}"
            )
        self._tables = {
            name: TableFilter(
                name,
                (columns or {}).get(name),
                (rows or {}).get(name),
                masks.get(name, {}),
                key,
                Personal(name, masks[name], subjects[name]) if subjects and name in subjects else None,
            )
            for name in named
        }

    def __bool__(self) -> bool:
        return bool(self._tables)

    def of(self, table: str) -> TableFilter | None:
        """The filter of a table; None when it has none."""
        return self._tables.get(table)

    def check(self, source: Source) -> None:
        """See that there is what they are about, before anything comes in the clear that they were to keep out.

        Raises:
            CaptureError: There is no table, or no masked column, of a name that they have.
            UsageError: As `TableFilter.shape`.
        """
        with reader_of(source) as reader:
            for name, one in self._tables.items():
                shape = reader.shape(name)
                one.shape(shape)
                if unknown := one.unknown(shape):
                    warnings.warn(
                        f"columns= names {unknown[0]!r}, and table {name!r} has no such column. It has these:"
                        f" {', '.join(shape.names)}",
                        CaptureWarning,
                        stacklevel=2,
                    )

    def batch(self, batch: Batch, keys: Keys) -> Batch:
        """A batch with its pieces filtered, in place: what was put ahead is not filtered a second time.

        Args:
            keys: Where the keys of personal values are.
        """
        for piece in (*batch.ahead, *batch.pieces):
            found = self._tables.get(piece.table) if piece.stream is None and piece.ref is None else None
            if found is not None and piece.shape is not None and piece.count:
                found.piece(piece)
                found.seal(piece, keys)
        ahead = [piece for piece in batch.ahead if piece.count]
        pieces = [piece for piece in batch.pieces if piece.count]
        return Batch(pieces, batch.position, batch.state, ahead)


class TableFilter:
    """The filter of one table."""

    def __init__(
        self,
        table: str,
        columns: Sequence[str] | None,
        rows: RowFilter | None,
        masks: dict[str, Mask],
        key: bytes | None,
        personal: Personal | None = None,
    ) -> None:
        self.table = table
        self._columns = None if columns is None else frozenset(columns)
        self._rows = rows
        self.personal = personal
        self._masks = {name: how for name, how in masks.items() if how not in ("drop", "personal")}
        self._dropped = frozenset(name for name, how in masks.items() if how == "drop")
        self._key = key
        self._shapes: dict[Shape, Shape] = {}

    def shape(self, shape: Shape) -> Shape:
        """A table's shape as the log has it.

        Raises:
            CaptureError: A masked column is not there: it may have another name now, and would be in the clear.
            UsageError: A column of the key is left out.
        """
        found = self._shapes.get(shape)
        if found is None:
            personal = self.personal.columns if self.personal is not None else ()
            if missing := sorted({*self._masks, *self._dropped, *personal} - set(shape.names)):
                raise CaptureError(
                    f"table {self.table!r} has no column {missing[0]!r}, which is to be masked",
                    hint="Give its present name in mask=: under another one its values would come as they are",
                )
            if gone := [name for name in shape.key if not self._keeps(name)]:
                raise UsageError(
                    f"column {gone[0]!r} of {self.table!r} is of the key, and cannot be left out",
                    hint="Mask it by 'hash': rows stay apart, and nobody can read it",
                )
            found = Shape(tuple(self._column(c) for c in shape.columns if self._keeps(c.name)), shape.key, personal)
            if self.personal is not None:
                self.personal.check(found, self._masks)
            self._shapes[shape] = found
        return found

    def unknown(self, shape: Shape) -> list[str]:
        """The columns that are wanted, and that the table has not."""
        return sorted((self._columns or frozenset()) - set(shape.names))

    def row(self, row: Row, shape: Shape) -> Row:
        """A row, in JSON, as the log has it."""
        kinds = {column.name: column.kind for column in shape.columns}
        return {
            name: self._masked(name, value, kinds.get(name, "any")) if name in self._masks else value
            for name, value in row.items()
            if self._keeps(name)
        }

    def wants(self, row: Row | None, shape: Shape) -> bool | None:
        """Whether a row is among those that are wanted; None when the source does not tell all of it."""
        if self._rows is None:
            return True
        if row is None or len(row) < len(shape.columns):
            return None
        decoded = decode_row(row, shape)
        try:
            return bool(self._rows(decoded))
        except Exception as error:
            if Unchanged in decoded.values():
                return None  # it asks for a value that the update did not tell
            raise CaptureError(
                f"the row filter of {self.table!r} fails ({type(error).__name__}: {error})",
                hint="Make it take every row, NULLs too",
            ) from error

    def piece(self, piece: Piece) -> None:
        """Filter the events of a piece, in place."""
        shape = piece.shape
        assert shape is not None
        lines = piece.body.split(b"\n")
        made = [self._line(line, shape) if piece.type == "Change" else self._told(line, shape) for line in lines]
        kept = [index for index, line in enumerate(made) if line is not None]
        piece.body = b"\n".join(line for line in made if line is not None)
        piece.shape = self.shape(shape)
        if len(kept) < piece.count:
            piece.metadata = _renumbered(piece.metadata, kept, piece.count)
            piece.count = len(kept)

    def seal(self, piece: Piece, keys: Keys) -> None:
        """Seal the personal values in a piece that is otherwise as the log has it."""
        if self.personal is not None and piece.type == "Change" and piece.count:
            piece.body = self.personal.sealed(piece.body, keys)

    def _line(self, line: bytes, shape: Shape) -> bytes | None:
        change = _rows.decode(line)
        before, after = change["before"], change["after"]
        if self._rows is not None and (before is not None or after is not None):
            operation = self._operation(change["operation"], before, after, shape)
            if operation is None:
                return None
            if operation != change["operation"]:
                change["operation"] = operation
                if operation == "INSERT":
                    before = None
                elif operation == "DELETE":
                    # Without a row before, the key is what the row after says.
                    before, after = before or {name: after[name] for name in shape.key}, None
        change["before"] = before and self.row(before, shape)
        change["after"] = after and self.row(after, shape)
        return _encode(change)

    def _operation(self, operation: str, before: Row | None, after: Row | None, shape: Shape) -> str | None:
        """What a change is to somebody who sees only the wanted rows; None: nothing."""
        if operation in ("INSERT", "READ"):
            return operation if self.wants(after, shape) else None
        was = self.wants(before, shape)
        if operation == "DELETE":
            return None if was is False else operation
        now = self.wants(after, shape)
        # Where the source does not tell the row before, it may have been wanted: a DELETE too many is harmless.
        if now is False:
            return None if was is False else "DELETE"
        return "INSERT" if was is False else operation

    def _told(self, line: bytes, shape: Shape) -> bytes:
        """An event about the columns of the table."""
        event = _rows.decode(line)
        if "columns" in event:
            event["columns"] = [name for name in event["columns"] if self._keeps(name)]
        if "added" in event:
            event["added"] = self.row(event["added"], shape)
        if "dropped" in event:
            event["dropped"] = [name for name in event["dropped"] if self._keeps(name)]
        if "renamed" in event:
            event["renamed"] = {old: new for old, new in event["renamed"].items() if self._keeps(new)}
        if "retyped" in event:
            event["retyped"] = {name: type for name, type in event["retyped"].items() if self._keeps(name)}
        return _encode(event)

    def _keeps(self, name: str) -> bool:
        return name not in self._dropped and (self._columns is None or name in self._columns)

    def _column(self, column: Column) -> Column:
        how = self._masks.get(column.name)
        if how is None:
            return column
        return Column(column.name, "any" if callable(how) else "text", f"masked {column.type}".strip())

    def _masked(self, name: str, value: Any, kind: str) -> Any:
        if value is None or value == UNCHANGED:
            return value
        how = self._masks[name]
        if how == "redact":
            return REDACTED
        if how == "hash":
            assert self._key is not None
            return hmac.new(self._key, _encode(value), hashlib.sha256).hexdigest()
        assert callable(how)
        decoded = decode_row({name: value}, Shape((Column(name, kind),)))[name]
        try:
            made = how(decoded)
        except Exception as error:
            # The value itself stays out of the message.
            raise CaptureError(
                f"the mask of {self.table}.{name} fails ({type(error).__name__})",
                hint="Make it take every value of the column",
            ) from None
        if not isinstance(made, str | int | float | bytes | None):
            raise CaptureError(
                f"the mask of {self.table}.{name} gives a {type(made).__name__}",
                hint="Let it return text, a number, bytes or None",
            )
        return encode_any(made)


def _renumbered(metadata: bytes | None, kept: Iterable[int], count: int) -> bytes | None:
    """The metadata of a run of which some events are left."""
    if not metadata:
        return metadata
    about = _decode(metadata)
    wanted = list(kept)
    for name in _RANGES:
        ranges = about.get(name)
        if not isinstance(ranges, list) or not all(isinstance(each, list) and len(each) == 2 for each in ranges):
            continue
        numbers = [number for first, last in ranges for number in range(first, last + 1)]
        if len(numbers) != count:
            continue
        left: list[list[int]] = []
        for index in wanted:
            if left and left[-1][1] == numbers[index] - 1:
                left[-1][1] = numbers[index]
            else:
                left.append([numbers[index], numbers[index]])
        about[name] = left
    return _encode(about)
