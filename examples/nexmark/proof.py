"""Whether what a flow gives is what DuckDB gives for the same query: row by row, each as often."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl

import millstream as ms

from .queries import Query

SQL = Path(__file__).parent / "sql"
TABLES = ("person", "auction", "bid", "side_input")


def side_input(log: ms.Log) -> None:
    """Append the table that q13 looks things up in."""
    key = pl.int_range(10_000, eager=True).alias("key")
    log.append("side_input", pl.select(key, value=pl.format("value-{}", key)), type="NexmarkSideInput")


def answer(query: Query, given: pl.DataFrame) -> pl.DataFrame:
    """What a flow's rows come to: all of them, or the table that they have changed."""
    keys = list(query.last_of)
    return given.unique(subset=keys, keep="last", maintain_order=True) if keys else given


def differences(log: ms.Log, name: str, found: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that DuckDB has and the flow has not, and those that the flow has and DuckDB has not."""
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        for table in TABLES:
            db.register(table, log.scan(table, envelope=True).collect().to_arrow())
        db.register("found", found.to_arrow())
        columns = ", ".join(f'"{column}"' for column in found.columns)
        db.execute(f"create temp table expected as {(SQL / f'{name}.sql').read_text()}")
        width = db.sql("select * from expected limit 0").columns
        if sorted(width) != sorted(found.columns):
            raise AssertionError(f"{name} has columns {width} in SQL, and {found.columns} here")
        missing = db.sql(f"select {columns} from expected except all select {columns} from found").pl()
        excess = db.sql(f"select {columns} from found except all select {columns} from expected").pl()
    return missing, excess
