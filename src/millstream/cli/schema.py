"""``millstream schema``: whether what is stored can be read by today's classes."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import KeysFile, LogPath, Modules, OutputFormat, import_modules, open_to_read
from .output import chosen, note, write_rows
from .progress import walking

_FIELDS = ("type", "schema", "count", "ok", "failed", "position", "reason")


def check(
    log: LogPath,
    modules: Modules = None,
    strict: Annotated[bool, typer.Option("--strict", help="A type without a class is a failure, too.")] = False,
    keys: KeysFile = None,
    output: OutputFormat = None,
) -> None:
    """Read every stored event through today's classes and upcasters.

    For each type and schema that is stored: how many events there are, how many
    can be read and how many fail, the position of the first that fails, and why.
    The exit code is 1 if any does. Name the modules that define the classes, as
    in --import shop.events; they are looked for in the folder where the command
    runs, too. Events of a type without a class are plain data, and can be read.
    Nothing is changed.

    \bExamples:
      $ millstream schema check shop.db
      $ millstream schema check shop.db --output json
    """
    import_modules(modules)
    from ..log.check import check_schema

    with open_to_read(log, keys=keys) as source, walking("reading") as progress:
        found = check_schema(source, progress=progress)
    rows = [
        {
            "type": each.type,
            "schema": each.schema,
            "count": each.count,
            "ok": each.count - each.failed,
            "failed": each.failed,
            "position": each.position,
            "reason": each.reason,
        }
        for each in found
    ]
    write_rows(rows, _FIELDS, chosen(output), limit=len(rows))
    failed = [each for each in found if each.failed or (strict and each.unknown)]
    if failed:
        note(f"{len(failed)} of {len(found)} types and schemas cannot be read as they are.")
        raise typer.Exit(1)
