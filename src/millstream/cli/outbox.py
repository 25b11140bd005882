"""``millstream outbox``: messages to the outside that wait, or could not be sent."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .options import LogPath, OutputFormat, open_to_read, open_to_write
from .output import chosen, write_record, write_rows

_Name = Annotated[str, typer.Argument(metavar="OUTBOX", help="The outbox's name.", show_default=False)]


def status(log: LogPath, output: OutputFormat = None) -> None:
    """Show how many messages of each outbox have not been sent, and since when.

    Also of outboxes that no app runs. Those that wait aside could not be sent,
    and are listed by ls.

    \bExamples:
      $ millstream outbox status shop.db
      $ millstream outbox status shop.db --output json
    """
    from ..cqrs.delivery import backlogs

    with open_to_read(log) as source:
        rows = backlogs(source)
    write_rows(rows, ("outbox", "messages", "since", "aside"), chosen(output))


def ls(
    log: LogPath,
    name: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(metavar="OUTBOX", help="Only this outbox. Default: all.", show_default=False),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """List the messages that wait aside, and why.

    retry: it is tried again by itself. waiting: for an earlier one of its key.
    parked: it failed too often; retry or skip it.

    \bExamples:
      $ millstream outbox ls shop.db
      $ millstream outbox ls shop.db mail --output json
    """
    from ..cqrs.delivery import unsent

    with open_to_read(log) as source:
        rows = unsent(source, name)
    write_rows(rows, ("outbox", "position", "key", "state", "attempts", "error"), chosen(output))


def retry(
    log: LogPath,
    name: _Name,
    position: Annotated[
        Optional[int],  # noqa: UP045
        typer.Argument(metavar="POSITION", help="Only the one there. Default: all parked ones.", show_default=False),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """Have parked messages tried again, by the app that runs the outbox.

    \bExamples:
      $ millstream outbox retry shop.db mail
      $ millstream outbox retry shop.db mail --output json
    """
    from ..cqrs.delivery import retry

    with open_to_write(log, create=False) as target:
        done = retry(target, name, position)
    write_record({"retried": done}, chosen(output))


def skip(
    log: LogPath,
    name: _Name,
    position: Annotated[int, typer.Argument(metavar="POSITION", help="Where it stands in the log.")],
    output: OutputFormat = None,
) -> None:
    """Never send a message that waits aside; those behind it go on.

    \bExamples:
      $ millstream outbox skip shop.db mail 5
      $ millstream outbox skip shop.db mail 6 --output json
    """
    from ..cqrs.delivery import skip

    with open_to_write(log, create=False) as target:
        skip(target, name, position)
    write_record({"skipped": position}, chosen(output))
