"""What a table's columns are, as the server's catalogue says it: enough to decode its rows, now or after a restart."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from ...errors import CaptureError
from ..shape import Column, Shape

_KINDS = {
    "tinyint": "int",
    "smallint": "int",
    "mediumint": "int",
    "int": "int",
    "bigint": "int",
    "bit": "int",
    "year": "int",
    "decimal": "decimal",
    "float": "float",
    "double": "float",
    "date": "date",
    "time": "duration",
    "datetime": "timestamp",
    "timestamp": "timestamptz",
    "char": "text",
    "varchar": "text",
    "tinytext": "text",
    "text": "text",
    "mediumtext": "text",
    "longtext": "text",
    "enum": "text",
    "set": "text[]",
    "json": "json",
    "binary": "bytes",
    "varbinary": "bytes",
    "tinyblob": "bytes",
    "blob": "bytes",
    "mediumblob": "bytes",
    "longblob": "bytes",
    "geometry": "bytes",
    "point": "bytes",
    "linestring": "bytes",
    "polygon": "bytes",
    "multipoint": "bytes",
    "multilinestring": "bytes",
    "multipolygon": "bytes",
    "geometrycollection": "bytes",
    "geomcollection": "bytes",
    "vector": "bytes",
    "uuid": "uuid",
    "inet6": "text",
    "inet4": "text",
}
INTEGERS = {"tinyint": 1, "smallint": 2, "mediumint": 3, "int": 4, "bigint": 8}
"""Types of whole numbers, with their sizes."""

_TYPE = re.compile(r"\s*([a-z0-9_]+)\s*(?:\(((?:[^()']|'(?:[^']|'')*')*)\))?", re.IGNORECASE)
_VALUE = re.compile(r"'((?:[^'\\]|''|\\.)*)'", re.DOTALL)


class LayoutColumn(msgspec.Struct, frozen=True, array_like=True):
    """A column.

    Attributes:
        type: As the catalogue writes it, such as ``int(10) unsigned``.
        charset: Of text; None for other columns.
        default: What a column without a value gets, as the catalogue writes it; None for none.
        extra: ``auto_increment``, ``VIRTUAL GENERATED`` and the like.
    """

    name: str
    type: str
    charset: str | None = None
    nullable: bool = True
    default: str | None = None
    extra: str = ""

    @property
    def base(self) -> str:
        """The type's name alone."""
        return base_of(self.type)

    @property
    def args(self) -> str:
        """What stands in parentheses after the name."""
        found = _TYPE.match(self.type)
        return (found[2] or "") if found else ""

    @property
    def unsigned(self) -> bool:
        """Whether it holds no numbers below zero."""
        rest = self.type[len(self.base) :].lower()
        return "unsigned" in rest or "zerofill" in rest

    @property
    def zerofill(self) -> bool:
        """Whether queries give its numbers with zeros before them."""
        return "zerofill" in self.type.lower()

    @property
    def compressed(self) -> bool:
        """Whether the server keeps its values compressed."""
        return "COMPRESSED" in self.type

    @property
    def kind(self) -> str:
        """See `millstream.cdc.values`."""
        return _KINDS.get(self.base, "")

    @property
    def shown_type(self) -> str:
        """The type without what has no meaning for values: the widths that integers are shown in, comments."""
        text = re.sub(r"\s*/\*.*?\*/", "", self.type)
        if self.base in (*INTEGERS, "year") and not text.lower().startswith("tinyint(1)"):
            text = re.sub(r"\(\d+\)", "", text, count=1)
        return text.replace(" zerofill", "")

    @property
    def values(self) -> tuple[str, ...]:
        """Of an enum or a set."""
        return tuple(_unquoted(found) for found in _VALUE.findall(self.type))


def base_of(type: str) -> str:
    """A type's name alone, in lower case."""
    found = _TYPE.match(type)
    return found[1].lower() if found else ""


def _unquoted(text: str) -> str:
    return text.replace("''", "'")


class Layout(msgspec.Struct, frozen=True):
    """A table's columns in their order, and those whose values tell a row from all others."""

    columns: tuple[LayoutColumn, ...]
    key: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """What stands in the log about it."""
        return _shape(self)

    @property
    def orderable(self) -> bool:
        """Whether it can be read in stretches of its key: the order of comparisons is that of the index."""
        kinds = {column.name: column for column in self.columns}
        return bool(self.key) and all(
            kinds[name].base in _ORDERED and not kinds[name].compressed for name in self.key if name in kinds
        )

    def check(self, table: str) -> None:
        """See that every column can be decoded.

        Raises:
            CaptureError: One cannot.
        """
        for column in self.columns:
            if not column.kind:
                raise CaptureError(
                    f"column {column.name!r} of table {table!r} has the type {column.type}, which is not known",
                    hint="Leave the table out of tables=, or store the column in another type",
                )
            if column.charset is not None and column.charset not in CODECS:
                raise CaptureError(
                    f"column {column.name!r} of table {table!r} has the character set {column.charset}, which is not"
                    " known",
                    hint=f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4",
                )


_ORDERED = {*INTEGERS, "decimal", "date", "datetime", "timestamp", "char", "varchar", "binary", "varbinary", "uuid"}


@cache
def _shape(layout: Layout) -> Shape:
    return Shape(tuple(Column(c.name, c.kind, c.shown_type) for c in layout.columns), layout.key)


# --- character sets -----------------------------------------------------------------------------------------

CODECS: dict[str, str] = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "utf8": "utf-8",
    "ascii": "utf-8",
    "latin1": "latin1",
    "latin2": "iso8859_2",
    "latin5": "iso8859_9",
    "latin7": "iso8859_13",
    "greek": "iso8859_7",
    "hebrew": "iso8859_8",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1256": "cp1256",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp866": "cp866",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "tis620": "tis_620",
    "ucs2": "utf_16_be",
    "utf16": "utf_16_be",
    "utf16le": "utf_16_le",
    "utf32": "utf_32_be",
    "big5": "big5",
    "cp932": "cp932",
    "sjis": "cp932",
    "ujis": "euc_jp",
    "eucjpms": "euc_jp",
    "euckr": "cp949",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "macroman": "mac_roman",
    "macce": "mac_latin2",
}
"""Python's names of the server's character sets."""

# The server's latin1 is Windows' 1252, with the five bytes that this leaves open as what ISO has for them.
_LATIN1 = "".join(bytes([i]).decode("cp1252", "replace").replace("\ufffd", chr(i)) for i in range(256))
_LATIN1_UTF8 = [c.encode() for c in _LATIN1]


def transcoder(charset: str) -> Callable[[bytes], bytes] | None:
    """What makes UTF-8 of text in a character set; None for one that is UTF-8."""
    codec = CODECS[charset]
    if codec == "utf-8":
        return None
    if codec == "latin1":
        return lambda raw: raw if raw.isascii() else b"".join([_LATIN1_UTF8[c] for c in raw])
    wide = codec.startswith("utf_")
    return lambda raw: raw if not wide and raw.isascii() else raw.decode(codec, "replace").encode()


# --- what a change of columns means for rows that are there ---------------------------------------------------


def default_of(column: LayoutColumn, mariadb: bool) -> tuple[bool, Any]:
    """Whether it is known what rows have in a column that was added, and what that is in JSON."""
    if "GENERATED" in column.extra.upper() or "auto_increment" in column.extra.lower():
        return False, None
    text = column.default
    if text is None or (mariadb and text.upper() == "NULL"):
        if column.nullable:
            return True, None
        implicit: dict[str, Any] = {"int": 0, "text": "", "float": 0.0}
        return (column.kind in implicit and column.base != "enum"), implicit.get(column.kind)
    if mariadb:
        found = _VALUE.fullmatch(text)
        if found is not None:
            text = re.sub(r"\\(.)", r"\1", _unquoted(found[1]))
        elif not re.fullmatch(r"-?[0-9.]+(e[-+]?\d+)?", text):
            return False, None
    try:
        match column.kind:
            case "int" if column.base != "bit":
                return True, int(text)
            case "text":
                return True, text
            case "float":
                return True, float(text)
            case "date":
                return True, text
    except ValueError:
        pass
    return False, None


def keeps_values(old: LayoutColumn, new: LayoutColumn) -> bool:
    """Whether a change of a column's type leaves all values, as the log has them, what they were."""
    if old.kind != new.kind:
        return False
    if old.shown_type == new.shown_type:
        return old.charset == new.charset or "utf8" in (new.charset or "")
    if old.base in INTEGERS and new.base in INTEGERS:
        wider = INTEGERS[new.base] >= INTEGERS[old.base] and old.unsigned == new.unsigned
        return wider or (old.unsigned and INTEGERS[new.base] > INTEGERS[old.base])
    if old.base == new.base and old.base in ("varchar", "varbinary") and old.charset == new.charset:
        return int(new.args or 0) >= int(old.args or 0)
    if old.base in ("enum", "set") and new.base == old.base:
        return new.values[: len(old.values)] == old.values
    texts = ("varchar", "tinytext", "text", "mediumtext", "longtext")
    if old.base in texts and new.base in texts and old.charset == new.charset:
        return texts.index(new.base) > texts.index(old.base) >= 1
    return False
