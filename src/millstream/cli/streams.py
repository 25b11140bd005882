"""``millstream streams``: what streams there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..errors import StreamNotFound
from .options import LogPath, OutputFormat, open_to_read
from .output import chosen, write_rows

if TYPE_CHECKING:
    from ..storage.base import StreamInfo

_FIELDS = ("stream", "events", "first", "last", "time", "closed")


def streams(
    log: LogPath,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="STREAM",
            help="A stream, or the beginning of names followed by *, such as 'account-*'. Default: all.",
            show_default=False,
        ),
    ] = "*",
    limit: Annotated[
        Optional[int],  # noqa: UP045 - read at run time
        typer.Option("--limit", "-n", metavar="N", min=0, help="At most so many. Default: all, or 50 in a table."),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """List the streams, in order of name.

    For each: how many events it has, the positions of its first and last
    event, the time of the last, and whether it is closed.

    \bExamples:
      $ millstream streams shop.db
      $ millstream streams shop.db 'account-*' --limit 20
      $ millstream streams shop.db account-1 --output json
    """
    with open_to_read(log) as source:
        found = source.streams(pattern)
        if not pattern.endswith("*"):
            known = list(found)
            if not known:
                raise StreamNotFound(pattern)
            found = iter(known)
        more = "See more with --limit or --output ndjson."
        write_rows(_rows(found), _FIELDS, chosen(output), limit=limit, more=more)


def _rows(found: Iterable[StreamInfo]) -> Iterator[dict[str, Any]]:
    from ..time import iso

    for info in found:
        yield {
            "stream": info.name,
            "events": info.version,
            "first": info.first_position,
            "last": info.last_position,
            "time": iso(info.last_recorded),
            "closed": info.closed,
        }
