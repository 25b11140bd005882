"""Rows of a query as JSON, each value as the binary log's decoders write it, by functions made for their table."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from . import values
from .layout import INTEGERS, Layout, LayoutColumn
from .place import quote_name
from .wire import length

ReadRow = Callable[[bytes, int], bytes]
"""From a row as the server sends it, and the place where it begins."""

_SPECIAL = re.compile(rb'[\x00-\x1f"\\]').search


def select_list(layout: Layout) -> str:
    """What a query asks for, so that each value comes in the form that `make_reader` expects."""
    return ", ".join(_selected(column) for column in layout.columns)


def _selected(column: LayoutColumn) -> str:
    name = quote_name(column.name)
    if column.base in ("bit", "enum", "set"):
        return f"CAST({name} AS UNSIGNED)"
    if column.base == "year" or column.zerofill:
        return f"{name} + 0"
    if column.base == "float":
        return f"{name} * 1e0"  # the text of a FLOAT would have six digits only
    return name


def _convert(column: LayoutColumn) -> tuple[bytes, Any, bool]:
    """A value's place in the text of a row, what makes the value for it, and whether JSON may have to escape it."""
    match column.base:
        case "float":
            return b"%b", lambda raw: values.short_float(float(raw)), False
        case "double":
            return b"%b", lambda raw: repr(float(raw)).encode(), False
        case "bit" | "year":
            return b"%b", None, False
        case "time" | "date" | "decimal" | "uuid":
            return b'"%b"', None, False
        case "datetime":
            return b'"%b"', lambda raw: raw.replace(b" ", b"T", 1), False
        case "timestamp":
            return b'"%bZ"', lambda raw: raw.replace(b" ", b"T", 1), False
        case "enum":
            choices = [b'""', *map(values.quoted, column.values)]
            return b"%b", lambda raw: choices[int(raw)], False
        case "set":
            known = [values.quoted(value) for value in column.values]
            return b"%b", lambda raw: _chosen(known, raw), False
        case "inet6":
            return b'"%b"', _inet6, False
        case "json":
            return b"%b", lambda raw: values.quoted(raw.decode()), False
    if column.base in INTEGERS:
        return b"%b", None, False
    if column.kind == "text":
        return b'"%b"', None, True
    if column.base == "binary":
        return b'"%b"', values.based, False
    return b'"%b"', values.based if column.kind == "bytes" else None, False


def _chosen(known: list[bytes], raw: bytes) -> bytes:
    number = int(raw)
    return b"[" + b",".join(value for i, value in enumerate(known) if number >> i & 1) + b"]"


def _inet6(raw: bytes) -> bytes:
    import socket

    return values.inet6(socket.inet_pton(socket.AF_INET6, raw.decode()))


@cache
def make_reader(layout: Layout) -> ReadRow:
    """A function that makes a row's JSON object."""
    names: dict[str, Any] = {"S": _SPECIAL, "E": values.escaped, "L": length}
    lines = ["def read(b, p):"]
    places = []
    for i, column in enumerate(layout.columns):
        place, convert, checked = _convert(column)
        v = f"v{i}"
        lines += [
            "    k = b[p]",
            f"    if k == 251: p += 1; {v} = b'null'",
            "    else:",
            "        if k < 251: p += 1",
            "        else: k, p = L(b, p)",
            f"        {v} = b[p:p + k]; p += k",
        ]
        if convert is not None:
            names[f"f{i}"] = convert
            lines.append(f"        {v} = f{i}({v})")
        if checked:
            lines.append(f"        if S({v}): {v} = E({v})")
        if place != b"%b":
            lines.append(f"        {v} = {place!r} % {v}")
        places.append(values.quoted(column.name).replace(b"%", b"%%") + b":%b")
    names["T"] = b"{" + b",".join(places) + b"}"
    lines.append(f"    return T % ({''.join(f'v{i}, ' for i in range(len(layout.columns)))})")
    exec(compile("\n".join(lines), "<reader of rows>", "exec"), names)
    return names["read"]  # type: ignore[no-any-return]
