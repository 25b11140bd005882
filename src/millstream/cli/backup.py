"""``millstream backup``: a copy of the log while it is in use."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .options import LogPath, OutputFormat, open_to_read
from .output import chosen, write_record


def backup(
    log: LogPath,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The copy: a new file.", show_default=False)],
    output: OutputFormat = None,
) -> None:
    """Copy the whole log, as it is at one moment, to a new file.

    Others go on reading and writing meanwhile. The copy appears under its name
    when it is whole and on disk; it is a log like any other. A file that is
    there already is left alone.

    \bExamples:
      $ millstream backup shop.db shop-monday.db
      $ millstream backup shop.db copy.db && millstream verify copy.db
    """
    with open_to_read(log) as source:
        source.backup(file)
    with open_to_read(file) as copy:
        position = copy.head
    write_record({"file": file, "position": position, "bytes": os.path.getsize(file)}, chosen(output))
