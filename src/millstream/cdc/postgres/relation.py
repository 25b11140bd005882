"""A table as the stream describes it, and functions made for it that turn its messages into JSON.

For each relation the source of three functions is written and compiled: they know how many columns there are and
how each value becomes JSON, and fill a row's values into a ready text in one step. That is several times as fast
as going from column to column with a decision at each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from ..shape import Column, Shape
from .types import Type, converter, form_of, quoted

DecodeRow = Callable[[bytes, int, bytes], bytes]
"""From a message, the place in it where the row begins and the time as text: the change as a line of JSON."""

_NEW, _OLD, _KEY = b"NOK"
_SPECIAL = re.compile(rb'[\x00-\x1f"\\]').search
_length = Struct(">I").unpack_from


class RelationColumn(NamedTuple):
    """A column as the stream tells it."""

    name: str
    type: Type
    type_name: str
    """With its length or precision, such as ``numeric(10,2)``."""
    in_identity: bool


class Relation(msgspec.Struct):
    """A table of the source as of now, with what decodes its rows.

    Attributes:
        table: Its name as the capture gives it.
        identity: Its REPLICA IDENTITY: ``d``, ``f``, ``n`` or ``i``.
        insert: Decodes an INSERT from where the columns begin; ``update`` and ``delete``, from the mark before.
    """

    id: int
    schema: str
    name: str
    table: str
    identity: str
    columns: tuple[RelationColumn, ...]
    shape: Shape
    insert: DecodeRow
    update: DecodeRow
    delete: DecodeRow
    condition: str | None = None
    """What the publication demands of rows that it tells, in SQL."""


def make_relation(
    id: int,
    schema: str,
    name: str,
    table: str,
    identity: str,
    columns: tuple[RelationColumn, ...],
    key: tuple[str, ...],
) -> Relation:
    """A relation with its decoders.

    Args:
        key: The columns whose values tell a row from all others.
    """
    shape = Shape(tuple(Column(c.name, c.type.kind, c.type_name) for c in columns), key)
    insert, update, delete = _compiled(table, columns)
    return Relation(id, schema, name, table, identity, columns, shape, insert, update, delete)


class _Texts(dict[Any, bytes]):
    """Ready texts, by what is NULL or unchanged in a row: each is made when it is first needed."""

    def __init__(self, make: Callable[[Any], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, mask: Any) -> bytes:
        found = self[mask] = self._make(mask)
        return found


class _Known(dict[bytes, bytes]):
    """What short values are in JSON: mostly rows of one transaction, or before and after, have the same."""

    def __init__(self, make: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, raw: bytes) -> bytes:
        if len(self) >= 1_000:
            self.clear()
        found = self[raw] = self._make(raw)
        return found


_REPEATING = frozenset(("bool", "float", "timestamp", "timestamptz"))


class _Writer:
    """Writes the source of a relation's functions."""

    def __init__(self, table: str, columns: tuple[RelationColumn, ...]) -> None:
        self.columns = columns
        self.table = quoted(table.encode()).replace(b"%", b"%%")
        self.names: dict[str, Any] = {"I": _length, "S": _SPECIAL, "E": _escaped}
        self.width = len(columns)

    def row(self, mask: int, chosen: list[int]) -> bytes:
        """The text of a row, with a place for each value (an empty one for NULL)."""
        parts = []
        for i in chosen:
            column = self.columns[i]
            if mask >> i & 1:
                place = b"null%b"
            elif mask >> (i + self.width) & 1:
                place = b'{"$unchanged":true}%b'
            else:
                place = b'"%b"' if form_of(column.type.kind) in ("quoted", "text") else b"%b"
            parts.append(quoted(column.name.encode()).replace(b"%", b"%%") + b":" + place)
        return b"{" + b",".join(parts) + b"}"

    def change(self, operation: bytes, before: bytes, after: bytes) -> bytes:
        return b'{"operation":"%b","table":%b,"before":%b,"after":%b,"timestamp":"%%b"}' % (
            operation, self.table, before, after,
        )  # fmt: skip

    def tuple(self, v: str, m: str, u: str, indent: str) -> list[str]:
        """Reads a row's values into ``v0, v1, …``, with bits in ``m`` for NULL and unchanged ones."""
        lines = ["p += 2", f"{m} = 0"]
        checked = []
        for i, column in enumerate(self.columns):
            form = form_of(column.type.kind)
            lines += ["k = b[p]", "if k == 116:", f"    q = p + 5; p = q + I(b, p + 1)[0]; {v}{i} = b[q:p]"]
            if form == "call":
                made = converter(column.type.kind)
                short = column.type.kind in _REPEATING
                self.names[f"f{i}"] = _Known(made).__getitem__ if short else made
                lines[-1] = f"    q = p + 5; p = q + I(b, p + 1)[0]; {v}{i} = f{i}(b[q:p])"
            elif form == "text":
                checked.append(f"{v}{i}")
            lines.append(f"else: p += 1; {v}{i} = b''; {m} |= {1 << i} if k == 110 else {1 << (i + self.width)}")
        if checked:
            lines.append(f"if S({' + '.join(checked)}):")
            lines += [f"    if S({value}): {value} = E({value})" for value in checked]
        return [indent + line for line in lines]

    def values(self, v: str, chosen: list[int]) -> str:
        return "".join(f"{v}{i}, " for i in chosen)

    def source(self) -> str:
        every = list(range(self.width))
        keys = [i for i, column in enumerate(self.columns) if column.in_identity]
        self.names["TI"] = _Texts(lambda m: self.change(b"INSERT", b"null", self.row(m, every)))
        self.names["TN"] = _Texts(lambda m: self.change(b"UPDATE", b"null", self.row(m, every)))
        self.names["TU"] = _Texts(lambda m: self.change(b"UPDATE", self.row(m[0], every), self.row(m[1], every)))
        self.names["TK"] = _Texts(lambda m: self.change(b"UPDATE", self.row(m[0], keys), self.row(m[1], every)))
        self.names["TD"] = _Texts(lambda m: self.change(b"DELETE", self.row(m, every), b"null"))
        self.names["TE"] = _Texts(lambda m: self.change(b"DELETE", self.row(m, keys), b"null"))
        filled = [
            f"        if m & {1 << (i + self.width)}: v{i} = o{i}; m ^= {1 << (i + self.width)}; m |= n & {1 << i}"
            for i in every
        ]
        unchanged = sum(1 << (i + self.width) for i in every)
        return "\n".join(
            [
                "def insert(b, p, ts):",
                *self.tuple("v", "m", "", "    "),
                f"    return TI[m] % ({self.values('v', every)}ts)",
                "def update(b, p, ts):",
                "    mark = b[p]; p += 1",
                f"    if mark == {_NEW}:",
                *self.tuple("v", "m", "", "        "),
                f"        return TN[m] % ({self.values('v', every)}ts)",
                *self.tuple("o", "n", "", "    "),
                "    p += 1",
                *self.tuple("v", "m", "", "    "),
                f"    if mark == {_OLD}:",
                *([f"      if m & {unchanged}:", *filled] if filled else []),
                f"      return TU[n, m] % ({self.values('o', every)}{self.values('v', every)}ts)",
                f"    return TK[n, m] % ({self.values('o', keys)}{self.values('v', every)}ts)",
                "def delete(b, p, ts):",
                "    mark = b[p]; p += 1",
                *self.tuple("o", "n", "", "    "),
                f"    if mark == {_OLD}:",
                f"        return TD[n] % ({self.values('o', every)}ts)",
                f"    return TE[n] % ({self.values('o', keys)}ts)",
            ]
        )


def _escaped(raw: bytes) -> bytes:
    """Text as it stands within a JSON string."""
    return quoted(raw)[1:-1]


def _compiled(table: str, columns: tuple[RelationColumn, ...]) -> tuple[DecodeRow, DecodeRow, DecodeRow]:
    writer = _Writer(table, columns)
    code = compile(writer.source(), f"<decoders of {table}>", "exec")
    exec(code, writer.names)
    return writer.names["insert"], writer.names["update"], writer.names["delete"]
