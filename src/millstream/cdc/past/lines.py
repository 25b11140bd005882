"""From the JSON lines of changes to columns, many at a time.

A column is held as its values stand in the log, typed where JSON is: whole numbers, reals and booleans as such, all
else as text (*plain*). Columns that hold mixed values or lists are held as the JSON of each value (*JSON*), and so is
any other column from the first value on that its kind does not allow. So nothing is lost, two values are equal only
if the log has them alike, and a column becomes decimals, times or bytes only in the end: see `typed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import polars as pl

from ...conversion import ready
from ..shape import Shape


class Held(msgspec.Struct, frozen=True):
    """How a column is held.

    Attributes:
        kind: Its kind, as in `Column`.
        json: Whether each of its values is held as its JSON.
        type: Its type in the source.
    """

    kind: str
    json: bool = False
    type: str = ""

    @property
    def dtype(self) -> Any:
        """The type of a frame's column that holds it."""
        return pl.String() if self.json else _PLAIN.get(self.kind, pl.String())


class Left(msgspec.Struct, gc=False, rename={"unchanged": "$unchanged"}):
    """Stands for a value that an update did not tell, since it left it as it was."""

    unchanged: bool


LEFT = Left(True)
_LEFT_JSON = b'{"$unchanged"'
NULL = b"null"

_PLAIN: dict[str, Any] = {
    "bool": pl.Boolean(),
    "int": pl.Int64(),
    "uint": pl.UInt64(),
    "float": pl.Float64(),
}
_VALUES: dict[str, Any] = {
    "bool": bool | None | Left,
    "int": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None | Left,
    "uint": Annotated[int, msgspec.Meta(ge=0)] | None | Left,
    "float": float | str | None | Left,
}
_TEXT: Any = str | None | Left


def held_of(kind: str, type: str = "") -> Held:
    """How a column of a kind is held, as long as its values are what the kind says."""
    return Held(kind, kind == "any" or kind.endswith("[]"), type)


class Layout(msgspec.Struct, frozen=True):
    """How the rows of some lines are decoded.

    Attributes:
        names: The columns.
        held: How each of them is held.
        before: The columns of the row before that are wanted: the key mostly.
    """

    names: tuple[str, ...]
    held: tuple[Held, ...]
    before: tuple[str, ...]

    @property
    def loose(self) -> Layout:
        """The same with every column as JSON."""
        return msgspec.structs.replace(self, held=tuple(msgspec.structs.replace(h, json=True) for h in self.held))


def layout_of(shape: Shape, *, whole: bool = False) -> Layout:
    """How the rows of a shape are decoded.

    Args:
        whole: The whole row before is wanted, not only its key.
    """
    return Layout(
        shape.names,
        tuple(held_of(column.kind, column.type) for column in shape.columns),
        shape.names if whole else shape.key,
    )


class Lines(msgspec.Struct):
    """Changes, decoded.

    Attributes:
        layout: What they were decoded by.
        events: Each has ``operation``, and in ``before`` and ``after`` rows with the attributes ``c0``, ``c1``….
    """

    layout: Layout
    events: list[Any]
    some_left: bool = False
    """Whether some values may be `Left`."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.layout.names

    def held(self, name: str) -> Held:
        """How a column is held."""
        return self.layout.held[self.layout.names.index(name)]

    def values(self, rows: Sequence[Any], name: str) -> list[Any]:
        """The values of a column in some rows: NULL is None; `Left` where it was left as it was."""
        index = self.layout.names.index(name)
        get = attrgetter(f"c{index}")
        held = self.layout.held[index]
        if held.json:
            return [_json(get(row)) for row in rows]
        found = list(map(get, rows))
        if held.kind == "float" and any(value.__class__ is str for value in found):
            return [float(value) if value.__class__ is str else value for value in found]
        return found


def _json(raw: msgspec.Raw) -> Any:
    value = bytes(raw)
    if value == NULL or not value:
        return None
    return LEFT if value.startswith(_LEFT_JSON) else value.decode()


def decode_lines(text: bytes, layout: Layout) -> Lines:
    """Decode the lines of changes; as JSON, column by column, what is not as its kind says.

    Raises:
        msgspec.DecodeError: They are no changes.
    """
    some_left = _LEFT_JSON in text
    try:
        return Lines(layout, _decoder(layout).decode_lines(text), some_left)
    except msgspec.ValidationError:
        loose = layout.loose
        events = _decoder(loose).decode_lines(text)
    # Only columns at fault stay JSON, so that what was held of the others need not be made anew.
    rows = [row for event in events for row in (event.before, event.after) if row is not None]
    held = tuple(
        (_fits(rows, f"c{index}", wanted) and wanted) or loose.held[index] for index, wanted in enumerate(layout.held)
    )
    if held == loose.held:
        return Lines(loose, events, some_left)
    layout = msgspec.structs.replace(layout, held=held)
    return Lines(layout, _decoder(layout).decode_lines(text), some_left)


def _fits(rows: list[Any], attribute: str, held: Held) -> bool:
    if held.json:
        return True
    decoder = msgspec.json.Decoder(ready(_VALUES.get(held.kind, _TEXT)))
    try:
        for row in rows:
            raw = getattr(row, attribute, None)
            if raw is not None and bytes(raw):
                decoder.decode(raw)
    except msgspec.DecodeError:
        return False
    return True


@cache
def _decoder(layout: Layout) -> msgspec.json.Decoder[Any] | _Escaped:
    fields: list[tuple[str, Any, Any]] = []
    before: list[tuple[str, Any, Any]] = []
    names: dict[str, str] = {}
    for index, (name, held) in enumerate(zip(layout.names, layout.held, strict=True)):
        attribute = f"c{index}"
        names[attribute] = name
        wanted = msgspec.Raw if held.json else _VALUES.get(held.kind, _TEXT)
        field = (attribute, wanted, msgspec.Raw(NULL) if held.json else None)
        fields.append(field)
        if name in layout.before:
            before.append(field)
    if any(ord(c) < 32 or c in '"\\' for c in "".join(layout.names)):
        return _Escaped(layout, fields, before)
    after_type = msgspec.defstruct("After", fields, rename=names, gc=False)
    before_type = msgspec.defstruct("Before", before, rename=names, gc=False)
    event = msgspec.defstruct(
        "Line",
        [("operation", str), ("before", before_type | None), ("after", after_type | None)],
        gc=False,
    )
    return msgspec.json.Decoder(event)


class _Line(msgspec.Struct, gc=False):
    operation: str
    before: Any
    after: Any


class _Escaped:
    """Decodes lines of a table with a column whose name JSON has to escape, such as ``a"b``: no struct's field may."""

    def __init__(self, layout: Layout, after: list[tuple[str, Any, Any]], before: list[tuple[str, Any, Any]]) -> None:
        self._names = {f"c{index}": name for index, name in enumerate(layout.names)}
        self._after = msgspec.defstruct("After", after, gc=False)
        self._before = msgspec.defstruct("Before", before, gc=False)
        self._decoders = {name: msgspec.json.Decoder(kind) for name, kind, _ in after if kind is not msgspec.Raw}

    def decode_lines(self, text: bytes) -> list[_Line]:
        """The changes, as any other decoder's."""
        lines: list[_Line] = msgspec.json.Decoder(_RawLine).decode_lines(text)  # type: ignore[assignment]
        for line in lines:
            line.before = self._row(self._before, line.before)
            line.after = self._row(self._after, line.after)
        return lines

    def _row(self, made: Any, row: dict[str, msgspec.Raw] | None) -> Any:
        if row is None:
            return None
        decoders = self._decoders
        return made(
            **{
                field: decoders[field].decode(raw) if field in decoders else raw
                for field in made.__struct_fields__
                if (raw := row.get(self._names[field])) is not None
            }
        )


class _RawLine(_Line, gc=False):
    before: dict[str, msgspec.Raw] | None
    after: dict[str, msgspec.Raw] | None
