"""What a captured table looked like when its changes were written: columns, their kinds, and the key.

The shape stands in the schema of each run of changes (``1 shape {…}``), so that every run can be read for itself,
by the shape that its rows had, wherever the log is copied to.
"""

from __future__ import annotations

from functools import cache

import msgspec

from ..conversion import ready

_MARK = "1 shape "


class Column(msgspec.Struct, frozen=True, array_like=True):
    """A column of a captured table.

    Attributes:
        name: Its name.
        kind: How its values are written and read back, one of those that `millstream.cdc.values` lists.
        type: Its type as the source names it, such as ``numeric(10,2)``.
    """

    name: str
    kind: str = "any"
    type: str = ""


class Shape(msgspec.Struct, frozen=True):
    """A table's columns as its rows have them.

    Attributes:
        columns: All of them.
        key: Those whose values tell a row from all others; none for a keyless table.
        personal: Those whose values are sealed in the log.
    """

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @property
    def text(self) -> str:
        """The schema of a run of changes of this shape."""
        return _text(self)


@cache
def _text(shape: Shape) -> str:
    said = {"columns": shape.columns, "key": shape.key}
    if shape.personal:
        said["personal"] = shape.personal  # as `millstream.events.sealed_in_rows` reads it
    return _MARK + msgspec.json.encode(said).decode()


@cache
def shape_of(schema: str) -> Shape | None:
    """The shape that a run's schema carries; None when it carries none."""
    if not schema.startswith(_MARK):
        return None
    return msgspec.json.decode(schema[len(_MARK) :], type=ready(Shape))
