"""``millstream compact``: many small bodies into few large ones."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .options import LogPath, OutputFormat, open_to_write
from .output import chosen, write_record


def compact(
    log: LogPath,
    stream: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(
            metavar="STREAM",
            help="Only this stream, or a category such as 'sensor-*': its single events are merged, too.",
            show_default=False,
        ),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """Merge the bodies of many small appends into few large ones.

    Positions, versions, ids and hashes stay as they are; reading is quicker and
    the log smaller. Others go on reading and writing meanwhile, and it can be
    stopped at any time. Without a stream, single events are left as they are.

    \bExamples:
      $ millstream compact shop.db
      $ millstream compact shop.db clicks
    """
    with open_to_write(log, create=False) as target:
        found = target.compact(stream)
    write_record({"runs": found.runs, "bodies": found.bodies}, chosen(output))
