"""The engine that a flow is checked by: DuckDB, which is handed numbered columns and never a user's names."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Self

import polars as pl

from ...errors import MissingExtra
from ..errors import CannotCheck

AT, PLACE, ROW, LATE = "__at", "__place", "__row", "__late"
"""The hidden columns of a relation: event time, what breaks ties of it, the row's number, whether it is late."""

END = 2**62
NEVER = -(2**62)
"""A watermark that has passed everything, and one that has passed nothing."""


class Engine(AbstractContextManager["Engine"]):
    """A database in memory for one check; keeps what it was asked."""

    def __init__(self) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise MissingExtra("sql", "duckdb") from error
        self._error = duckdb.Error
        self._db = duckdb.connect(":memory:")
        self._db.execute("set timezone = 'UTC'")
        self.name = f"DuckDB {duckdb.__version__}, row-wise expressions by Polars {pl.__version__}"
        self.asked: list[str] = []

    def ask(self, query: str, **tables: pl.DataFrame) -> pl.DataFrame:
        """The answer to a query over these tables.

        Raises:
            CannotCheck: DuckDB cannot do it, such as with a type that it does not know.
        """
        self.asked.append(query)
        try:
            for name, frame in tables.items():
                self._db.register(name, frame.to_arrow())
            found = self._db.sql(query).to_arrow_table()
            # Polars ends the thread over a span of months, days and microseconds.
            if any("interval" in str(field.type) for field in found.schema):
                raise CannotCheck("a length of time", "DuckDB gives it in months and days")
            return pl.DataFrame(found)
        except (self._error, pl.exceptions.PolarsError, ValueError) as error:  # the last: what Arrow does not know
            raise CannotCheck("a value", str(error).split("\n", 1)[0]) from error
        finally:
            for name in tables:
                self._db.unregister(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()


def keyed(rows: pl.DataFrame, keys: Iterable[pl.Expr | str], **more: pl.Expr) -> pl.DataFrame:
    """Rows as SQL sees them: their number, time and place, their keys as ``k0``, ``k1``…, and more columns."""
    table = rows.with_row_index(ROW).select(
        pl.col(ROW).cast(pl.Int64).alias("rn"),
        pl.col(AT).alias("ts"),
        pl.col(PLACE).alias("place"),
        *((pl.col(key) if isinstance(key, str) else key).alias(f"k{number}") for number, key in enumerate(keys)),
        *(value.alias(name) for name, value in more.items()),
    )
    spans = [
        name for name in table.columns if name[:1] == "k" and name[1:].isdigit() and table.schema[name] == pl.Duration
    ]
    return table.with_columns(pl.col(name).to_physical() for name in spans)


def names(count: int, table: str = "", *, first: str = "") -> str:
    """The key columns of a table, as a list; ``first`` goes before, or ``1`` where there would be none."""
    dot = f"{table}." if table else ""
    return ", ".join([*([first] if first else []), *(f"{dot}k{number}" for number in range(count))]) or "1"


def equal(count: int, one: str, other: str, sign: str = "=") -> str:
    """That two tables agree in their keys."""
    return " and ".join([f"{one}.k{n} {sign} {other}.k{n}" for n in range(count)]) or "true"


def key(number: int) -> str:
    """The name under which a key travels, as the flow's own do: unseen, whatever ``select`` leaves out."""
    return f"__key{number}"


def keys_of(rows: pl.DataFrame) -> list[str]:
    """The keys that travel unseen."""
    return sorted(name for name in rows.columns if name.startswith("__key"))


def with_keys(rows: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
    """Rows that these columns, and no others, are the keys of from here on."""
    kept = rows.drop(keys_of(rows))
    return kept.with_columns(pl.col(name).alias(key(number)) for number, name in enumerate(columns))
