"""``millstream trim``: drop, or archive, what the rules no longer keep."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .options import By, LogPath, OutputFormat, open_to_read, open_to_write
from .output import chosen, write_rows

_FIELDS = ("stream", "events", "runs", "first", "last", "size", "rule", "archive")


def trim(
    log: LogPath,
    stream: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(
            metavar="STREAM",
            help="Only this stream, or a category such as 'sensor-*'. Default: all that have rules.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--keep",
            metavar="KEEP",
            help="Keep so much of STREAM, this once, whatever the rules say: 30d, 1000000 or 10GB.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would go.")] = False,
    by: By = None,
    output: OutputFormat = None,
) -> None:
    """Drop the data that the rules no longer keep, or archive it.

    Positions, versions and hashes stay, and `millstream verify` says what was
    trimmed, by whom and when. Others go on reading and writing meanwhile, and
    it can be stopped at any time. The rules: `millstream retain`.

    \bExamples:
      $ millstream trim shop.db --dry-run
      $ millstream trim shop.db
      $ millstream trim shop.db clicks --keep 1000000
    """  # fmt: skip
    with open_to_read(log) if dry_run else open_to_write(log, create=False) as target:
        done = target.trim(stream, keep=keep, dry_run=dry_run, by=by)
    write_rows(done.streams, _FIELDS, chosen(output))
