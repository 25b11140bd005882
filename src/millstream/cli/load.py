"""``millstream load``: put files of rows into a stream."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Optional

import typer

from .options import LogPath, OutputFormat, Tags, open_to_write
from .output import chosen, write_record


class Rows(StrEnum):
    """What files hold."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


def load(
    log: LogPath,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES...", help="Files, or patterns such as 'past/*.csv.gz'.", show_default=False),
    ],
    stream: Annotated[
        str, typer.Option("--stream", "-s", metavar="STREAM", help="The stream to append to.", show_default=False)
    ],
    type: Annotated[
        str, typer.Option("--type", "-t", metavar="TYPE", help="The type of the events.", show_default=False)
    ],
    format: Annotated[
        Optional[Rows],  # noqa: UP045 - read at run time
        typer.Option("--format", metavar="ndjson|csv|parquet", help="Default: as the names end.", show_default=False),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option(
            "--name",
            metavar="NAME",
            help="Remember under it what was loaded. Default: the stream.",
            show_default=False,
        ),
    ] = None,
    tag: Tags = None,
    output: OutputFormat = None,
) -> None:
    """Append the rows of files to a stream, each once: a flow's past.

    NDJSON, CSV with a line of names, or Parquet; packed with gzip or zstd, too.
    File by file in the order of their paths. What was loaded is remembered: a
    load that was ended goes on where it was, and one that is done again takes
    only files that are new. The log is created when there is no file.

    \bExamples:
      $ millstream load shop.db 'clicks*.parquet' -s clicks -t Click
      $ millstream load shop.db 'past*.csv.gz' -s visits -t Visit --tag past
    """
    from ..streams import files as rows_of

    past = rows_of(*files, format=None if format is None else format.value)
    past.names()
    with open_to_write(log, create=True) as target:
        count = past.load(target, stream, type=type, name=name, tags=tag or [])
        head = target.head
    write_record({"stream": stream, "rows": count, "head": head}, chosen(output))
