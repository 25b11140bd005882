"""SQL over streams and tables, by DuckDB. It is handed Arrow and never opens the log's file itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ..errors import InvalidQuery, InvalidStreamName, MissingExtra, NotFound, StreamNotFound
from ..storage.forked import check_frames

if TYPE_CHECKING:
    from .reading import Reader


def sql(log: Reader, query: str) -> pl.DataFrame:
    """See `Log.sql`."""
    check_frames()
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtra("sql", "duckdb") from error
    # What a query may reach is what the log hands over: no files, no network, no extensions.
    connection = duckdb.connect(
        ":memory:", config={"enable_external_access": "false", "autoinstall_known_extensions": "false"}
    )
    try:
        connection.execute("set python_enable_replacements = false")
        connection.execute("set TimeZone = 'UTC'")  # the same answer on every machine
        head = log.head  # one moment for all streams, whoever appends meanwhile
        names = _tables(connection, query)
        if any(_is_stream(log, name) for name in names):
            _check_case("streams", names)
        for name in names:
            relation = _relation(log, name, head)
            _check_case(f"columns of {name!r}", relation.column_names)
            connection.register(name, relation)
        found = connection.sql(query).to_arrow_table()
        if len(set(found.column_names)) < len(found.column_names):
            twice = next(name for name in found.column_names if found.column_names.count(name) > 1)
            raise InvalidQuery(f"two columns are named {twice!r}", hint="Give one of them another name: … AS other")
        return _framed(found)
    except duckdb.Error as error:
        said, candidates, _ = str(error).partition("Candidate functions:")
        hint = "The query is in DuckDB's dialect of SQL"
        if candidates and "VARCHAR" in said:
            hint = "Cast text, as in amount::decimal(18, 2): decimals and times of events without a class here are text"
        raise InvalidQuery(said.strip(), hint=hint) from error
    finally:
        connection.close()


def _framed(table: Any) -> pl.DataFrame:
    """An answer as a frame: intervals of days and less are durations, which is what Polars has."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            interval = str(column.type) == "month_day_nano_interval"
            columns[name] = _durations(name, column) if interval else pl.Series(name, column)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise InvalidQuery(
                f"column {name!r} is of the type {column.type}, which a frame does not have",
                hint="Cast it, as in x::varchar",
            ) from error
    return pl.DataFrame(columns)


_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])
_MOST_DAYS = 100_000_000


def _durations(name: str, column: Any) -> pl.Series:
    """A column of intervals as one of durations.

    Raises:
        InvalidQuery: One of them counts months, which have no one length, or is too long.
    """
    pieces = [pl.Series(name, [], dtype=pl.Duration("us"))]
    for chunk in column.chunks:
        there = chunk.is_valid().to_numpy(zero_copy_only=False)
        held = np.frombuffer(chunk.buffers()[1], _INTERVAL)[chunk.offset : chunk.offset + len(chunk)]
        held = np.where(there, held, np.zeros((), _INTERVAL))
        if held["months"].any() or (np.abs(held["days"].astype(np.int64)) > _MOST_DAYS).any():
            raise InvalidQuery(
                f"column {name!r} is an interval of months, which are not all of one length, or of too many days",
                hint="Cast it, as in x::varchar, or ask for a number: date_diff('month', a, b)",
            )
        micros = held["days"].astype(np.int64) * 86_400_000_000 + held["nanos"] // 1000
        pieces.append(pl.Series(name, micros).set(pl.Series(~there), None).cast(pl.Duration("us")))
    return pl.concat(pieces)


def _check_case(what: str, names: Iterable[str]) -> None:
    """Refuse names that only case tells apart: DuckDB would take one for the other."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise InvalidQuery(
                f"{what} {min(name, other)!r} and {max(name, other)!r} differ in case alone, which SQL does not see",
                hint="Ask for one of them at a time; or read with log.scan(…), which tells them apart",
            )


def _tables(connection: Any, query: str) -> set[str]:
    """The names of tables that a query refers to and does not define itself."""
    text = connection.execute("select json_serialize_sql($1::varchar)", [query]).fetchall()[0][0]
    tree = json.loads(text)
    if tree.get("error"):
        said = tree.get("error_message", "the query cannot be read")
        if tree.get("error_type") == "not implemented":  # what is no SELECT cannot be told as JSON
            said = "only queries are answered"
        raise InvalidQuery(said, hint="Give one SELECT statement, in DuckDB's dialect")
    if len(tree["statements"]) != 1:
        raise InvalidQuery(
            f"these are {len(tree['statements'])} statements", hint="Give one SELECT statement, in DuckDB's dialect"
        )
    names: set[str] = set()
    defined: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "BASE_TABLE" and not node.get("schema_name"):
                names.add(node["table_name"])
            if "cte_map" in node:
                defined.update(entry["key"] for entry in node["cte_map"].get("map", []))
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(tree)
    own = {name.lower() for name in defined}  # which are told apart as DuckDB does it
    return {name for name in names if name.lower() not in own}


def _is_stream(log: Reader, name: str) -> bool:
    try:
        return name.endswith("*") or log.version(name) > 0
    except InvalidStreamName:
        return False  # it may be a table's


def _relation(log: Reader, name: str, head: int) -> Any:
    try:
        return _handed(log.scan(name, envelope=True).filter(pl.col("_position") <= head).collect(), name)
    except (StreamNotFound, InvalidStreamName):
        with log.connect() as database:
            table = database.find_table(name)
            if table is None:
                raise NotFound(
                    f"there is no stream or table {name!r}", hint="List the streams with log.streams()"
                ) from None
            return _handed(database.frame(f"select * from {table}"), name)


def _handed(frame: pl.DataFrame, name: str) -> Any:
    odd = [column for column in frame.columns if "\0" in column]
    if odd:
        raise InvalidQuery(
            f"a column of {name!r} has a name that SQL cannot say: {odd[0]!r}", hint="Read it with log.scan(…)"
        )
    return frame.to_arrow()
