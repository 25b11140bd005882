"""Export and import: events as NDJSON or Parquet, with all that is needed to append them elsewhere.

An NDJSON line is ``{"position", "stream", "version", "type", "schema", "time", "effective", "tags", "metadata",
"personal", "data"}``: an event as it is read today, and ``schema`` the version of that shape where it is not the first.
Personal data is in the clear in it, and ``personal`` names its fields. A Parquet file holds one stream's rows with the
envelope's columns. Positions and times of an import are the new log's own: the past of one log is not the past of
another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..conversion import ready
from ..errors import DamagedLog, InvalidEvent, MillstreamError, NotFound, UsageError
from ..events import Draft, Plain, present_schema, schema_version
from ..frames import RESERVED, python_values
from ..storage.base import Receipt
from ..storage.forked import check_frames
from ..time import iso, to_micros
from .files import path_of, whole, written
from .personal.sealing import check_personal, personal_fields
from .records import Recorded, Run
from .staging import OWN_STREAMS, check_label, check_stream, check_tags

if TYPE_CHECKING:
    from .log import Log
    from .reading import Types

_BATCH = 10_000
_ROWS = 4_096
_FRAME_ROWS = 1_048_576
_encode = msgspec.json.Encoder().encode
_checked = msgspec.json.Decoder(msgspec.Raw).decode


class Line(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An event of an NDJSON export. Only ``type`` and ``data`` are needed to import one."""

    type: str
    data: dict[str, Any] = {}
    stream: str | None = None
    position: int | None = None
    version: int | None = None
    time: str | None = None
    effective: str | None = None
    tags: list[str] = []
    metadata: dict[str, Any] = {}
    schema: int = 1
    personal: list[str] = []


class Row(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True, gc=False):
    """An event as it is written out: its envelope, and its data as JSON that is encoded already."""

    position: int
    stream: str
    version: int
    type: str
    schema: int = 1
    time: str
    effective: str | None = None
    tags: tuple[str, ...] = ()
    metadata: msgspec.Raw | None = None
    personal: tuple[str, ...] = ()
    data: msgspec.Raw


def rows(events: Iterable[Recorded]) -> Iterator[Row]:
    """Events ready to be written out. What a run's events share is looked up once for all of them.

    Raises:
        DamagedLog: What is stored is not JSON.
    """
    run: Run | None = None
    for event in events:
        if event.run is not run:
            run = event.run
            stream, type, time, tags = run.stream, run.type, iso(run.recorded), run.tags
            # The rows of frames are not upcast, here or where they are imported.
            schema = present_schema(type) or 1 if run.is_frame else schema_version(run.schema)
            effective = None if run.effective is None else iso(run.effective)
            metadata = msgspec.Raw(run.raw_metadata) if run.raw_metadata else None
            personal = personal_fields(run)
            data = _frame_data(run) if run.is_frame else _object_data(run)
        yield Row(
            position=run.position + event.index,
            stream=stream,
            version=run.version + event.index,
            type=type,
            schema=schema,
            time=time,
            effective=effective,
            tags=tags,
            metadata=metadata,
            personal=personal,
            data=data(event.index),
        )


def _object_data(run: Run) -> Callable[[int], msgspec.Raw]:
    lines = run.lines()

    def data(index: int) -> msgspec.Raw:
        try:
            return _checked(lines[index])
        except msgspec.DecodeError as error:
            raise DamagedLog(run.position + index, f"its JSON cannot be decoded ({error})") from error

    return data


def _frame_data(run: Run) -> Callable[[int], msgspec.Raw]:
    frame = run.frame()
    piece = -1
    encoded: list[msgspec.Raw] = []

    def data(index: int) -> msgspec.Raw:
        nonlocal piece, encoded
        if index // _ROWS != piece:
            piece = index // _ROWS
            part = frame.slice(piece * _ROWS, _ROWS)
            with python_values(f"the frame at position {run.position}"):
                encoded = [msgspec.Raw(_encode(row)) for row in part.iter_rows(named=True)]
        return encoded[index % _ROWS]

    return data


def check_export(path: str) -> None:
    """Refuse a file whose name says that it holds something else than NDJSON.

    Raises:
        UsageError: It ends as those of another format do.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending in (".gz", ".zst", ".bz2", ".xz", ".zip"):
        raise UsageError(f"{path} would not be packed", hint="Export to a .ndjson file, and pack that")
    if ending in (".csv", ".tsv", ".xlsx", ".arrow", ".feather", ".avro"):
        raise UsageError(
            f"{path} would hold NDJSON", hint="Name it .ndjson or .parquet; for others, write a frame: log.scan(stream)"
        )


def export_ndjson(
    log: Log,
    out: IO[bytes],
    stream: str | None = None,
    *,
    types: Types = None,
    after: int = 0,
    until_position: int | None = None,
) -> int:
    """Write events as NDJSON lines in order of position.

    Returns:
        How many.
    """
    count = 0
    for row in rows(log.read(stream, types=types, after=after, until_position=until_position)):
        out.write(_encode(row) + b"\n")
        count += 1
    return count


def export_parquet(
    log: Log, path: str, stream: str, *, types: Types = None, after: int = 0, until_position: int | None = None
) -> int:
    """Write a stream's rows, with the envelope's columns, to a Parquet file that appears whole or not at all.

    Returns:
        How many rows.
    """
    frame = log.scan(stream, types=types, envelope=True)
    if after:
        frame = frame.filter(pl.col("_position") > after)
    if until_position is not None:
        frame = frame.filter(pl.col("_position") < until_position)
    with written(path), whole(path) as partial:
        frame.sink_parquet(partial)
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def drafts(
    lines: Iterable[bytes | str], *, type: str | None = None, first_line: int = 1
) -> Iterator[tuple[int, str | None, Draft]]:
    """Lines of NDJSON as events: each with its line's number and the stream that it names. Blank lines are passed over.

    Args:
        lines: Lines of an export, or objects with at least ``type`` and ``data``.
        type: Every event is of this type, and the whole of its line is its data.
        first_line: The number of the first line.

    Raises:
        InvalidEvent: A line is not an event; names the line.
    """
    if type is not None:
        check_label(type, "type name")
    decode = msgspec.json.Decoder(ready(Line)).decode
    decode_data = msgspec.json.Decoder(dict[str, Any]).decode
    for number, text in enumerate(lines, first_line):
        if not text.strip():
            continue
        try:
            if type is not None:
                yield number, None, Draft(Plain(type, decode_data(text)))
                continue
            line = decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            hint = "Each line is a JSON object: the event's data" if type is not None else _HINT
            raise InvalidEvent(f"line {number} is not an event: {error}", hint=hint) from error
        try:
            check_label(line.type, "type name")
            check_tags(line.tags)
            if line.stream is not None:
                check_stream(line.stream)
            if line.effective is not None:
                to_micros(line.effective)
            if line.schema < 1:
                raise InvalidEvent(f"schema={line.schema} is no version", hint="Use a number from 1 on")
            if line.personal:
                check_personal(line.type, [name for name in line.personal if name in line.data])
        except MillstreamError as error:
            raise InvalidEvent(f"line {number} is not an event: {error.message}", hint=error.hint) from error
        event = Plain(line.type, line.data, line.schema)
        yield number, line.stream, Draft(event, line.tags, line.metadata or None, line.effective)


_HINT = 'Write {"stream": "…", "type": "…", "data": {…}}'


def import_ndjson(
    log: Log,
    lines: Iterable[bytes | str],
    stream: str | None = None,
    *,
    type: str | None = None,
    tags: Iterable[str] = (),
    first_line: int = 1,
) -> Iterator[Receipt]:
    """Append lines of NDJSON, 10,000 at a time; each batch is one commit.

    What another log says of its own past, in ``$retention`` and ``$privacy``, is passed over: its rules, archives and
    subjects are not this one's.

    Args:
        lines: Lines of an export, or objects with at least ``type`` and ``data``. Blank ones are passed over.
        stream: The stream to append to; by default the one that each line names.
        type: As in `drafts`.
        tags: Labels for all events, beside their own.
        first_line: As in `drafts`.

    Raises:
        InvalidEvent: A line is not an event; names the line. All lines before it are appended first.
    """
    tags = check_tags(tags)
    # Stretches of one stream each, so that the order over all streams stays.
    pending: list[tuple[str, list[Draft]]] = []
    waiting = 0
    found = drafts(lines, type=type, first_line=first_line)
    while True:
        try:
            number, named, draft = next(found, (0, None, None))
            target = stream or named
            if draft is not None and target is None:
                raise InvalidEvent(
                    f"line {number} names no stream", hint="Give each line a stream, or name one for all"
                )
        except InvalidEvent:
            if pending:
                yield _append(log, pending, tags)
            raise
        if draft is None or target is None:
            break
        if target in OWN_STREAMS and stream is None:
            continue
        if not pending or pending[-1][0] != target:
            pending.append((target, []))
        pending[-1][1].append(draft)
        waiting += 1
        if waiting >= _BATCH:
            yield _append(log, pending, tags)
            pending, waiting = [], 0
    if pending:
        yield _append(log, pending, tags)


def _append(log: Log, pending: list[tuple[str, list[Draft]]], tags: Iterable[str]) -> Receipt:
    return log.commit([log.stage(stream, drafts, tags=tags) for stream, drafts in pending])


def parquet_frames(path: str, *, type: str | None = None) -> tuple[str, Iterator[pl.DataFrame]]:
    """The rows of a Parquet file as frames of a million, in order, without the envelope's columns, and their type.

    Args:
        type: The type of the events; by default the ``_type`` of the file's rows, if they have one.

    Raises:
        NotFound: There is no such file.
        UsageError: It cannot be read as Parquet.
        InvalidEvent: The type is neither given nor in the file.
    """
    names = parquet_columns(path)
    scanned = pl.scan_parquet(path, glob=False)
    if type is None:
        type = _type_in(scanned, names)
    total = int(scanned.select(pl.len()).collect().item())
    columns = [name for name in names if name not in RESERVED]
    # A file without rows still says what its columns are.
    starts = range(0, max(total, 1), _FRAME_ROWS)
    return type, (scanned.select(columns).slice(start, _FRAME_ROWS).collect() for start in starts)


def parquet_columns(path: str) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        NotFound: There is no such file.
        UsageError: It cannot be read as Parquet.
    """
    check_frames()
    if not os.path.exists(path):
        raise NotFound(f"there is no file {path}", hint="Give the path of a Parquet file")
    try:
        return pl.scan_parquet(path, glob=False).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}", hint="Give a Parquet file") from error


def _type_in(scanned: pl.LazyFrame, names: list[str]) -> str:
    if "_type" not in names:
        raise InvalidEvent("the file does not say what type its events are", hint="Give type='Click', for example")
    types = scanned.select(pl.col("_type").unique()).collect()["_type"].to_list()
    if len(types) != 1:
        raise InvalidEvent(f"the file holds events of {len(types)} types", hint="Import them as NDJSON, or give a type")
    return str(types[0])


def import_parquet(
    log: Log, path: str, stream: str, *, type: str | None = None, tags: Iterable[str] = ()
) -> Iterator[Receipt]:
    """Append the rows of a Parquet file as frames, in the file's order; the envelope's columns are left out.

    Each million rows is one commit.

    Args:
        type: As in `parquet_frames`.
        tags: Labels for all events.
    """
    type, frames = parquet_frames(path, type=type)
    for frame in frames:
        yield log.append(stream, frame, type=type, tags=tags)


def export_file(log: Log, path: str | os.PathLike[str], stream: str | None, *, types: Types = None) -> int:
    """See `Log.export`."""
    path = path_of(path)
    if path.endswith(".parquet"):
        if stream is None:
            raise UsageError("Parquet holds one stream", hint="Name the stream, or export to a .ndjson file")
        return export_parquet(log, path, stream, types=types)
    check_export(path)
    with written(path), whole(path) as partial, open(partial, "wb") as out:
        return export_ndjson(log, out, stream, types=types)


def import_file(log: Log, path: str | os.PathLike[str], stream: str | None, *, type: str | None = None) -> int:
    """See `Log.import_`."""
    path = path_of(path)
    if path.endswith(".parquet"):
        if stream is None:
            raise UsageError("a Parquet file does not name its stream", hint="Give stream='clicks', for example")
        return sum(receipt.count for receipt in import_parquet(log, path, stream, type=type))
    if not os.path.exists(path):
        raise NotFound(f"there is no file {path}", hint="Give the path of a file of NDJSON lines")
    with _opened(path) as lines:
        return sum(receipt.count for receipt in import_ndjson(log, lines, stream, type=type))


def _opened(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", hint="Give the path of a file that may be read"
        ) from error
