"""A captured table as it stood at a moment, from its changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from ..errors import InvalidPosition, NotCapturedYet, StreamNotFound, UsageError
from ..time import Moment, from_micros, iso, to_micros
from .capture import stream_of
from .change import Change, Row, SchemaChanged, SnapshotCompleted
from .shape import Shape, shape_of
from .values import Undecodable, decode_row
from .worker import captured_streams

if TYPE_CHECKING:
    from ..log import Log, Run

_TYPES = (Change, SchemaChanged, SnapshotCompleted)


def table(
    log: Log, name: str, *, at: Moment | None = None, position: int | None = None, prefix: str = ""
) -> pl.DataFrame:
    """A captured table as it stood at a moment of the source, or at a position of the log.

    A moment is the time of changes at the source: all changes up to the last one, in the log's order, that is not
    after it. Columns have the type that their values have: whole numbers, reals, text or bytes. A column that
    mixes them is text. Rows come in no particular order.

    Args:
        name: The table's name, as its capture gives it.
        at: The moment, inclusive; by default the present.
        position: Instead of a moment: up to and with this position of the log.
        prefix: As in `capture`.

    Raises:
        StreamNotFound: There is no stream of this table.
        InvalidPosition: The position is not one of a log.
        NotCapturedYet: The table's snapshot was not complete then.
        Trimmed: Changes that make up the table were trimmed.
    """
    if at is not None and position is not None:
        raise UsageError("both at= and position= are given", hint="Give one of them")
    if position is not None and (not isinstance(position, int) or position < 0):
        raise InvalidPosition(f"position={position!r} is not a position", hint="Give a whole number from 0 on")
    stream = prefix + stream_of(name)
    if not log.version(stream):
        raise _not_found(log, stream)
    until = log.head if position is None else position
    if at is not None:
        until = _last_not_after(log, stream, to_micros(at), until)
    image = _Image()
    # A table without the changes that were trimmed would be a wrong one.
    for run in log.runs(stream, types=_TYPES, until_position=until + 1, trimmed="raise"):
        image.add(run)
    if not image.complete:
        when = f"at {iso(to_micros(at))}" if at is not None else f"at position {until}"
        raise NotCapturedYet(
            f"table {name!r} was not captured completely {when}",
            hint="Ask for a later moment; a table can be seen from the end of its snapshot on",
        )
    return image.frame()


def _not_found(log: Log, stream: str) -> StreamNotFound:
    error = StreamNotFound(stream)
    captured = ", ".join(map(repr, captured_streams(log)))
    error.hint = f"Captured tables are in the streams {captured}" if captured else "No table was captured into this log"
    return error


def _last_not_after(log: Log, stream: str, micros: int, until: int) -> int:
    """The position of the last change whose time is not after the moment; 0 when there is none."""
    moment, last = from_micros(micros), 0
    for run in log.runs(stream, types=_TYPES, until_position=until + 1):
        for index, event in enumerate(run.events()):
            if event.timestamp <= moment:
                last = run.position + index
    return last


class _Image:
    """The rows of a table while its changes are applied."""

    def __init__(self) -> None:
        self.rows: dict[Any, list[Row]] = {}
        self.columns: list[str] = []
        self.complete = False

    def add(self, run: Run) -> None:
        shape = shape_of(run.schema)
        key = list(shape.key) if shape else []
        for event in run.events():
            if isinstance(event, Change):
                self._change(event, key, shape)
            elif isinstance(event, SchemaChanged):
                self.columns = event.columns
                added = decode_row(event.added, shape)
                for same in self.rows.values():
                    same[:] = [{**added, **row} for row in same]
                self.rows = {_address(same[0], key): same for same in self.rows.values()}
            else:
                self.complete, self.columns = True, event.columns

    def _change(self, change: Change, key: list[str], shape: Shape | None) -> None:
        if change.operation == "TRUNCATE":
            self.rows.clear()
            self.complete = False
            return
        if change.before is not None:
            before = decode_row(change.before, shape)
            address = _address(before, key)
            same = self.rows.get(address)
            if same is not None:
                same.pop()
                if not same:
                    del self.rows[address]
        if change.after is not None:
            after = decode_row(change.after, shape)
            address = _address(after, key)
            if _keyed(after, key):
                self.rows[address] = [after]
            else:
                self.rows.setdefault(address, []).append(after)

    def frame(self) -> pl.DataFrame:
        rows = [row for same in self.rows.values() for row in same]
        return pl.DataFrame([_series(name, [row.get(name) for row in rows]) for name in self.columns])


def _keyed(row: Row, key: list[str]) -> bool:
    """Whether the key tells the row from others: SQLite lets many rows have NULL in one."""
    return bool(key) and all(row[name] is not None for name in key)


def _address(row: Row, key: list[str]) -> Any:
    """What tells a row from others: its key, or all of it when it has none."""
    keyed = _keyed(row, key)
    names: Iterable[str] = key if keyed else sorted(row)
    # Text that is no UTF-8 equals a blob of the same bytes in Python, but not in the source.
    return keyed, *[("text", row[n]) if type(row[n]) is Undecodable else row[n] for n in names]


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int}:
        dtype: Any = pl.Int64 if kinds else pl.Null
    elif kinds <= {int, float}:
        dtype, values = pl.Float64, [None if v is None else float(v) for v in values]
    elif kinds <= {bytes}:
        dtype = pl.Binary
    else:
        dtype, values = pl.String, [_text(value) for value in values]
    return pl.Series(name, values, dtype=dtype)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
