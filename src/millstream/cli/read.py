"""``millstream read``: events of the log, of a stream, of a range."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..errors import InvalidPosition
from .options import KeysFile, LogPath, OutputFormat, Pattern, RangeText, Types, check_stream, open_to_read
from .output import chosen, write_rows

FIELDS = ("position", "time", "stream", "version", "type", "effective", "tags", "metadata", "data")


def read(
    log: LogPath,
    stream: Pattern = None,
    range: RangeText = None,
    versions: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option(
            "--versions", metavar="RANGE", help="The same by versions of the stream: 3:5 is versions 3 and 4."
        ),
    ] = None,
    type: Types = None,
    backwards: Annotated[bool, typer.Option("--backwards", "-b", help="The last event first.")] = False,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", "-n", metavar="N", min=0, help="At most so many. Default: all, or 50 in a table."),
    ] = None,
    keys: KeysFile = None,
    output: OutputFormat = None,
) -> None:
    """Print events in order of position.

    Reads what is in the log when it begins, and no more; `millstream tail
    --follow` goes on. The position is an event's place in the log, the version
    its place in its stream; both begin at 1.

    \b{places}

    \bExamples:
      $ millstream read shop.db
      $ millstream read shop.db account-1 --versions 1:3
      $ millstream read shop.db 'account-*' --type MoneyDeposited --output csv
      $ millstream read shop.db --range 2:4
      $ millstream read shop.db --range @2013-01-15T12:00Z:@2013-01-16T00:00Z
      $ millstream read shop.db --range @-1h --backwards --limit 10
    """
    from ..log.positions import Range, parse_range
    from ..log.transfer import rows

    wanted = parse_range(range) if range is not None else Range()
    first, last = _versions(versions)
    if versions is not None and (stream is None or stream.endswith("*")):
        raise InvalidPosition("versions are within one stream", hint="Name the stream, or use --range")
    with open_to_read(log, keys=keys) as source:
        check_stream(source, stream, "--range")
        since, until = wanted.resolve(source)
        events = source.read(
            stream,
            types=type or None,
            since_position=since,
            until_position=until,
            since_version=first,
            until_version=last,
            backwards=backwards,
            limit=limit,
        )
        write_rows(rows(events), FIELDS, chosen(output), limit=limit, more="See more with --limit or --output ndjson.")


def _versions(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    from ..log.positions import parse_range

    found = parse_range(text)
    if any(place is not None and place.position is None for place in (found.start, found.stop)):
        raise InvalidPosition(f"{text!r:.80} is not a range of versions", hint="Write 3:5, 3: or :5")
    return (
        None if found.start is None else found.start.position,
        None if found.stop is None else found.stop.position,
    )
