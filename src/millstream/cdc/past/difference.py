"""What differs between a table at two moments."""

from __future__ import annotations

import polars as pl

from .state import TableState

CHANGE, COLUMNS, BEFORE, AFTER = "_change", "_columns", "_before", "_after"
"""The columns of the answer beside the key."""


def difference(first: TableState, second: TableState) -> pl.DataFrame:
    """See `millstream.cdc.diff`."""
    was, now = first.frame(), second.frame()
    key = [name for name in second.about.key if name in was.columns and name in now.columns]
    if key != second.about.key or key != first.about.key or any(f[k].null_count() for f in (was, now) for k in key):
        key = []  # rows of another key, or of none, cannot be told to be the same
    was, now = _alike(was, now)
    return _keyed(was, now, key) if key else _counted(was, now)


def _alike(was: pl.DataFrame, now: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both with equal types in the columns that they share: text, where these differ."""
    for name in was.columns:
        if name in now.columns and was.schema[name] != now.schema[name]:
            if pl.Null in (was.schema[name], now.schema[name]):
                dtype = now.schema[name] if was.schema[name] == pl.Null else was.schema[name]
            elif was.schema[name].is_numeric() and now.schema[name].is_numeric():
                dtype = _wider(was[name], now[name])
            else:
                dtype = pl.String()
            was, now = (_cast(frame, name, dtype) for frame in (was, now))
    return was, now


def _wider(one: pl.Series, other: pl.Series) -> pl.DataType:
    return pl.concat([one.clear().to_frame(), other.clear().to_frame()], how="vertical_relaxed")[one.name].dtype


def _cast(frame: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.DataFrame:
    column = frame[name]
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        texts = [None if value is None else str(value) for value in column.to_list()]
        return frame.with_columns(pl.Series(name, texts, dtype=pl.String))
    return frame.with_columns(column.cast(dtype))


def _keyed(was: pl.DataFrame, now: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    shared = [name for name in now.columns if name in was.columns and name not in key]
    own = [name for name in (*was.columns, *now.columns) if name not in key and name not in shared]
    one = was.select(*key, pl.struct(pl.all()).alias(BEFORE))
    both = one.join(now.select(*key, pl.struct(pl.all()).alias(AFTER)), on=key, how="full", coalesce=True)
    before, after = pl.col(BEFORE), pl.col(AFTER)
    differs = [
        pl.when(before.struct.field(name).ne_missing(after.struct.field(name))).then(pl.lit(name)) for name in shared
    ]
    gained = [pl.lit(name) for name in own]
    columns = pl.concat_list([*differs, *gained]).list.drop_nulls() if differs or gained else pl.lit([])
    both = both.with_columns(
        pl.when(before.is_null()).then(pl.lit("added")).when(after.is_null()).then(pl.lit("removed"))
        .otherwise(pl.lit("changed")).alias("\0change"),
        pl.when(before.is_null() | after.is_null()).then(None).otherwise(columns).alias("\0columns"),
    )  # fmt: skip
    changed = both.filter((pl.col("\0change") != "changed") | (pl.col("\0columns").list.len() > 0))
    found = changed.select(
        *key,
        pl.col("\0change").alias(CHANGE),
        pl.col("\0columns").alias(COLUMNS).cast(pl.List(pl.String)),
        BEFORE,
        AFTER,
    )
    return found if any(found[name].dtype.is_nested() for name in key) else found.sort(key)


def _counted(was: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Rows without a key: so many times more, or fewer."""
    names = [*now.columns, *[name for name in was.columns if name not in now.columns]]
    schema = {name: (now if name in now.columns else was).schema[name] for name in names}

    def counts(frame: pl.DataFrame, sign: int) -> pl.DataFrame:
        missing = [pl.lit(None, dtype=schema[name]).alias(name) for name in names if name not in frame.columns]
        whole = frame.with_columns(missing).select(names)
        return whole.group_by(names, maintain_order=True).agg((pl.len().cast(pl.Int64) * sign).alias("\0count"))

    both = (
        pl.concat([counts(was, -1), counts(now, 1)]).group_by(names, maintain_order=True).agg(pl.col("\0count").sum())
    )
    both = both.filter(pl.col("\0count") != 0)
    row, times = pl.struct(names), pl.col("\0count")
    found = both.select(
        pl.when(times > 0).then(pl.lit("added")).otherwise(pl.lit("removed")).alias(CHANGE),
        pl.lit(None, dtype=pl.List(pl.String)).alias(COLUMNS),
        pl.when(times < 0).then(row).alias(BEFORE),
        pl.when(times > 0).then(row).alias(AFTER),
    )
    rows = [index for index, count in enumerate(both["\0count"]) for _ in range(abs(count))]
    return found[rows]
