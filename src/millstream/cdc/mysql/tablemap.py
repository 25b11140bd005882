"""TABLE_MAP: what the binary log says of a table before its rows, compared with what its layout says."""

from __future__ import annotations

import msgspec

from .layout import Layout, LayoutColumn
from .wire import length

ENUM, SET, STRING, VAR_STRING = 247, 248, 254, 253

_META_BYTES = {
    4: 1, 5: 1, 15: 2, 16: 2, 17: 1, 18: 1, 19: 1, 242: 1, 245: 1, 246: 2, 247: 2, 248: 2, 249: 1, 250: 1, 251: 1,
    252: 1, 253: 2, 254: 2, 255: 1, 140: 1, 141: 2,
}  # fmt: skip
"""How many bytes say more of a column, by the code of its type."""

_NUMBERS = {1, 2, 3, 4, 5, 8, 9, 246, 13}
"""Types of which the log tells whether they are unsigned. (YEAR counts among them.)"""

_CODES = {
    "tinyint": (1,), "smallint": (2,), "mediumint": (9,), "int": (3,), "bigint": (8,), "float": (4,), "double": (5,),
    "decimal": (246,), "date": (10, 14), "time": (19, 11), "datetime": (18, 12), "timestamp": (17, 7), "year": (13,),
    "char": (254, 253), "binary": (254, 253), "varchar": (15, 141), "varbinary": (15, 141), "enum": (247,),
    "set": (248,), "bit": (16,), "json": (245,), "uuid": (254,), "inet6": (254,), "inet4": (254,), "vector": (242, 15),
}  # fmt: skip
_BLOBS = {"tiny": 1, "": 2, "medium": 3, "long": 4}
_CODES |= {f"{size}{what}": (252, 140) for size in _BLOBS for what in ("text", "blob")}
_BLOB_SIZES = {f"{size}{what}": n for size, n in _BLOBS.items() for what in ("text", "blob")}


class Misfit(Exception):
    """A table in the binary log is not what its layout says."""


class ColumnCode(msgspec.Struct, frozen=True):
    """A column as the binary log tells it.

    Attributes:
        type: The code of its type, in which enums and sets are told from strings.
        meta: What the type needs besides: a length, or precision and scale.
    """

    type: int
    meta: int
    nullable: bool

    @property
    def prefix(self) -> int:
        """Of values whose length stands before them: how many bytes it takes."""
        if self.type in (252, 255, 245, 140, 242, 249, 250, 251):
            return self.meta
        return 1 if self.meta < 256 else 2


class TableMap(msgspec.Struct, frozen=True):
    """A table as the binary log tells it.

    Attributes:
        names: Of the columns; None unless the server is set to tell them.
        unsigned: Those whose numbers are unsigned; None if it does not tell.
    """

    schema: str
    name: str
    columns: tuple[ColumnCode, ...]
    names: tuple[str, ...] | None = None
    unsigned: frozenset[int] | None = None

    def misfit(self, layout: Layout) -> str:
        """What keeps rows from being decoded by a layout; empty when nothing does."""
        if len(layout.columns) != len(self.columns):
            return f"it has {len(self.columns)} columns, not {len(layout.columns)}"
        if self.names is not None and self.names != tuple(column.name for column in layout.columns):
            return "its columns have other names"
        for i, (column, code) in enumerate(zip(layout.columns, self.columns, strict=True)):
            if not _fits(column, code) or (
                self.unsigned is not None and code.type in _NUMBERS - {13} and (i in self.unsigned) != column.unsigned
            ):
                return f"column {column.name!r} is not {column.type}"
        return ""

    def check(self, layout: Layout) -> None:
        """See that a layout is that of the rows.

        Raises:
            Misfit: It is not.
        """
        if found := self.misfit(layout):
            raise Misfit(found)


def _fits(column: LayoutColumn, code: ColumnCode) -> bool:
    base = column.base
    codes = _CODES.get(base)
    if codes is None:
        return code.type == 255 and column.kind == "bytes"
    if code.type not in codes or code.nullable != column.nullable:
        return False
    if base == "decimal":
        precision, _, scale = column.args.partition(",")
        return code.meta == (int(precision or 10) | int(scale or 0) << 8)
    if base in ("time", "datetime", "timestamp"):
        digits = int(column.args or 0)
        return code.meta == digits if code.type in (17, 18, 19) else digits == 0
    if base in _BLOB_SIZES:
        return code.meta == _BLOB_SIZES[base]
    if base == "enum":
        return code.meta == (1 if len(column.values) < 256 else 2)
    if base == "binary":
        return code.meta == int(column.args or 1)
    if base == "bit":
        bits = int(column.args or 1)
        return code.meta == (bits % 8 | bits // 8 << 8)
    return True


def schema_and_name(b: bytes, p: int) -> tuple[str, str]:
    """Which table an event's body, from after the table's number and flags on, tells of."""
    schema = b[p + 1 : p + 1 + b[p]]
    p += 2 + b[p]
    return schema.decode(), b[p + 1 : p + 1 + b[p]].decode()


def parse_table_map(b: bytes) -> TableMap:
    """The table that an event's body tells of."""
    p = 8
    schema, name = schema_and_name(b, p)
    p += 2 + b[p]
    p += 2 + b[p]
    width, p = length(b, p)
    types = b[p : p + width]
    p += width
    size, p = length(b, p)
    metas = b[p : p + size]
    p += size
    nulls = int.from_bytes(b[p : p + (width + 7) // 8], "little")
    p += (width + 7) // 8
    columns, at = [], 0
    for i, type in enumerate(types):
        count = _META_BYTES.get(type, 0)
        raw = metas[at : at + count]
        at += count
        columns.append(_code(type, raw, bool(nulls >> i & 1)))
    names, unsigned = _optional(b, p, columns)
    return TableMap(schema, name, tuple(columns), names, unsigned)


def _code(type: int, raw: bytes, nullable: bool) -> ColumnCode:
    meta = int.from_bytes(raw, "little")
    if type in (STRING, ENUM, SET) and len(raw) == 2:
        real, low = raw
        if type == STRING and real & 0x30 != 0x30:
            # A long CHAR has the two highest bits of its length where the type would have zeros.
            return ColumnCode(STRING, low | ((real & 0x30) ^ 0x30) << 4, nullable)
        return ColumnCode(real if type == STRING else type, low, nullable)
    return ColumnCode(type, meta, nullable)


def _optional(b: bytes, p: int, columns: list[ColumnCode]) -> tuple[tuple[str, ...] | None, frozenset[int] | None]:
    names: tuple[str, ...] | None = None
    unsigned: frozenset[int] | None = None
    while p < len(b):
        kind = b[p]
        size, p = length(b, p + 1)
        end = p + size
        if kind == 1:
            numbers = [i for i, code in enumerate(columns) if code.type in _NUMBERS]
            unsigned = frozenset(i for n, i in enumerate(numbers) if b[p + n // 8] >> (7 - n % 8) & 1)
        elif kind == 4:
            found = []
            while p < end:
                count, p = length(b, p)
                found.append(b[p : p + count].decode())
                p += count
            names = tuple(found)
        p = end
    return names, unsigned
