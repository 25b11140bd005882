"""Aggregates whose parts stay small however many rows they are of: quantiles, numbers of distinct values, the best.

Quantiles: values are counted in buckets whose bounds grow by a factor, so that any value of a bucket is near all others
of it, relative to their size (DDSketch; Masson, Rim and Lee, 2019). Distinct values: of their hashes the longest run of
zeros is kept in each of 16,384 registers (HyperLogLog; Flajolet, Fusy, Gandouet and Meunier, 2007), of which only those
are stored that were hit, and which are estimated from as Ertl (2017) does, without tables of corrections.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import msgspec
import numpy as np
import polars as pl

from ..errors import UsageError
from .columns import AT, SEQUENCE, names_of
from .errors import UnsupportedExpression
from .hashing import hashed
from .keys import Ints
from .partials import Partial, Schema, filtered, type_of

_FAR = 1 << 40
"""The number of the bucket of one; that of the least number is still above that of zero."""
_INFINITE, _NOT_A_NUMBER = 1 << 50, 1 << 51
_GREATEST = math.log(np.finfo(np.float64).max)

_BITS = 14
"""So many bits of a hash choose a register."""
_REGISTERS = 1 << _BITS
_LONGEST = 64 - _BITS + 1
_GROUPS = 1 << 14
"""So many groups are estimated at a time."""


class Quantile(msgspec.Struct, frozen=True, eq=False):
    """A quantile that is asked for; see `quantile`."""

    value: pl.Expr
    q: float
    error: float


def quantile(value: pl.Expr | str, q: float, *, error: float = 0.01) -> Quantile:
    """An aggregate: the value at a rank, such as the 99th percentile, from a sketch that stays small.

    What it gives is at most ``error`` away from the value at rank ``floor(q * (n - 1))`` of the ``n`` values in order,
    relative to that value. Nulls are left out, NaN comes last. The same rows give the same result, in whatever batches.
    For the exact value (of rows that are then kept) there is ``pl.col(...).quantile(...)``.

    Args:
        value: A number of each row, which may be filtered.
        q: Between 0 and 1.
        error: The greatest relative error: 0.01 is one percent. With it, numbers between a millionth and a million take
            at most some 1,400 buckets.

    Example:
        >>> import millstream as ms
        >>> waits = ms.stream("calls", time="at").group_by("line").window(ms.tumbling("5m"))
        >>> slow = waits.agg(p50=ms.quantile("wait", 0.5), p99=ms.quantile("wait", 0.99))
    """
    if not isinstance(value, str | pl.Expr):
        raise UsageError(f"quantile of {value!r:.60}", hint="Give a column, or an expression: ms.quantile('wait', 0.5)")
    if not all(isinstance(number, int | float) for number in (q, error)):
        raise UsageError(f"a quantile of {q!r:.40}, error={error!r:.40}", hint="Give numbers, such as 0.99")
    if not 0 <= q <= 1:
        raise UsageError(f"a quantile of {q}", hint="Give a number between 0 and 1, such as 0.99")
    if not 1e-5 <= error < 0.5:
        raise UsageError(f"error={error} is not between 0.00001 and 0.5", hint="Use 0.01 for one percent")
    return Quantile(pl.col(value) if isinstance(value, str) else value, float(q), float(error))


class Sketch(Partial, frozen=True, eq=False):
    """How many values are in each bucket."""

    error: float = 0.01

    def of_rows(self, schema: Schema) -> pl.Expr:
        assert self.value is not None
        rows, condition = filtered(self.value)
        dtype = type_of(rows, schema)
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise UnsupportedExpression(
                f"quantile of {self.value}", "agg", f"values of type {dtype} have no quantile here", hint="Cast it"
            )
        buckets = _buckets(rows.cast(pl.Float64), self.error)
        if condition is not None:
            buckets = buckets.filter(condition)
        counts = buckets.drop_nulls().value_counts(name="n").struct.rename_fields(["bucket", "n"])
        return counts.cast(_COUNTS).implode().alias(self.name)

    def merged(self) -> pl.Expr:
        both = pl.col(self.name).explode().drop_nulls()
        both = both.sort_by(both.struct.field("bucket"))
        bucket, n = both.struct.field("bucket"), both.struct.field("n")
        ends = (bucket != bucket.shift(-1)).fill_null(True)
        total = n.cum_sum().filter(ends)
        counts = (total - total.shift(1, fill_value=0)).alias("n")
        return pl.struct(bucket.filter(ends).alias("bucket"), counts).implode().alias(self.name)


_COUNTS = pl.Struct({"bucket": pl.Int64(), "n": pl.Int64()})


def _buckets(value: pl.Expr, error: float) -> pl.Expr:
    """The number of each value's bucket, in the order of the values."""
    size = value.abs()
    # The least float has a logarithm of -745; divided by that of the factor it stays far above -_FAR.
    bucket = (size.log() / _width(error)).ceil().cast(pl.Int64, strict=False) + _FAR
    bucket = pl.when(size.is_infinite()).then(_INFINITE).otherwise(bucket)
    signed = pl.when(value > 0).then(bucket).when(value < 0).then(-bucket).when(value == 0).then(0)
    return pl.when(value.is_nan()).then(_NOT_A_NUMBER).otherwise(signed).cast(pl.Int64)


def _width(error: float) -> float:
    """The logarithm of the factor from one bound of a bucket to the next."""
    return math.log((1 + error) / (1 - error))


def quantile_of(sketch: pl.Expr, wanted: Quantile) -> pl.Expr:
    """The value at a rank, from sketches."""
    compute = partial(_at_rank, q=wanted.q, error=wanted.error)
    return sketch.map_batches(compute, return_dtype=pl.Float64(), is_elementwise=True)


def _at_rank(sketches: pl.Series, q: float, error: float) -> pl.Series:
    held = sketches.list.len().fill_null(0).to_numpy().astype(np.int64)
    ends = np.cumsum(held)
    flat = pl.DataFrame({"group": np.repeat(np.arange(len(held)), held)}).with_columns(
        sketches.filter(pl.Series(held > 0)).explode().alias("both")
    )
    flat = flat.unnest("both").sort("group", "bucket")
    bucket, counts = flat["bucket"].to_numpy(), flat["n"].to_numpy()
    reached = np.cumsum(counts)
    before = np.concatenate([[0], reached])[ends - held]
    total = np.concatenate([[0], reached])[ends] - before
    rank = before + np.floor(q * (total - 1)).astype(np.int64)
    some = held > 0
    place = np.minimum(reached.searchsorted(rank, side="right"), max(len(bucket) - 1, 0))
    values = np.full(len(held), np.nan)
    values[some] = _value(bucket[place[some]], error)
    return pl.Series(sketches.name, values).set(pl.Series(~some), None)


def _value(bucket: Ints, error: float) -> np.ndarray[Any, Any]:
    """A value that is near all of a bucket."""
    size = np.abs(bucket)
    power = (np.where(size < _INFINITE, size, _FAR) - _FAR) * _width(error) + math.log(1 - error)
    # The bucket of the greatest float reaches beyond it.
    middle = np.exp(np.minimum(power, _GREATEST))
    found = np.where(bucket == 0, 0.0, np.copysign(middle, bucket))
    found = np.where(size == _INFINITE, np.copysign(np.inf, bucket), found)
    return np.where(bucket == _NOT_A_NUMBER, np.nan, found)


class Registers(Partial, frozen=True, eq=False):
    """The registers that were hit, each with the longest run of zeros, as one number."""

    def of_rows(self, schema: Schema) -> pl.Expr:
        assert self.value is not None
        rows, condition = filtered(self.value)
        dtype = type_of(rows, schema)
        if dtype.is_nested() or dtype == pl.Time:
            # Here, since Polars makes an error of its own of what is raised inside of it.
            raise UnsupportedExpression(
                f"approx_n_unique of {self.value}", "agg", f"values of type {dtype} have no hash", hint="Make them text"
            )
        hits = rows.map_batches(_hits, return_dtype=pl.UInt32(), is_elementwise=True)
        return _longest(hits if condition is None else hits.filter(condition)).alias(self.name)

    def merged(self) -> pl.Expr:
        return _longest(pl.col(self.name).explode().drop_nulls()).alias(self.name)


def _hits(values: pl.Series) -> pl.Series:
    hashes = hashed(values)
    rest = hashes & np.uint64((1 << (64 - _BITS)) - 1)
    # Fifty bits are exact as a float, whose exponent is where the first of them stands.
    _, exponent = np.frexp(rest.astype(np.float64))
    run = _LONGEST - np.where(rest == 0, 0, exponent)
    register = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
    return pl.Series(values.name, (register * 64 + run).astype(np.uint32))


def _longest(hits: pl.Expr) -> pl.Expr:
    """Of each register the longest run."""
    found = hits.unique().sort()
    last = (found // 64 != found.shift(-1) // 64).fill_null(True)
    return found.filter(last).implode()


def distinct_of(registers: pl.Expr) -> pl.Expr:
    """About how many values have hit the registers."""
    return registers.map_batches(_estimated, return_dtype=pl.Int64(), is_elementwise=True)


def _estimated(registers: pl.Series) -> pl.Series:
    found = [_of_groups(registers[start : start + _GROUPS]) for start in range(0, len(registers), _GROUPS)]
    return pl.Series(registers.name, np.concatenate(found) if found else [], dtype=pl.Int64)


def _of_groups(registers: pl.Series) -> Ints:
    held = registers.list.len().fill_null(0).to_numpy().astype(np.int64)
    groups = np.repeat(np.arange(len(held)), held)
    runs = registers.filter(pl.Series(held > 0)).explode().to_numpy().astype(np.int64) & 63
    counts = np.bincount(groups * (_LONGEST + 1) + runs, minlength=len(held) * (_LONGEST + 1))
    counts = counts.reshape(len(held), _LONGEST + 1)
    weighed = counts @ (0.5 ** np.arange(_LONGEST + 1))
    empty = _REGISTERS - held
    return np.rint(_REGISTERS**2 / (2 * math.log(2)) / (_REGISTERS * _sigma(empty / _REGISTERS) + weighed)).astype(
        np.int64
    )


def _sigma(share: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ertl's correction for the share of registers that nothing has hit."""
    total, power, factor = share.copy(), share.copy(), 1.0
    for _ in range(64):
        power = power * power
        more = total + power * factor
        if (more == total).all():
            break
        total, factor = more, factor * 2
    # Where nothing was hit at all, nothing was there.
    return np.where(share >= 1, np.inf, total)


class Best(Partial, frozen=True, eq=False):
    """The greatest or the least values; of equal ones those that came first in order of time."""

    rows: int = 1
    by: pl.Expr | None = None
    descending: bool = True

    @property
    def reads(self) -> set[str]:
        return super().reads | names_of([self.by] if self.by is not None else ())

    def of_rows(self, schema: Schema) -> pl.Expr:
        assert self.value is not None
        rows, condition = filtered(self.value)
        by = rows if self.by is None else self.by
        placed = pl.struct(rows.alias("value"), by.alias("by"), pl.col(AT).alias("at"), pl.col(SEQUENCE).alias("place"))
        return self._chosen(placed if condition is None else placed.filter(condition))

    def merged(self) -> pl.Expr:
        return self._chosen(pl.col(self.name).explode().drop_nulls())

    def _chosen(self, placed: pl.Expr) -> pl.Expr:
        by = [placed.struct.field(name) for name in ("by", "at", "place")]
        ordered = placed.sort_by(by, descending=[self.descending, False, False], nulls_last=True, maintain_order=True)
        return ordered.head(self.rows).implode().alias(self.name)


def best_of(placed: pl.Expr) -> pl.Expr:
    """The values alone, best first."""
    return placed.list.eval(pl.element().struct.field("value"))
