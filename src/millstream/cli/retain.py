"""``millstream retain``: how much of which streams is kept."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..errors import UsageError
from .options import By, LogPath, OutputFormat, open_to_read, open_to_write
from .output import chosen, write_record, write_rows

_FIELDS = ("pattern", "keep", "archive", "by")


def retain(
    log: LogPath,
    stream: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(
            metavar="STREAM",
            help="A stream, or a category such as 'sensor-*'. Default: list the rules.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--keep",
            metavar="KEEP",
            help="An age (30d), a number of events (1000000) or a size (10GB).",
            show_default=False,
        ),
    ] = None,
    archive: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--archive",
            metavar="PLACE",
            help="Where the rest goes: a folder, or a URL such as s3://bucket/prefix. Default: it is dropped.",
            show_default=False,
        ),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the rule.")] = False,
    by: By = None,
    output: OutputFormat = None,
) -> None:
    """Say how much of a stream is kept, or list what was said.

    A rule changes nothing by itself: `millstream trim` does what the rules say.
    Each stream of a category keeps as much; the most exact rule for a stream
    counts. Without a rule nothing is ever dropped.

    \bExamples:
      $ millstream retain shop.db clicks --keep 30d
      $ millstream retain shop.db 'sensor-*' --keep 10GB --archive ./old
      $ millstream retain shop.db
    """  # fmt: skip
    if stream is None:
        if keep is not None or archive is not None or off:
            raise UsageError("no stream is named", hint="Name the stream that the rule is about")
        with open_to_read(log) as source:
            write_rows(source.rules(), _FIELDS, chosen(output))
        return
    if (keep is None) != off:
        raise UsageError("either --keep or --off is needed", hint="Say how much to keep, such as --keep 30d")
    with open_to_write(log, create=False) as target:
        target.retain(stream, keep, archive=archive, by=by)
        rules = {rule.pattern: rule for rule in target.rules()}
    rule = rules.get(stream)
    record = {"pattern": stream} if rule is None else {name: getattr(rule, name) for name in _FIELDS}
    write_record(record, chosen(output))
