"""``millstream verify``: whether the log is whole."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from .options import LogPath, OutputFormat, open_to_read
from .output import chosen, write_record
from .progress import walking


def verify(
    log: LogPath,
    head: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option(
            "--head", metavar="HASH", help="A head's hash that was kept elsewhere: it must be part of the chain."
        ),
    ] = None,
    archives: Annotated[
        bool, typer.Option("--archives/--no-archives", help="Fetch what was archived, and check it, too.")
    ] = True,
    output: OutputFormat = None,
) -> None:
    """Walk the whole log and check every hash.

    Each header is part of a chain of hashes, and each body has its own, so that
    a byte changed, removed or inserted is found; the first such position is
    named, and the exit code is 1. Keep the hash that it prints somewhere else:
    with --head it shows, later, that the end was not cut off or written anew.
    It also says what was trimmed on purpose, by whom and when.

    \bExamples:
      $ millstream verify shop.db
      $ millstream verify shop.db --output json
      $ millstream verify shop.db --head "$(cat kept-hash.txt)"
    """
    with open_to_read(log) as source, walking("verifying") as progress:
        found = source.verify(head=head, archives=archives, progress=progress)
    record: dict[str, Any] = {
        "events": found.events, "runs": found.runs, "position": found.position, "hash": found.hash
    }  # fmt: skip
    if found.archived:
        record["archived"] = found.archived
    if found.trimmed:
        record["trimmed"] = found.trimmed
    write_record(record, chosen(output))
