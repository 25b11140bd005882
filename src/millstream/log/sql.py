"""SQL over streams and tables, by DuckDB. It is handed Arrow and never opens the log's file itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from ..errors import InvalidQuery, MissingExtra, NotFound, StreamNotFound

if TYPE_CHECKING:
    from .reading import Reader


def sql(log: Reader, query: str) -> pl.DataFrame:
    """See `Log.sql`."""
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
        head = log.head  # one moment for all streams, whoever appends meanwhile
        names = _tables(connection, query)
        if any(name.endswith("*") or log.version(name) for name in names):
            _check_case("streams", names)
        for name in names:
            relation = _relation(log, name, head)
            _check_case(f"columns of {name!r}", relation.column_names)
            connection.register(name, relation)
        found = connection.sql(query).to_arrow_table()
        if len(set(found.column_names)) < len(found.column_names):
            twice = next(name for name in found.column_names if found.column_names.count(name) > 1)
            raise InvalidQuery(f"two columns are named {twice!r}", hint="Give one of them another name: … AS other")
        return pl.DataFrame(found)
    except duckdb.Error as error:
        said, candidates, _ = str(error).partition("Candidate functions:")
        hint = "The query is in DuckDB's dialect of SQL"
        if candidates and "VARCHAR" in said:
            hint = "Cast text, as in amount::decimal(18, 2): decimals and times of events without a class here are text"
        raise InvalidQuery(said.strip(), hint=hint) from error
    finally:
        connection.close()


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


def _relation(log: Reader, name: str, head: int) -> Any:
    try:
        return log.scan(name, envelope=True).filter(pl.col("_position") <= head).collect().to_arrow()
    except StreamNotFound:
        with log.connect() as database:
            table = database.find_table(name)
            if table is None:
                raise NotFound(
                    f"there is no stream or table {name!r}", hint="List the streams with log.streams()"
                ) from None
            return database.frame(f"select * from {table}").to_arrow()
