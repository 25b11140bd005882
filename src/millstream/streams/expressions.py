"""Which expressions a flow may use: those whose value does not depend on where a batch ends.

A flow's rows come in batches of any size, so an expression over rows has to give each row a value that
depends on that row alone (``cum_sum`` does not). That is decided when the flow is built, from the expression's own
tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import polars as pl
from polars.exceptions import PolarsError

from ..errors import UsageError
from .errors import MissingColumn, UnsupportedExpression

T = TypeVar("T")


def is_rowwise(expression: pl.Expr) -> bool:
    """Whether the expression gives each row a value that depends on that row alone."""
    meta = expression.meta
    if meta.is_column_selection(allow_aliasing=True):
        return True
    if not meta.is_row_separable():
        return False
    if meta.is_literal():
        return True
    inputs = meta.pop()
    # What is made of literals alone is one value, which goes with every row.
    lasting = meta.is_length_preserving() or meta.is_scalar()
    return bool(inputs) and lasting and all(is_rowwise(each) for each in inputs)


def check_rowwise(expressions: Iterable[pl.Expr], where: str) -> None:
    """Refuse what depends on other rows.

    Raises:
        UnsupportedExpression: An expression's value depends on the rows around it, or cannot be looked into.
    """
    for expression in expressions:
        if not isinstance(expression, pl.Expr):
            raise UsageError(
                f"{where} takes Polars' expressions, and got {expression!r:.60}",
                hint=f'Write {where}(pl.col("price") > 1), for example; for Python functions there is map_rows',
            )
        try:
            fine = is_rowwise(expression)
        except PolarsError:
            # Polars cannot look into Python functions without their data, and neither can we.
            raise UnsupportedExpression(
                str(expression), where, "what it does cannot be seen", hint="Use Polars' own row-wise verbs"
            ) from None
        if not fine:
            raise UnsupportedExpression(
                str(expression),
                where,
                "its value depends on other rows, so it would change with the batches that the rows come in",
                hint="Give each row a value of its own; aggregate with group_by, window and agg",
            )


def all_of(condition: pl.Expr, *more: pl.Expr) -> pl.Expr:
    """What a row meets that meets each of these conditions.

    Raises:
        UsageError, UnsupportedExpression: One of them is no expression, or depends on other rows.
    """
    check_rowwise([condition, *more], "filter")
    for each in more:
        condition = condition & each
    return condition


def apply(where: str, columns: list[str], compute: Callable[[], T]) -> T:
    """The result of a Polars computation; a missing column leaves as an error of ours."""
    try:
        return compute()
    except pl.exceptions.ColumnNotFoundError as error:
        name = str(error).split('"')[1] if '"' in str(error) else str(error).split("\n", 1)[0]
        raise MissingColumn(name, where, [each for each in columns if each[:2] != "__"]) from error
    except (PolarsError, pl.exceptions.PanicException) as error:
        raise UnsupportedExpression(
            where, "the flow", str(error).split("\n", 1)[0], hint="Check the types of the columns"
        ) from error
