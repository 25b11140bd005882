"""``millstream tail``: the last events, and those to come."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..errors import UsageError
from .options import KeysFile, LogPath, OutputFormat, Pattern, Types, check_stream, limit_of, open_to_read
from .output import Output, chosen, flush, write_rows, writer
from .read import FIELDS

if TYPE_CHECKING:
    from ..log import Log, Recorded

_LOOK = 1.0
"""Seconds between looks whether anybody still reads the output."""
_BATCH = 1_000


def tail(
    log: LogPath,
    stream: Pattern = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, as it comes.")] = False,
    lines: Annotated[
        Optional[int],  # noqa: UP045 - read at run time
        typer.Option("--lines", "-n", metavar="N", min=0, help="Begin with the last N events. Default: 10."),
    ] = None,
    start: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--from", metavar="PLACE", help="Begin at this place; see above.", show_default=False),
    ] = None,
    type: Types = None,
    timeout: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--timeout", metavar="DURATION", help="With --follow: end when nothing came for so long, such as 30s or 5m."
        ),
    ] = None,
    keys: KeysFile = None,
    output: OutputFormat = None,
) -> None:
    """Print the last events, and with --follow those to come.

    Following is gapless: each event once, in order, whichever process appends
    it. It ends with Ctrl-C, when its reader goes away, or by --timeout. The
    stream need not be there yet.

    \b{places}

    \bExamples:
      $ millstream tail shop.db
      $ millstream tail shop.db account-1 --lines 3
      $ millstream tail shop.db 'account-*' --from 2
      $ millstream tail shop.db --follow --from end --timeout 1s
      $ millstream tail shop.db --follow --timeout 1s --type Click | head -1
    """
    from ..log.positions import parse_place
    from ..log.transfer import rows

    form = chosen(output)
    if lines is not None and start is not None:
        raise UsageError("--lines and --from exclude each other", hint="Give one of them")
    if timeout is not None and not follow:
        raise UsageError("--timeout is for --follow", hint="Add --follow, or leave it out")
    if follow and form is Output.JSON:
        raise UsageError("a JSON array has an end, following has none", hint="Use --output ndjson")
    limit = None if timeout is None else limit_of(timeout)
    place = parse_place(start) if start is not None else None
    with open_to_read(log, keys=keys) as source:
        if not follow:
            check_stream(source, stream, "--from")
        head = source.head
        if place is not None:
            since = place.resolve(source)
            past: Iterable[Recorded] = source.read(
                stream, types=type or None, since_position=since, until_position=head + 1
            )
        else:
            since = 0
            count = 10 if lines is None else lines
            found = source.read(stream, types=type or None, until_position=head + 1, backwards=True, limit=count)
            past = reversed(list(found))
        if not follow:
            more = "See more with --lines or --output ndjson."
            write_rows(rows(past), FIELDS, form, limit=lines or None, more=more)
            return
        _follow(source, stream, type or None, past, max(head, since - 1), limit, form)


def _follow(
    log: Log,
    stream: str | None,
    types: list[str] | None,
    past: Iterable[Recorded],
    after: int,
    timeout: float | None,
    form: Output,
) -> None:
    from ..log.transfer import rows

    write = _writing(form)
    write(rows(past))
    quiet = time.monotonic()
    while True:
        look = _LOOK if timeout is None else max(min(_LOOK, timeout - (time.monotonic() - quiet)), 0.0)
        if not log.wait(after, look):
            if _unread():
                raise BrokenPipeError
            if timeout is not None and time.monotonic() - quiet >= timeout:
                return
            continue
        head = log.head
        runs = log.runs(stream, types=types, after=after, until_position=head + 1)
        if write(rows(event for run in runs for event in run)):
            quiet = time.monotonic()
        after = head


def _writing(form: Output) -> Any:
    """A function that writes rows and hands them on at once, and returns how many there were."""
    if form is Output.TABLE:
        from .tables import Lines

        out: Any = Lines()
    else:
        out = writer(form, FIELDS)
    if form is Output.CSV:
        flush()

    def write(found: Iterator[Any]) -> int:
        count = 0
        while batch := [row for _, row in zip(range(_BATCH), found, strict=False)]:
            out.write(batch)
            flush()
            count += len(batch)
        return count

    return write


def _unread() -> bool:
    """Whether the output is a pipe whose reader has gone: one that waits learns of it by no write."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
