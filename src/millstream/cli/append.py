"""``millstream append``: events into one stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..errors import UsageError
from .inputs import batches, opened
from .options import ConfirmClock, LogPath, OutputFormat, Tags, open_to_write
from .output import chosen, note, write_record

if TYPE_CHECKING:
    from ..log import Log
    from ..storage.base import Receipt


def append(
    log: LogPath,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream to append to.", show_default=False)],
    file: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(metavar="FILE", help="NDJSON, or a .parquet file. Default: stdin.", show_default=False),
    ] = None,
    type: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--type", "-t", metavar="TYPE", help="The type of all events; a line is then the data alone."),
    ] = None,
    expect: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--expect",
            metavar="VERSION",
            min=0,
            help="Append only if the stream is at this version (0: it must be new), all or nothing.",
        ),
    ] = None,
    id: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--id",
            metavar="ID",
            help="Names this append: a repeat of it has no effect and gets the same receipt. All or nothing.",
        ),
    ] = None,
    tag: Tags = None,
    confirm_clock: ConfirmClock = False,
    output: OutputFormat = None,
) -> None:
    """Append events to a stream, and report the receipt.

    A line of NDJSON is an event: {"type": "Login", "data": {"user": 7}}, also
    with "tags", "metadata" and "effective". With --type a line is the data
    alone: {"user": 7}. Blank lines are passed over. The rows of a Parquet file
    are stored as columns; give their --type.

    Events go in by the batch (10,000 lines; fewer when a pipe pauses), and a
    batch is on disk when the next one begins. At a bad line it ends: all lines
    before that one stand, and it says how many. With --expect or --id the
    whole input is one append, which stands or falls as a whole.

    The log is created when there is no file.

    \bExamples:
      $ echo '{"type": "Login", "data": {}}' | millstream append shop.db audit
      $ millstream append shop.db audit events.ndjson --tag imported
      $ echo '{"by": 7}' | millstream append shop.db cart-9 -t Opened --expect 0
      $ millstream append shop.db clicks clicks.parquet --type Click --id jan
    """
    from ..log.staging import check_label, check_stream

    check_stream(stream)
    if type is not None:
        check_label(type, "type name")
    whole = expect is not None or id is not None
    options: dict[str, Any] = {"tags": tag or []}
    with open_to_write(log, create=True, confirm_clock=confirm_clock) as target:
        if file is not None and file.endswith(".parquet"):
            receipts = _parquet(target, stream, file, type, whole, {**options, "expect": expect, "id": id})
        elif whole:
            receipts = _whole(target, stream, file, type, {**options, "expect": expect, "id": id})
        else:
            receipts = _lines(target, stream, file, type, options)
        write_record(appended(receipts), chosen(output))


def _lines(log: Log, stream: str, file: str | None, type: str | None, options: dict[str, Any]) -> Iterator[Receipt]:
    from ..log.transfer import import_ndjson

    with opened(file) as source:
        for first, lines in batches(source):
            yield from import_ndjson(log, lines, stream, type=type, first_line=first, **options)


def _whole(log: Log, stream: str, file: str | None, type: str | None, options: dict[str, Any]) -> Iterator[Receipt]:
    from ..log.transfer import drafts

    with opened(file) as source:
        lines = (line for _, batch in batches(source) for line in batch)
        yield log.append(stream, [draft for _, _, draft in drafts(lines, type=type)], **options)


def _parquet(
    log: Log, stream: str, file: str, type: str | None, whole: bool, options: dict[str, Any]
) -> Iterator[Receipt]:
    from ..log.transfer import import_parquet, parquet_frames

    if not whole:
        yield from import_parquet(log, file, stream, type=parquet_type(file, type), tags=options["tags"])
        return
    import polars as pl

    type, frames = parquet_frames(file, type=parquet_type(file, type))
    yield log.append(stream, pl.concat(list(frames)), type=type, **options)


def parquet_type(file: str, type: str | None) -> str | None:
    """The type of a Parquet file's events: the one given, or None when the file says it itself."""
    if type is None:
        from ..log.transfer import parquet_columns

        if "_type" not in parquet_columns(file):
            raise UsageError(f"{file} does not say what type its events are", hint="Give one: --type Click")
    return type


def appended(receipts: Iterator[Receipt]) -> dict[str, Any]:
    """What a row of appends has done together; an error tells first how much stands in spite of it."""
    count = 0
    first = last = None
    try:
        for receipt in receipts:
            count += receipt.count
            first = first if first is not None else receipt
            last = receipt
    except BaseException:
        if count and first is not None and last is not None:
            if count == 1:
                note(f"1 event before it stands (position {last.position})")
            else:
                note(f"{count} events before it stand (positions {first.first} to {last.position})")
        raise
    from ..time import iso

    if first is None or last is None:
        return {"count": 0, "first": None, "position": None, "stream": None, "version": None, "time": None}
    return {
        "count": count,
        "first": first.first if count else None,
        "position": last.position,
        "stream": last.stream,
        "version": last.version,
        "time": iso(last.recorded),
    }
