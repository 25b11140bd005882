"""How frames become rows of a table: the statements, and the values as SQLite takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import polars as pl

from ..errors import UsageError


def quoted(name: str) -> str:
    """A name as a statement has it; a dot sets a schema apart from its table."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def insert_sql(table: str, columns: Sequence[str], mark: str) -> str:
    """The statement that inserts one row; each value is a parameter, written ``mark``."""
    names = ", ".join(quoted_column(name) for name in columns)
    return f"insert into {quoted(table)} ({names}) values ({', '.join([mark] * len(columns))})"


def on_conflict(table: str, columns: Sequence[str], key: Sequence[str], add: Iterable[str]) -> str:
    """The end of such a statement: what becomes of the row that has the key already."""
    added = set(add)
    changes = []
    for name in columns:
        column = quoted_column(name)
        if name in added:
            changes.append(f"{column} = {quoted(table)}.{column} + excluded.{column}")
        elif name not in key:
            changes.append(f"{column} = excluded.{column}")
    action = f"do update set {', '.join(changes)}" if changes else "do nothing"
    return f" on conflict ({', '.join(quoted_column(name) for name in key)}) {action}"


def upsert_sql(table: str, columns: Sequence[str], key: Sequence[str], add: Iterable[str], mark: str) -> str:
    """The statement that inserts one row, or changes the one that has its key."""
    return insert_sql(table, columns, mark) + on_conflict(table, columns, key, add)


def quoted_column(name: str) -> str:
    """A column's name as a statement has it."""
    return '"' + name.replace('"', '""') + '"'


def check_upsert(frame: pl.DataFrame, key: str | Sequence[str], add: Sequence[str], *, exact: bool) -> list[str]:
    """The names of the key's columns.

    Args:
        exact: Whether the database adds decimals without loss.

    Raises:
        UsageError: The frame lacks one that is named, or one to be added cannot be.
    """
    keys = [key] if isinstance(key, str) else list(key)
    if not keys or isinstance(add, str):
        raise UsageError("an upsert needs a key, and a list of what is to be added", hint='key="id", add=["n"]')
    for name in (*keys, *add):
        if name not in frame.columns:
            raise UsageError(f"the frame has no column {name!r}", hint=f"It has {', '.join(frame.columns)}")
    for name in add:
        dtype = frame.schema[name]
        if not dtype.is_numeric() or (isinstance(dtype, pl.Decimal) and not exact):
            raise UsageError(
                f"column {name!r} is {dtype}, which this database does not add exactly",
                hint="Keep whole numbers, such as cents",
            )
    return keys


def plain_rows(frame: pl.DataFrame) -> Iterable[tuple[Any, ...]]:
    """The rows of a frame, each value as SQLite keeps it."""
    return zip(*[_plain(frame[name]).to_list() for name in frame.columns], strict=True)


def _plain(series: pl.Series) -> pl.Series:
    dtype = series.dtype
    if isinstance(dtype, pl.Decimal | pl.Date | pl.Categorical | pl.Enum):
        return series.cast(pl.String)
    if isinstance(dtype, pl.Datetime):
        # In UTC, all of one length: so they sort as text.
        if dtype.time_zone not in (None, "UTC"):
            series = series.dt.convert_time_zone("UTC")
        return series.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f" + ("Z" if dtype.time_zone else ""))
    if isinstance(dtype, pl.Time):
        return series.dt.strftime("%H:%M:%S%.6f")
    if isinstance(dtype, pl.Duration):
        return series.dt.total_microseconds()
    if isinstance(dtype, pl.Struct | pl.List | pl.Array):
        texts = [None if value is None else _encode(value).decode() for value in series.to_list()]
        return pl.Series(series.name, texts, dtype=pl.String)
    return series


_encode = msgspec.json.Encoder(enc_hook=str).encode
