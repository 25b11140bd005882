"""State with a row for each key, of which the newest counts.

A step adds a part with the rows that it changed, so that a checkpoint costs what the batch touched; merging keeps
the newest row of each key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from .columns import key_column, need
from .lanes import Asked, hashes_of, plain
from .state import Parts, concat

_ONE = "__one"


def marked(rows: pl.DataFrame, keys: Sequence[str], where: str) -> pl.DataFrame:
    """Rows with these keys as their hidden key columns, and no others."""
    need(keys, rows.columns, where)
    rows = rows.with_columns(pl.col(key).alias(key_column(i)) for i, key in enumerate(keys))
    return rows.drop(name for name in rows.columns if name.startswith("__key") and int(name[5:]) >= len(keys))


def held_of(parts: Parts, asked: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame | None:
    """The newest row of each of some keys; None when there is no state at all."""
    if not parts.items:
        return None
    if not keys:
        return concat(part.frame for part in parts.items).tail(1)
    return newest(concat(among(parts, asked, keys)), keys)


def among(parts: Parts, asked: pl.DataFrame, keys: Sequence[str]) -> list[pl.DataFrame]:
    """The rows of some keys, oldest first for each key; without keys, all. Of what is in lanes only they are read."""
    if not keys:
        return [part.frame for part in parts.items]
    wanted = asked.select(keys).unique()
    laned = [part for part in parts.items if part.lane is not None]
    found = [part.frame for part in parts.items if part.lane is None]
    if laned:
        hashes = hashes_of(wanted, keys)
        assert hashes is not None, "what has lanes has hashes"
        sought = Asked(hashes)
        some = [frame for part in laned if (frame := part.among(sought)) is not None]
        if some or not found:
            found.insert(0, plain(concat(some)) if some else pl.DataFrame(schema=laned[0].schema))
    return [frame.join(wanted, on=list(keys), how="semi", nulls_equal=True) for frame in found]


def begins(keys: Sequence[str]) -> pl.Expr:
    """Whether a row is the first of its key, of rows that are sorted by key."""
    first = pl.int_range(pl.len()) == 0
    return pl.any_horizontal(first, *(pl.col(key).ne_missing(pl.col(key).shift(1)) for key in keys))


def beside(
    frame: pl.DataFrame,
    other: pl.DataFrame,
    keys: Sequence[str],
    *,
    how: Literal["left", "inner"] = "left",
    nulls_equal: bool = True,
    suffix: str = "_right",
) -> pl.DataFrame:
    """Rows, in their order, with those of their key in another frame."""
    on = list(keys)
    if len(on) == 1 and frame.schema[on[0]].is_float():
        # Polars joins a column that it knows to be sorted, as one value always is, by merging; and there no NaN meets
        # another. Two columns it joins by their hash.
        on = [*on, _ONE]
        frame, other = (each.with_columns(pl.lit(0, pl.Int8).alias(_ONE)) for each in (frame, other))
    found = frame.join(other, on=on, how=how, nulls_equal=nulls_equal, suffix=suffix, maintain_order="left")
    return found.drop(on[len(keys) :])


def newest(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The newest row of each key; what stands later is newer."""
    if not keys:
        return frame.tail(1)
    return frame.unique(subset=list(keys), keep="last", maintain_order=True)


def put(parts: Parts, rows: pl.DataFrame, keys: Sequence[str], touched: str) -> Parts:
    """With new rows of some keys; ``touched`` is the column with the time by which they run out."""
    if not rows.height:
        return parts
    return parts.add_by(rows, touched).compact(lambda frame: newest(frame, keys), by=keys)
