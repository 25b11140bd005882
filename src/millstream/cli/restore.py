"""``millstream restore``: a log from a backup or a depot, also as it was at an earlier moment."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated, Optional

import typer

from ..errors import StorageError
from .copy import Verify
from .options import OutputFormat, is_depot, open_source, open_to_write
from .output import chosen, write_record
from .progress import moving


def restore(
    backup: Annotated[
        str,
        typer.Argument(
            metavar="BACKUP", help="A backup, any other log, or a depot that one was copied to.", show_default=False
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="The new log.", show_default=False)],
    until: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option("--until", metavar="PLACE", help="Only what lies before it; see above.", show_default=False),
    ] = None,
    verify: Verify = False,
    output: OutputFormat = None,
) -> None:
    """Make a log of a backup, as it is or as it was at a moment before.

    The log that is restored takes appends. Ended at any moment, the same
    command goes on where it was. With --until, captures and flows begin anew.

    \b{places}

    \bExamples:
      $ millstream restore shop.db again.db --verify
      $ millstream restore shop.db before.db --until @2013-06-01T00:00Z
    """
    from ..log.moving import restore as restoring
    from ..log.moving import restore_file
    from ..log.positions import parse_place

    place = parse_place(until) if until is not None else None
    with ExitStack() as stack:
        source = stack.enter_context(open_source(backup))
        report = stack.enter_context(moving("restoring"))
        if place is None and not is_depot(backup) and "://" not in backup + target and not os.path.exists(target):
            from ..log import Log

            assert isinstance(source, Log)
            home = stack.enter_context(restore_file(source, target))
            position = home.head
            if verify:
                home.verify(head=source.store.raw_head().head.hash.hex())
        else:
            if is_depot(target):
                raise StorageError(f"{target} is a depot", hint="Restore to the path of a new log")
            home = stack.enter_context(open_to_write(target, create=True))
            position = restoring(source, home, until=place, verify=verify, progress=report).position
        record = {"log": target, "position": position, "hash": home.store.raw_head().head.hash.hex()}
    write_record(record, chosen(output))
