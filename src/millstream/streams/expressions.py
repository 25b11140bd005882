"""Which expressions a flow may use: those whose value does not depend on where a batch ends.

A flow's rows come in batches of any size, so an expression over rows has to give each row a value that
depends on that row alone (``cum_sum`` does not), and an aggregate has to be one that can be merged from the
parts of its group. Both are decided when the flow is built, from the expression's own tree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from .columns import names_of
from .errors import MissingColumn, UnsupportedExpression

Schema = Mapping[str, pl.DataType]
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


def apply(where: str, columns: list[str], compute: Callable[[], T]) -> T:
    """The result of a Polars computation; a missing column leaves as an error of ours."""
    try:
        return compute()
    except pl.exceptions.ColumnNotFoundError as error:
        name = str(error).split('"')[1] if '"' in str(error) else str(error).split("\n", 1)[0]
        raise MissingColumn(name, where, columns) from error
    except PolarsError as error:
        raise UnsupportedExpression(
            where, "the flow", str(error).split("\n", 1)[0], hint="Check the types of the columns"
        ) from error


class Partial(msgspec.Struct, frozen=True, eq=False):
    """One mergeable value of a group: how it comes from rows, and how two of them become one."""

    name: str
    kind: str
    """``len``, ``count``, ``sum``, ``min`` or ``max``."""
    value: pl.Expr | None
    """What of each row is aggregated; None for ``pl.len()``."""

    def of_rows(self, schema: Schema) -> pl.Expr:
        """The partial of a group of rows. Counts and sums of integers are 64 bits wide."""
        if self.value is None:
            return pl.len().cast(pl.Int64).alias(self.name)
        value = self.value
        if self.kind == "len":
            return value.len().cast(pl.Int64).alias(self.name)
        if self.kind == "count":
            return value.count().cast(pl.Int64).alias(self.name)
        if self.kind == "sum":
            return value.cast(self.sum_type(schema)).sum().alias(self.name)
        return (value.min() if self.kind == "min" else value.max()).alias(self.name)

    def merged(self) -> pl.Expr:
        """The partial of several partials of one group."""
        column = pl.col(self.name)
        if self.kind == "min":
            return column.min()
        return column.max() if self.kind == "max" else column.sum()

    def sum_type(self, schema: Schema) -> pl.DataType:
        """The type that a sum is kept in."""
        assert self.value is not None
        dtype = pl.DataFrame(schema=dict(schema)).lazy().select(self.value).collect_schema().dtypes()[0]
        if dtype == pl.UInt64:
            return dtype
        if dtype.is_integer() or dtype == pl.Boolean:
            return pl.Int64()
        if isinstance(dtype, pl.Decimal):
            return pl.Decimal(38, dtype.scale)
        if dtype.is_float():
            return pl.Float64()
        if isinstance(dtype, pl.Duration | pl.Null):
            return dtype
        raise UnsupportedExpression(
            f"{self.value}.sum()", "agg", f"values of type {dtype} have no sum", hint="Cast the column first"
        )


class Aggregation(msgspec.Struct, frozen=True, eq=False):
    """Named aggregates, as the partials to keep and the expressions that finish them."""

    partials: tuple[Partial, ...]
    finals: tuple[pl.Expr, ...]
    names: tuple[str, ...]

    @property
    def shape(self) -> str:
        """What state depends on: the partials, in order."""
        return ",".join(f"{p.kind}({'' if p.value is None else p.value})" for p in self.partials)

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of(p.value for p in self.partials if p.value is not None)

    def of_rows(self, schema: Schema) -> list[pl.Expr]:
        """The partials of a group of rows."""
        return [partial.of_rows(schema) for partial in self.partials]

    def merged(self) -> list[pl.Expr]:
        """The partials of several partials of one group."""
        return [partial.merged() for partial in self.partials]


def aggregation(aggregates: Mapping[str, pl.Expr]) -> Aggregation:
    """Split aggregates into partials that can be merged and what finishes them.

    Counts, sums, minima, maxima and means of any row-wise expression (also filtered) can be merged, and so
    can any arithmetic, comparison or cast of them.

    Raises:
        UnsupportedExpression: An aggregate cannot be merged from the parts of its group.
    """
    partials: dict[str, Partial] = {}
    finals = []
    for name, expression in aggregates.items():
        finals.append(_finish(expression.meta.undo_aliases(), expression, partials).alias(name))
    return Aggregation(tuple(partials.values()), tuple(finals), tuple(aggregates))


_OPERATORS: tuple[Callable[[pl.Expr, pl.Expr], pl.Expr], ...] = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.gt,
    operator.ge,
    operator.lt,
    operator.le,
    operator.eq,
    operator.ne,
    operator.and_,
    operator.or_,
)

_CASTS = (pl.Int64, pl.Int32, pl.Float64, pl.Float32, pl.UInt64, pl.UInt32, pl.String, pl.Boolean)


def _finish(node: pl.Expr, whole: pl.Expr, partials: dict[str, Partial]) -> pl.Expr:
    """The expression over partials that gives a node's value; adds the partials that it needs."""
    meta = node.meta
    if meta.is_literal():
        return node
    if meta.eq(pl.len()):
        return _partial("len", None, partials)
    inputs = meta.pop()
    if len(inputs) == 1:
        inner = inputs[0]
        for kind, candidate in (
            ("sum", inner.sum()),
            ("count", inner.count()),
            ("len", inner.len()),
            ("min", inner.min()),
            ("max", inner.max()),
        ):
            if meta.eq(candidate):
                return _partial(kind, _mergeable(inner, whole), partials)
        if meta.eq(inner.mean()):
            value = _mergeable(inner, whole)
            count = _partial("count", value, partials)
            total = _partial("sum", value, partials).cast(pl.Float64)
            return pl.when(count > 0).then(total / count)
        if meta.eq(-inner):
            return -_finish(inner, whole, partials)
        for dtype in _CASTS:
            for strict in (True, False):
                if meta.eq(inner.cast(dtype, strict=strict)):
                    return _finish(inner, whole, partials).cast(dtype, strict=strict)
    if len(inputs) == 2:
        right, left = inputs
        for combine in _OPERATORS:
            if meta.eq(combine(left, right)):
                return combine(_finish(left, whole, partials), _finish(right, whole, partials))
    raise UnsupportedExpression(
        str(whole),
        "agg",
        f"{node} cannot be merged from the parts of a group",
        hint="Use len, count, sum, min, max and mean of row-wise expressions, and arithmetic of these",
    )


def _mergeable(inner: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """The expression under an aggregate: row-wise, or row-wise after a filter."""
    inputs = inner.meta.pop()
    rows = [inner]
    if len(inputs) == 2 and inner.meta.eq(inputs[1].filter(inputs[0])):
        rows = inputs
    try:
        fine = all(is_rowwise(each) for each in rows)
    except PolarsError:
        fine = False
    if not fine or inner.meta.has_multiple_outputs():
        raise UnsupportedExpression(
            str(whole),
            "agg",
            f"{inner} is not a value of each row",
            hint="Aggregate one row-wise expression at a time",
        )
    return inner


def _partial(kind: str, value: pl.Expr | None, partials: dict[str, Partial]) -> pl.Expr:
    key = f"{kind}({'' if value is None else value})"
    if key not in partials:
        partials[key] = Partial(f"__p{len(partials)}", kind, value)
    return pl.col(partials[key].name)
