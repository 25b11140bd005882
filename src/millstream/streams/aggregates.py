"""Aggregates of groups whose rows come in batches: partials that can be merged, and rows that are kept.

How an aggregate is made is decided when the flow is built, from the expression's own tree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from .columns import AT, SEQUENCE, names_of
from .errors import UnsupportedExpression
from .expressions import apply, check_rowwise, is_rowwise
from .partials import Partial, Schema
from .sketches import Best, Quantile, Registers, Sketch, best_of, distinct_of, quantile_of
from .tallies import tallied

_ROWS = "__rows"
_VALUE = "__value"


class Aggregation(msgspec.Struct, frozen=True, eq=False):
    """Named aggregates, as the partials to keep and the expressions that finish them."""

    partials: tuple[Partial, ...]
    finals: tuple[pl.Expr, ...]
    names: tuple[str, ...]
    kept: tuple[pl.Expr, ...] = ()
    """What is computed from the rows of a group, which are then kept."""
    given: tuple[pl.Expr | Quantile, ...] = ()
    """The aggregates as they were given."""
    tallies: dict[str, pl.Expr | None] | None = None
    """Where partials are nothing but counts and sums, what of each row is added up for each; None counts rows."""

    def __reduce__(self) -> tuple[Any, ...]:
        # What finishes a sketch is a function of ours in an expression, which cannot go to another process.
        return aggregation, (dict(zip(self.names, self.given, strict=True)),)

    @property
    def shape(self) -> str:
        """What state depends on: the partials, in order."""
        return ",".join(f"{p.kind}({', '.join(p.columns) if p.value is None else p.value})" for p in self.partials)

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {name for partial in self.partials for name in partial.reads}

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


def aggregation(aggregates: Mapping[str, pl.Expr | Quantile]) -> Aggregation:
    """Split aggregates into partials that can be merged and what finishes them.

    Counts, sums, minima, maxima, means, variances, first, last and best values, distinct counts of any row-wise
    expression (also filtered), and quantiles by sketch, can be merged, and so can any arithmetic, comparison or cast of
    them, but for quantiles. For what else gives one value of a group, its rows are kept.

    Raises:
        UnsupportedExpression: An expression does not give one value of a group.
    """
    partials: dict[str, Partial] = {}
    kept: list[pl.Expr] = []
    finals = []
    for name, expression in aggregates.items():
        if isinstance(expression, Quantile):
            finals.append(_quantile(expression, partials).alias(name))
            continue
        finals.append(_finish(expression.meta.undo_aliases(), expression, partials, kept).alias(name))
    if kept:
        partials[_ROWS] = Partial(_ROWS, "rows", None, tuple(sorted(names_of(kept))))
    given = tuple(aggregates.values())
    tallies = _tallies(list(partials.values()))
    return Aggregation(tuple(partials.values()), tuple(finals), tuple(aggregates), tuple(kept), given, tallies)


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
        if found is None:
            found = _best(node, inputs[0], whole, partials, kept)
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
    if meta.eq(inner.approx_n_unique()):
        return distinct_of(_added(Registers("", "distinct", inner), partials))
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


def _quantile(wanted: Quantile, partials: dict[str, Partial]) -> pl.Expr:
    """What gives a quantile from a sketch."""
    if not _is_mergeable(wanted.value):
        check_rowwise([wanted.value], "quantile")
    sketch = Sketch("", f"quantiles {wanted.error}", wanted.value, error=wanted.error)
    return quantile_of(_added(sketch, partials), wanted)


def _best(
    node: pl.Expr, inner: pl.Expr, whole: pl.Expr, partials: dict[str, Partial], kept: list[pl.Expr]
) -> pl.Expr | None:
    """What gives a list of the greatest or least values, best first; None where it is something else."""
    inputs = inner.meta.pop()
    if not node.meta.eq(inner.implode()) or len(inputs) not in (2, 3) or not inputs[-2].meta.is_literal():
        return None
    *by, count, value = inputs
    rows = pl.select(count).item()
    if not isinstance(rows, int):
        return None
    for name, descending in (("top", True), ("bottom", False)):
        verb = getattr(value, f"{name}_k_by" if by else f"{name}_k")
        if not inner.meta.eq(verb(*by, rows)):
            continue
        order = by[0] if by else None
        if _is_mergeable(value) and (order is None or (is_rowwise(order) and is_rowwise(value))):
            kind = f"{name} {rows}" + (f" by {order}" if by else "")
            return best_of(_added(Best("", kind, value, rows=rows, by=order, descending=descending), partials))
        if order is None:
            # Of kept rows, Polars' own verb would give them in no order.
            return _from_rows(value.sort(descending=descending, nulls_last=True).head(rows).implode(), whole, kept)
    return None


def _partial(kind: str, value: pl.Expr | None, partials: dict[str, Partial]) -> pl.Expr:
    return _added(Partial("", kind, value), partials)


def _added(partial: Partial, partials: dict[str, Partial]) -> pl.Expr:
    """The column of a partial, which is added unless it is there."""
    key = f"{partial.kind}({'' if partial.value is None else partial.value})"
    if key not in partials:
        partials[key] = msgspec.structs.replace(partial, name=f"__p{len(partials)}")
    return pl.col(partials[key].name)


def _tallies(partials: Sequence[Partial]) -> dict[str, pl.Expr | None] | None:
    found: dict[str, pl.Expr | None] = {}
    for partial in partials:
        found[partial.name] = partial.tally()
        if found[partial.name] is None and not partial.is_size:
            return None
    return found


def partials_of(aggregation: Aggregation, rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The partials of groups of rows; without keys, of all rows."""
    found = tallied_of(aggregation, rows, by)
    if found is not None:
        return found
    return apply("agg", rows.columns, lambda: _grouped(rows, by, aggregation.of_rows(rows.schema)))


def tallied_of(aggregation: Aggregation, rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame | None:
    """The same in the order of their keys, where these are close together and all is added up; None where not."""
    tallies = aggregation.tallies
    if tallies is None or not by or not rows.height:
        return None
    return apply("agg", rows.columns, lambda: tallied(rows, by, tallies))


def merge_partials(aggregation: Aggregation, partials: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Several partials of each group as one; without keys, all of them."""
    if by and partials.height and aggregation.tallies is not None:
        names = list(aggregation.tallies)
        if all(partials.schema[name] == pl.Int64 for name in names):
            found = tallied(partials, by, {name: pl.col(name) for name in names})
            if found is not None:
                return found
    return _grouped(partials, by, aggregation.merged())


def _grouped(frame: pl.DataFrame, by: Sequence[str], aggregates: list[pl.Expr]) -> pl.DataFrame:
    return frame.group_by(list(by)).agg(aggregates) if by else frame.select(aggregates)
