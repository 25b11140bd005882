"""``millstream inline``: the inline projections that everyone who appends must have."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import LogPath, OutputFormat, open_to_read, open_to_write
from .output import chosen, write_record, write_rows


def ls(log: LogPath, output: OutputFormat = None) -> None:
    """List the inline projections that a log was told of.

    Events of their types are appended by processes alone that have them: not
    by `millstream append`, nor by a capture that runs outside of the app.

    \bExamples:
      $ millstream inline ls shop.db
      $ millstream inline ls shop.db --output json
    """
    with open_to_read(log) as source:
        found = source.inline_projections()
    rows = [
        {"projection": name, "types": "all" if types is None else ", ".join(types)} for name, types in found.items()
    ]
    write_rows(rows, ("projection", "types"), chosen(output))


def retire(
    log: LogPath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection's name.", show_default=False)],
    output: OutputFormat = None,
) -> None:
    """Let events be appended without an inline projection again.

    Its tables stay as they are. An app that still has it registers it again
    when it starts, and first makes up for what came in between.

    \bExamples:
      $ millstream inline retire shop.db Customers
      $ millstream inline retire shop.db Emails --output json
    """
    with open_to_write(log, create=False) as target:
        target.retire_inline(name)
    write_record({"retired": name}, chosen(output))
