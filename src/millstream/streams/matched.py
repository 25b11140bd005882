"""Values of the rows that a match has taken so far, for the conditions and the measures of `Flow.match`.

Each gives an expression, to be combined with others as Polars combines them. In a condition, the rows are those
before the one that is asked about; what is asked of no row at all is null (`count` is 0).

Example:
    >>> import millstream as ms
    >>> import polars as pl
    >>> falling = pl.col("price") < ms.matched.last("fall.price")
    >>> depth = ms.matched.first("start.price") - ms.matched.min("fall.price")
"""

from __future__ import annotations

import re

import polars as pl

from ..errors import UsageError

_REFERENCE = re.compile(r"\0(first|last|count|sum|mean|min|max)\(([A-Za-z_]\w*)(?:\.(.+))?\)", re.DOTALL)


def first(of: str) -> pl.Expr:
    """The value of the first row of a variable: ``first("start.price")``."""
    return _reference("first", of)


def last(of: str) -> pl.Expr:
    """The value of the last row of a variable: ``last("fall.price")``."""
    return _reference("last", of)


def count(of: str) -> pl.Expr:
    """How many rows a variable has taken, ``count("fall")``; with a column, how many of its values are not null."""
    return _reference("count", of)


def sum(of: str) -> pl.Expr:
    """The sum of a column's values in a variable's rows."""
    return _reference("sum", of)


def mean(of: str) -> pl.Expr:
    """The mean of a column's values in a variable's rows."""
    return _reference("mean", of)


def min(of: str) -> pl.Expr:
    """The least of a column's values in a variable's rows."""
    return _reference("min", of)


def max(of: str) -> pl.Expr:
    """The greatest of a column's values in a variable's rows."""
    return _reference("max", of)


def _reference(kind: str, of: str) -> pl.Expr:
    found = _REFERENCE.fullmatch(f"\0{kind}({of})") if isinstance(of, str) else None
    if found is None or (kind != "count" and found[3] is None):
        raise UsageError(
            f"{kind}({of!r}) names no column of a variable", hint=f"Write variable and column: {kind}('fall.price')"
        )
    return pl.col(f"\0{kind}({of})")


def reference_of(column: str) -> tuple[str, str, str | None] | None:
    """What a column's name stands for: the kind, the variable and the column; None for an ordinary one."""
    found = _REFERENCE.fullmatch(column)
    return (found[1], found[2], found[3]) if found is not None else None


def references_in(expression: pl.Expr) -> list[str]:
    """The names in an expression that stand for values of matched rows."""
    return [name for name in expression.meta.root_names() if name.startswith("\0")]
