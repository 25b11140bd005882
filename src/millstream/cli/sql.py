"""``millstream sql``: questions in SQL."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import KeysFile, LogPath, Modules, OutputFormat, import_modules, open_to_read
from .output import chosen, write_rows

if TYPE_CHECKING:
    import polars as pl

_ROWS = 4_096


def sql(
    log: LogPath,
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="One SELECT in DuckDB's dialect; - reads it from stdin.")
    ],
    limit: Annotated[
        Optional[int],  # noqa: UP045 - read at run time
        typer.Option("--limit", "-n", metavar="N", min=0, help="At most so many rows. Default: all, or 50 in a table."),
    ] = None,
    modules: Modules = None,
    keys: KeysFile = None,
    output: OutputFormat = None,
) -> None:
    """Ask a question in SQL over streams and tables.

    A stream is a table by its name (in double quotes when it holds other than
    letters, digits and _). It has a column for each field of its events, and
    _position, _stream, _version, _type and _time; a category is a table, too:
    "account-*". The log's own tables, such as read models, go by their names.
    Decimals, times and the like of events are text where their class is not
    known: cast them, or name the module that has it, as in --import shop.events.
    Needs DuckDB: pip install 'millstream\\[sql]'.

    \bExamples:
      $ millstream sql shop.db 'select page, count(*) from clicks group by 1'
      $ millstream sql shop.db 'select sum(amount) from "account-1"' --output csv
      $ millstream sql shop.db 'select distinct _stream from "account-*"'
    """
    if query == "-":
        query = sys.stdin.read()
    import_modules(modules)
    with open_to_read(log, keys=keys) as source:
        frame = source.sql(query)
    more = "See more with --limit or --output ndjson."
    write_rows(_rows(frame), frame.columns, chosen(output), limit=limit, more=more)


def _rows(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    from ..frames import python_values

    with python_values("the answer"):
        for piece in frame.iter_slices(_ROWS):
            yield from piece.iter_rows(named=True)
