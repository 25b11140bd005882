"""What is kept of the rows of a group: values that can be merged, and how they come of rows and of one another."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import polars as pl

from .columns import AT, SEQUENCE, names_of
from .errors import UnsupportedExpression
from .expressions import is_rowwise

Schema = Mapping[str, pl.DataType]


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
            rows, condition = filtered(value)
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
        if any(dtype.is_nested() for dtype in schema.values()) and type_of(value, schema).is_nested():
            # Polars says null of them, whatever they are.
            raise UnsupportedExpression(
                f"{value}.{self.kind}()",
                "agg",
                "lists and structs have no order",
                hint="Take a part of it, or its length",
            )
        return (value.min() if self.kind == "min" else value.max()).alias(self.name)

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.columns, *names_of([self.value] if self.value is not None else ())}

    @property
    def is_size(self) -> bool:
        """Whether it is the number of rows of a group."""
        return self.kind == "len" and self.value is None

    def tally(self) -> pl.Expr | None:
        """What it adds up of each row, where it is a count or a sum; None where it is the number of rows, or more."""
        if self.kind not in ("len", "count", "sum") or self.value is None:
            return None
        rows, condition = filtered(self.value)
        if not rows.meta.root_names() or not is_rowwise(rows):
            return None  # of a literal alone there is one for a group
        if self.kind == "len":
            return None if condition is None else condition
        if condition is not None:
            rows = pl.when(condition).then(rows)
        return rows.is_not_null() if self.kind == "count" else rows

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
        dtype = type_of(self.value, schema)
        if dtype == pl.UInt64:
            return dtype
        if dtype.is_integer() or dtype == pl.Boolean:
            return pl.Int64()
        if isinstance(dtype, pl.Decimal):
            return pl.Decimal(38, dtype.scale)
        if dtype.is_float():
            return pl.Float64()
        if dtype == pl.Null:
            # A column that had no value yet adds up to what it will add up to when its type is known: to nothing.
            return pl.Int64()
        if isinstance(dtype, pl.Duration):
            return dtype
        raise UnsupportedExpression(
            f"{self.value}.sum()",
            "agg",
            f"values of type {dtype} have no sum, and so no mean",
            hint="Cast the column first",
        )


def type_of(value: pl.Expr, schema: Schema) -> pl.DataType:
    """The type of a value of each row."""
    return pl.DataFrame(schema=dict(schema)).lazy().select(value).collect_schema().dtypes()[0]


def filtered(value: pl.Expr) -> tuple[pl.Expr, pl.Expr | None]:
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
