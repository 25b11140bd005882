"""Aggregates of groups whose rows come in batches: partials that can be merged, and rows that are kept.

How an aggregate is made is decided when the flow is built, from the expression's own tree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from .columns import AT, SEQUENCE, names_of
from .errors import UnsupportedExpression
from .expressions import apply, is_rowwise

Schema = Mapping[str, pl.DataType]

_ROWS = "__rows"
_VALUE = "__value"


class Partial(msgspec.Struct, frozen=True, eq=False):
    """One mergeable value of a group: how it comes from rows, and how two of them become one."""

    name: str
    kind: str
    """``len``, ``count``, ``sum``, ``min``, ``max``, ``first``, ``last``, ``unique``, ``moments`` or ``rows``."""
    value: pl.Expr | None
    """What of each row is aggregated; None for ``pl.len()`` and for rows that are kept."""
    columns: tuple[str, ...] = ()
    """Of rows that are kept, these columns."""

    def of_rows(self, schema: Schema) -> pl.Expr:
        """The partial of a group of rows. Counts and sums of integers are 64 bits wide."""
        if self.kind == "rows":
            return pl.struct(*self.columns, AT, SEQUENCE).implode().alias(self.name)
        if self.value is None:
            return pl.len().cast(pl.Int64).alias(self.name)
        value = self.value
        if self.kind == "len":
            return value.len().cast(pl.Int64).alias(self.name)
        if self.kind == "count":
            return value.count().cast(pl.Int64).alias(self.name)
        if self.kind == "sum":
            return value.cast(self.sum_type(schema)).sum().alias(self.name)
        if self.kind in ("first", "last"):
            rows, condition = _filtered(value)
            placed = pl.struct(pl.col(AT).alias("at"), pl.col(SEQUENCE).alias("place"), rows.alias("value"))
            return self._end(placed if condition is None else placed.filter(condition)).alias(self.name)
        if self.kind == "unique":
            return value.unique().implode().alias(self.name)
        if self.kind == "moments":
            number = value.cast(pl.Float64)
            mean = number.mean()
            away = ((number - mean) ** 2).sum()
            return pl.struct(number.count().cast(pl.Int64).alias("n"), mean.alias("mean"), away.alias("away")).alias(
                self.name
            )
        return (value.min() if self.kind == "min" else value.max()).alias(self.name)

    def merged(self) -> pl.Expr:
        """The partial of several partials of one group."""
        column = pl.col(self.name)
        if self.kind == "min":
            return column.min()
        if self.kind == "rows":
            return column.explode().implode()
        if self.kind == "unique":
            return column.explode().unique().implode()
        if self.kind in ("first", "last"):
            return self._end(column.filter(column.struct.field("at").is_not_null())).alias(self.name)
        if self.kind == "moments":
            return _moments(column).alias(self.name)
        return column.max() if self.kind == "max" else column.sum()

    def _end(self, placed: pl.Expr) -> pl.Expr:
        """The first or the last of some values, by time and place."""
        by = [placed.struct.field("at"), placed.struct.field("place")]
        ordered = placed.sort_by(by, maintain_order=True)
        return ordered.first() if self.kind == "first" else ordered.last()

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
    kept: tuple[pl.Expr, ...] = ()
    """What is computed from the rows of a group, which are then kept."""
    given: tuple[pl.Expr, ...] = ()
    """The aggregates as they were given."""

    @property
    def shape(self) -> str:
        """What state depends on: the partials, in order."""
        return ",".join(f"{p.kind}({', '.join(p.columns) if p.value is None else p.value})" for p in self.partials)

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        values = names_of(p.value for p in self.partials if p.value is not None)
        return values | {name for partial in self.partials for name in partial.columns}

    def finished(self, merged: pl.DataFrame) -> pl.DataFrame:
        """The partials of whole groups, a row each, with the aggregates that are computed from kept rows."""
        if not self.kept:
            return merged
        rows = (
            merged.lazy()
            .select(pl.int_range(pl.len()).alias("__group"), pl.col(_ROWS))
            .explode(_ROWS, empty_as_null=False)
            .unnest(_ROWS)
            .sort("__group", AT, SEQUENCE, maintain_order=True)
        )
        values = [value.alias(f"{_VALUE}{number}") for number, value in enumerate(self.kept)]
        found = apply(
            "agg",
            sorted(self.reads),
            lambda: rows.group_by("__group", maintain_order=True).agg(values).collect(),
        )
        return merged.hstack(found.drop("__group").get_columns())

    def of_rows(self, schema: Schema) -> list[pl.Expr]:
        """The partials of a group of rows."""
        return [partial.of_rows(schema) for partial in self.partials]

    def merged(self) -> list[pl.Expr]:
        """The partials of several partials of one group."""
        return [partial.merged() for partial in self.partials]


def aggregation(aggregates: Mapping[str, pl.Expr]) -> Aggregation:
    """Split aggregates into partials that can be merged and what finishes them.

    Counts, sums, minima, maxima, means, variances, first and last values and exact distinct counts of any row-wise
    expression (also filtered) can be merged, and so can any arithmetic, comparison or cast of them. For what else
    gives one value of a group, its rows are kept.

    Raises:
        UnsupportedExpression: An expression does not give one value of a group.
    """
    partials: dict[str, Partial] = {}
    kept: list[pl.Expr] = []
    finals = []
    for name, expression in aggregates.items():
        finals.append(_finish(expression.meta.undo_aliases(), expression, partials, kept).alias(name))
    if kept:
        partials[_ROWS] = Partial(_ROWS, "rows", None, tuple(sorted(names_of(kept))))
    given = tuple(aggregates.values())
    return Aggregation(tuple(partials.values()), tuple(finals), tuple(aggregates), tuple(kept), given)


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


def _finish(node: pl.Expr, whole: pl.Expr, partials: dict[str, Partial], kept: list[pl.Expr]) -> pl.Expr:
    """The expression over partials that gives a node's value; adds the partials that it needs."""
    meta = node.meta
    if meta.is_literal():
        return node
    if meta.eq(pl.len()):
        return _partial("len", None, partials)
    inputs = meta.pop()
    if len(inputs) == 1:
        found = _merging(node, inputs[0], partials)
        if found is not None:
            return found
        if meta.eq(-inputs[0]):
            return -_finish(inputs[0], whole, partials, kept)
        for dtype in _CASTS:
            for strict in (True, False):
                if meta.eq(inputs[0].cast(dtype, strict=strict)):
                    return _finish(inputs[0], whole, partials, kept).cast(dtype, strict=strict)
    if len(inputs) == 2:
        right, left = inputs
        for combine in _OPERATORS:
            if meta.eq(combine(left, right)):
                return combine(_finish(left, whole, partials, kept), _finish(right, whole, partials, kept))
    return _from_rows(node, whole, kept)


def _merging(node: pl.Expr, inner: pl.Expr, partials: dict[str, Partial]) -> pl.Expr | None:
    """What gives an aggregate of row-wise values from partials; None where that is not known."""
    meta = node.meta
    if not _is_mergeable(inner):
        return None
    for kind, candidate in (
        ("sum", inner.sum()),
        ("count", inner.count()),
        ("len", inner.len()),
        ("min", inner.min()),
        ("max", inner.max()),
    ):
        if meta.eq(candidate):
            return _partial(kind, inner, partials)
    for kind, candidate in (("first", inner.first()), ("last", inner.last())):
        if meta.eq(candidate):
            return _partial(kind, inner, partials).struct.field("value")
    if meta.eq(inner.n_unique()):
        return _partial("unique", inner, partials).list.len().cast(pl.Int64)
    if meta.eq(inner.mean()):
        count = _partial("count", inner, partials)
        total = _partial("sum", inner, partials).cast(pl.Float64)
        return pl.when(count > 0).then(total / count)
    for ddof in (1, 0):
        variance, deviation = inner.var(ddof), inner.std(ddof)
        if meta.eq(variance) or meta.eq(deviation):
            moments = _partial("moments", inner, partials)
            n = moments.struct.field("n")
            found = pl.when(n > ddof).then(moments.struct.field("away") / (n - ddof))
            return found if meta.eq(variance) else found.sqrt()
    return None


def _is_mergeable(inner: pl.Expr) -> bool:
    """Whether what stands under an aggregate is row-wise, or row-wise after a filter."""
    inputs = inner.meta.pop()
    rows = [inner]
    if len(inputs) == 2 and inner.meta.eq(inputs[1].filter(inputs[0])):
        rows = inputs
    try:
        return all(is_rowwise(each) for each in rows) and not inner.meta.has_multiple_outputs()
    except PolarsError:
        return False


def _from_rows(node: pl.Expr, whole: pl.Expr, kept: list[pl.Expr]) -> pl.Expr:
    """A value that only the rows of a group give."""
    single = not _is_plural(node)
    with suppress(PolarsError):  # of a Python function, which Polars cannot look into
        single = single and node.meta.is_scalar()
    if not single:
        raise UnsupportedExpression(
            str(whole),
            "agg",
            f"{node} is not one value of a group",
            hint="Aggregate one expression at a time, to one value; implode() makes a list of several",
        )
    for number, known in enumerate(kept):
        if known.meta.eq(node):
            return pl.col(f"{_VALUE}{number}")
    kept.append(node)
    return pl.col(f"{_VALUE}{len(kept) - 1}")


def _is_plural(node: pl.Expr) -> bool:
    """Whether an expression stands for several columns."""
    return node.meta.has_multiple_outputs() or any(_is_plural(each) for each in node.meta.pop())


def _filtered(value: pl.Expr) -> tuple[pl.Expr, pl.Expr | None]:
    """A row-wise expression, and the condition that its rows are filtered by."""
    inputs = value.meta.pop()
    if len(inputs) == 2 and value.meta.eq(inputs[1].filter(inputs[0])):
        return inputs[1], inputs[0]
    return value, None


def _moments(column: pl.Expr) -> pl.Expr:
    """Number, mean and squared distances from it, of several parts (Chan, Golub and LeVeque, 1979)."""
    n, mean, away = (column.struct.field(name) for name in ("n", "mean", "away"))
    total = n.sum()
    whole = pl.when(total > 0).then((n * mean.fill_null(0.0)).sum() / total)
    apart = (n * (mean.fill_null(0.0) - whole) ** 2).sum()
    return pl.struct(total.alias("n"), whole.alias("mean"), (away.fill_null(0.0).sum() + apart).alias("away"))


def _partial(kind: str, value: pl.Expr | None, partials: dict[str, Partial]) -> pl.Expr:
    key = f"{kind}({'' if value is None else value})"
    if key not in partials:
        partials[key] = Partial(f"__p{len(partials)}", kind, value)
    return pl.col(partials[key].name)


def partials_of(aggregation: Aggregation, rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The partials of groups of rows."""
    aggregates = apply("agg", rows.columns, lambda: aggregation.of_rows(rows.schema))
    return apply("agg", rows.columns, lambda: grouped(rows, by, aggregates))


def merge_partials(aggregation: Aggregation, partials: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Several partials of each group as one."""
    return grouped(partials, by, aggregation.merged())


def grouped(frame: pl.DataFrame, by: Sequence[str], aggregates: list[pl.Expr]) -> pl.DataFrame:
    """Aggregates of each group; without keys, of all rows."""
    return frame.group_by(list(by)).agg(aggregates) if by else frame.select(aggregates)
