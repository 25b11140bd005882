"""``millstream forget``: make a subject's personal data unreadable for good."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from .options import KeysFile, LogPath, OutputFormat, open_to_write
from .output import chosen, write_record


def forget(
    log: LogPath,
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Whose data it is, such as customer-7.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether it is meant.")] = False,
    keys: KeysFile = None,
    output: OutputFormat = None,
) -> None:
    """Forget a person: make all of their personal data unreadable, for good.

    Their key is destroyed. The fields that event classes declare as personal
    read as \\[erased] from then on, in the log, its copies and its old backups;
    what is appended for them is refused. Hashes stay, and `millstream verify`
    holds. It says which events these are, and which read models and sinks may
    hold copies. This cannot be taken back; repeated, it gives the same report.

    \bExamples:
      $ millstream forget shop.db customer-7 --yes
      $ millstream forget postgresql://localhost/shop c-7 --yes --keys keys.db
    """
    with open_to_write(log, create=False, keys=keys) as target:
        if not yes and not _meant(subject):
            raise UsageError("nothing was done", hint="Say that it is meant: --yes")
        done = target.forget(subject)
    write_record(
        {
            "subject": done.subject,
            "events": done.events,
            "first": done.first or None,
            "last": done.last or None,
            "streams": [{"stream": each.stream, "events": each.events} for each in done.streams],
            "models": list(done.models),
        },
        chosen(output),
    )


def _meant(subject: str) -> bool:
    """Ask at a terminal; elsewhere nobody can answer."""
    import sys

    return sys.stdin.isatty() and typer.confirm(f"Make the personal data of {subject!r} unreadable for good?", err=True)
