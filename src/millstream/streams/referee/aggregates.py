"""Aggregates of groups, by SQL where it has them; any other is Polars' own, asked of the rows of each whole group."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from ..errors import CannotCheck
from ..expressions import is_rowwise
from ..sketches import Quantile
from .engine import AT, PLACE, ROW, Engine

_SQL = {
    "len": "count(*)",
    "count": "count({v})",
    "sum": "coalesce(sum({v}), 0)",
    "min": "min({v})",
    "max": "max({v})",
    "mean": "avg({v})",
    "var1": "var_samp({v})",
    "var0": "var_pop({v})",
    "std1": "stddev_samp({v})",
    "std0": "stddev_pop({v})",
    # Null is a value of its own.
    "n_unique": "count(distinct {v}) {filter} + (count(*) {filter} > count({v}) {filter})::int",
    "first": "first({v} order by {at}, {place})",
    "last": "last({v} order by {at}, {place})",
}
_OVER_WINDOWS = set(_SQL) - {"first", "last"}
"""Those that SQL has over a frame of rows too."""

_NUMBERS = {"sum", "mean", "var1", "var0", "std1", "std0"}
"""Those for which true is one."""

_KINDS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "sum": lambda v: v.sum(),
    "count": lambda v: v.count(),
    "len": lambda v: v.len(),
    "min": lambda v: v.min(),
    "max": lambda v: v.max(),
    "mean": lambda v: v.mean(),
    "n_unique": lambda v: v.n_unique(),
    "first": lambda v: v.first(),
    "last": lambda v: v.last(),
    "var1": lambda v: v.var(),
    "var0": lambda v: v.var(0),
    "std1": lambda v: v.std(),
    "std0": lambda v: v.std(0),
}
_COMBINING: tuple[Callable[[pl.Expr, pl.Expr], pl.Expr], ...] = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.gt,
    operator.ge, operator.lt, operator.le, operator.eq, operator.ne, operator.and_, operator.or_,
)  # fmt: skip
_CASTS = (pl.Int64, pl.Int32, pl.Float64, pl.Float32, pl.UInt64, pl.UInt32, pl.String, pl.Boolean)


class Leaf(msgspec.Struct, frozen=True, eq=False):
    """One aggregate of a group.

    Attributes:
        kind: Which one; ``polars`` for any that has no SQL here.
        value: The row-wise expression that is aggregated; of Polars' own, all of it.
        condition: What rows are left out.
    """

    kind: str
    value: pl.Expr | None = None
    condition: pl.Expr | None = None


class Plan:
    """Aggregates as the leaves that are computed, and what is made of them."""

    def __init__(self, given: Sequence[pl.Expr | Quantile], names: Sequence[str]) -> None:
        self.leaves: list[Leaf] = []
        self.finals: list[pl.Expr] = []
        for each, name in zip(given, names, strict=True):
            if isinstance(each, Quantile):
                raise CannotCheck(f"the quantile {name!r}", "a sketch is only near the value that SQL gives")
            self.finals.append(self._of(each.meta.undo_aliases()).alias(name))

    @property
    def over_windows(self) -> bool:
        """Whether SQL has all of them over a frame of rows."""
        return all(leaf.kind in _OVER_WINDOWS for leaf in self.leaves)

    def _of(self, node: pl.Expr) -> pl.Expr:
        if node.meta.is_literal():
            return node
        if node.meta.eq(pl.len()):
            return self._leaf(Leaf("len"))
        inputs = node.meta.pop()
        if len(inputs) == 1:
            [inner] = inputs
            if node.meta.eq(inner.approx_n_unique()):
                raise CannotCheck("approx_n_unique", "a sketch is only near the number that SQL gives")
            for kind, make in _KINDS.items():
                if node.meta.eq(make(inner)):
                    value, condition = _filtered(inner)
                    if _each_row(value) and (condition is None or _each_row(condition)):
                        return self._leaf(Leaf(kind, value, condition))
            best = _best(node, inner)
            if best is not None:
                return self._leaf(Leaf("polars", best))
            if node.meta.eq(-inner):
                return -self._of(inner)
            for dtype in _CASTS:
                for strict in (True, False):
                    if node.meta.eq(inner.cast(dtype, strict=strict)):
                        return self._of(inner).cast(dtype, strict=strict)
        if len(inputs) == 2:
            for combine in _COMBINING:
                if node.meta.eq(combine(inputs[1], inputs[0])):
                    return combine(self._of(inputs[1]), self._of(inputs[0]))
        return self._leaf(Leaf("polars", node))

    def _leaf(self, leaf: Leaf) -> pl.Expr:
        self.leaves.append(leaf)
        return pl.col(f"__a{len(self.leaves) - 1}")

    # --- groups -----------------------------------------------------------------------------------------

    def of_groups(self, engine: Engine, rows: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
        """The aggregates of groups of rows: ``number`` and their columns, in the order of the numbers.

        Args:
            labels: Which rows (``row``) each group has (``number``).
        """
        values, types = self._values(rows)
        asked = [f"{self._sql(i, types)} as a{i}" for i, leaf in enumerate(self.leaves) if leaf.kind != "polars"]
        query = f"""
            select labels.number, {", ".join([*asked, "count(*) as held"])}
            from labels join v on labels.rn = v.rn group by labels.number order by labels.number
        """
        found = self._typed(engine.ask(query, labels=labels, v=values), types)
        own = [leaf for leaf in self.leaves if leaf.kind == "polars"]
        if own:
            numbered = rows.with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
            joined = labels.select("number", pl.col("rn").alias(ROW)).join(numbered, on=ROW)
            grouped = joined.sort("number", AT, PLACE).group_by("number", maintain_order=True)
            more = [
                leaf.value.alias(f"__a{i}")
                for i, leaf in enumerate(self.leaves)
                if leaf.kind == "polars" and leaf.value is not None
            ]
            found = found.join(grouped.agg(more), on="number", maintain_order="left")
        return found.select("number", *self.finals)

    def over_spans(
        self, engine: Engine, rows: pl.DataFrame, table: pl.DataFrame, partition: str, span: int
    ) -> pl.DataFrame:
        """The aggregates of each row's span, a row each in the order of ``row``.

        Args:
            table: The rows as SQL sees them.
            partition: By which of its columns rows are told apart.
            span: The length of the span that ends with each row.
        """
        values, types = self._values(rows)
        frame = f"over (partition by {partition} order by t.ts range between {span} preceding and current row)"
        asked = [f"{self._sql(i, types, frame)} as a{i}" for i in range(len(self.leaves))]
        query = f"select t.rn, {', '.join(asked)} from t join v on t.rn = v.rn order by t.rn"
        return self._typed(engine.ask(query, t=table, v=values), types).select("rn", *self.finals)

    def _values(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, list[pl.DataType]]:
        """What is aggregated of each row, as SQL takes it: times are whole numbers."""
        columns = [pl.int_range(pl.len(), dtype=pl.Int64).alias("rn"), pl.col(AT).alias("ts"), pl.col(PLACE)]
        numbers: list[str] = []
        for number, leaf in enumerate(self.leaves):
            if leaf.kind == "polars":
                continue
            if leaf.value is not None:
                if leaf.kind in _NUMBERS:
                    numbers.append(f"v{number}")
                columns.append(leaf.value.alias(f"v{number}"))
            if leaf.condition is not None:
                columns.append(leaf.condition.alias(f"c{number}"))
        made = rows.with_columns(columns).select(column.meta.output_name() for column in columns)
        made = made.rename({PLACE: "place"})
        types = [made.schema.get(f"v{number}", pl.Int64()) for number in range(len(self.leaves))]
        truths = [name for name in numbers if made.schema[name] == pl.Boolean]
        times = [name for name, dtype in made.schema.items() if dtype.is_temporal()]
        nothing = [name for name, dtype in made.schema.items() if dtype == pl.Null]
        made = made.with_columns(pl.col(times).to_physical().cast(pl.Int64), pl.col([*nothing, *truths]).cast(pl.Int64))
        return made, types

    def _sql(self, number: int, types: Sequence[pl.DataType], over: str = "") -> str:
        leaf = self.leaves[number]
        value, kind = f"v.v{number}", leaf.kind
        conditions = [f"v.c{number}"] if leaf.condition is not None else []
        where = f"filter (where {' and '.join(conditions)})" if conditions else ""
        text = _SQL[kind].format(v=value, at="v.ts", place="v.place", filter=f"{where} {over}")
        if kind == "n_unique":
            return text
        if kind == "sum":
            return f"coalesce(sum({value}) {where} {over}, 0)::{_sql_sum(types[number])}"
        if kind in ("min", "max") and types[number].is_float():
            # NaN counts only where there is nothing else.
            numbers = f"filter (where {' and '.join([*conditions, f'not isnan({value})'])})"
            return f"coalesce({text} {numbers} {over}, {text} {where} {over})"
        return f"{text} {where} {over}"

    def _typed(self, found: pl.DataFrame, types: Sequence[pl.DataType]) -> pl.DataFrame:
        """The leaves with the types that the guide promises."""
        made = []
        for number, (leaf, dtype) in enumerate(zip(self.leaves, types, strict=True)):
            if leaf.kind == "polars":
                continue
            column = pl.col(f"a{number}")
            if leaf.kind in ("len", "count", "n_unique"):
                column = column.cast(pl.Int64)
            elif leaf.kind in ("min", "max", "first", "last"):
                column = column.cast(dtype) if dtype != pl.Null else pl.lit(None)
            elif leaf.kind == "sum":
                column = column.cast(_sum_type(dtype))
            made.append(column.alias(f"__a{number}"))
        return found.with_columns(made)


def _sql_sum(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Decimal):
        return f"decimal(38, {dtype.scale})"
    return "double" if dtype.is_float() else "ubigint" if dtype == pl.UInt64 else "bigint"


def _sum_type(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Decimal):
        return pl.Decimal(38, dtype.scale)
    if dtype.is_float():
        return pl.Float64()
    return dtype if dtype == pl.UInt64 or dtype.is_temporal() else pl.Int64()


def _filtered(value: pl.Expr) -> tuple[pl.Expr, pl.Expr | None]:
    inputs = value.meta.pop()
    if len(inputs) == 2 and value.meta.eq(inputs[1].filter(inputs[0])):
        return inputs[1], inputs[0]
    return value, None


def _best(node: pl.Expr, inner: pl.Expr) -> pl.Expr | None:
    """A list of the best values of rows that are in order of time: best first, of equal ones the first."""
    inputs = inner.meta.pop()
    if not node.meta.eq(inner.implode()) or len(inputs) not in (2, 3) or not inputs[-2].meta.is_literal():
        return None
    *by, count, value = inputs
    rows = pl.select(count).item()
    for name in ("top_k", "bottom_k"):
        if isinstance(rows, int) and inner.meta.eq(getattr(value, f"{name}_by" if by else name)(*by, rows)):
            order = {"descending": name == "top_k", "nulls_last": True, "maintain_order": True}
            return value.sort_by(by[0] if by else value, **order).head(rows).implode()
    return None


def _each_row(value: pl.Expr) -> bool:
    try:
        return is_rowwise(value) and not value.meta.has_multiple_outputs()
    except PolarsError:
        return False
