"""``millstream export`` and ``millstream import``: events to a file and back, as NDJSON or Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import StorageError, UsageError
from .append import appended, parquet_type
from .inputs import batches, opened
from .options import (
    ConfirmClock,
    KeysFile,
    LogPath,
    OutputFormat,
    RangeText,
    Tags,
    Types,
    check_stream,
    open_to_read,
    open_to_write,
)
from .output import chosen, write_record

if TYPE_CHECKING:
    from ..log import Log
    from ..storage.base import Receipt


class Format(StrEnum):
    """What a file holds."""

    NDJSON = "ndjson"
    PARQUET = "parquet"


_Format = Annotated[
    Optional[Format],  # noqa: UP045 - read at run time
    typer.Option(
        "--format",
        metavar="ndjson|parquet",
        help="Default: parquet for a name that ends in .parquet, else ndjson.",
        show_default=False,
    ),
]


def export(
    log: LogPath,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to write. Default: stdout.", show_default=False)
    ] = "-",
    stream: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--stream",
            "-s",
            metavar="STREAM",
            help="Only this stream, or a category such as 'account-*'. Parquet needs one.",
            show_default=False,
        ),
    ] = None,
    range: RangeText = None,
    type: Types = None,
    format: _Format = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    keys: KeysFile = None,
    output: OutputFormat = None,
) -> None:
    """Write events to a file as NDJSON or Parquet.

    NDJSON holds an event a line: position, stream, version, type, time, tags,
    metadata and data; `millstream import` reads it back. Parquet holds the rows
    of one stream or category, a typed column for each field, and _position,
    _stream, _version, _type and _time. The file appears when it is whole.

    \b{places}

    \bExamples:
      $ millstream export shop.db shop.ndjson
      $ millstream export shop.db clicks.parquet --stream clicks --overwrite
      $ millstream export shop.db --range 1:3 | gzip > first.ndjson.gz
    """
    from ..log.files import whole, written
    from ..log.positions import Range, parse_range
    from ..log.transfer import check_export, export_ndjson, export_parquet

    form = format or _format_of(file)
    if format is None and form is Format.NDJSON:
        check_export(file)
    wanted = parse_range(range) if range is not None else Range()
    with open_to_read(log, keys=keys) as source:
        check_stream(source, stream)
        since, until = wanted.resolve(source)
        after = max((since or 1) - 1, 0)
        if file == "-":
            if form is Format.PARQUET:
                raise UsageError("Parquet is not written to a pipe", hint="Name a file")
            import sys

            export_ndjson(source, sys.stdout.buffer, stream, types=type or None, after=after, until_position=until)
            return
        _check_target(source, file, overwrite)
        if form is Format.PARQUET:
            if stream is None:
                raise UsageError("a Parquet file holds one stream or category", hint="Name it: --stream clicks")
            count = export_parquet(source, file, stream, types=type or None, after=after, until_position=until)
        else:
            with written(file), whole(file) as partial, open(partial, "wb") as out:
                count = export_ndjson(source, out, stream, types=type or None, after=after, until_position=until)
    write_record({"file": file, "count": count, "bytes": os.path.getsize(file)}, chosen(output))


def import_(
    log: LogPath,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to read. Default: stdin.", show_default=False)
    ] = "-",
    stream: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--stream",
            "-s",
            metavar="STREAM",
            help="Append all to this stream. Default: the one that each line names. Parquet needs one.",
            show_default=False,
        ),
    ] = None,
    type: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--type", "-t", metavar="TYPE", help="Parquet: the events' type. Default: the file's _type."),
    ] = None,
    tag: Tags = None,
    format: _Format = None,
    confirm_clock: ConfirmClock = False,
    output: OutputFormat = None,
) -> None:
    """Append events from an export, in its order, to their streams.

    Positions, versions and times are the new log's own. Lines go in by the
    batch of 10,000; at a bad line it ends: all lines before that one stand,
    and it says how many. The log is created when there is no file.

    \bExamples:
      $ millstream import other.db shop.ndjson
      $ millstream import other.db clicks.parquet --stream clicks --type Click
      $ millstream export shop.db -s 'account-*' | millstream import other.db
    """
    form = format or _format_of(file)
    if form is Format.PARQUET and stream is None:
        raise UsageError("the rows of a Parquet file go into one stream", hint="Name it: --stream clicks")
    if form is Format.PARQUET and file == "-":
        raise UsageError("Parquet is not read from a pipe", hint="Name a file")
    if form is Format.NDJSON and type is not None:
        raise UsageError("--type is for Parquet: each line names its own", hint="millstream append takes --type")
    with open_to_write(log, create=True, confirm_clock=confirm_clock) as target:
        if form is Format.PARQUET and stream is not None:
            from ..log.transfer import import_parquet

            found = import_parquet(target, file, stream, type=parquet_type(file, type), tags=tag or [])
        else:
            found = _lines(target, file, stream, tag or [])
        record = appended(found)
    if stream is None:
        del record["stream"], record["version"]
    write_record(record, chosen(output))


def _lines(log: Log, file: str, stream: str | None, tags: list[str]) -> Iterator[Receipt]:
    from ..log.transfer import import_ndjson

    with opened(file) as source:
        for first, lines in batches(source):
            yield from import_ndjson(log, lines, stream, tags=tags, first_line=first)


def _format_of(file: str) -> Format:
    return Format.PARQUET if file.endswith(".parquet") else Format.NDJSON


def _check_target(log: Log, file: str, overwrite: bool) -> None:
    if not os.path.exists(file):
        return
    if os.path.isdir(file):
        raise UsageError(f"{file} is a folder", hint="Give the name of a file")
    own = [log.path + end for end in ("", "-wal", "-shm") if log.path]
    if any(os.path.exists(each) and os.path.samefile(each, file) for each in own):
        raise UsageError(f"{file} is the log itself", hint="Give the export a name of its own")
    if not overwrite:
        raise StorageError(f"{file} is there already", hint="Give a new name, or --overwrite")
