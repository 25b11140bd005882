"""Export and import: events as NDJSON or Parquet, with all that is needed to append them elsewhere.

An NDJSON line is ``{"position", "stream", "version", "type", "schema", "time", "effective", "tags", "metadata",
"data"}``. A Parquet file holds one stream's rows with the envelope's columns. Positions and times of an import are
the new log's own: the past of one log is not the past of another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..errors import InvalidEvent, NotFound
from ..events import Draft, Plain
from ..frames import RESERVED
from ..storage.base import Receipt
from ..time import iso
from .records import Recorded

if TYPE_CHECKING:
    from .log import Log
    from .reading import Types

_BATCH = 10_000
_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
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


def line_of(event: Recorded) -> bytes:
    """An event as a line of NDJSON, without the newline."""
    return _encode(as_dict(event))


def as_dict(event: Recorded) -> dict[str, Any]:
    """An event as plain data: its envelope, and ``data``."""
    row: dict[str, Any] = {
        "position": event.position,
        "stream": event.stream,
        "version": event.version,
        "type": event.type,
        "time": iso(event.recorded),
    }
    if event.run.effective is not None:
        row["effective"] = iso(event.run.effective)
    if event.tags:
        row["tags"] = event.tags
    if event.run.raw_metadata:
        row["metadata"] = event.metadata
    row["data"] = event.data
    return row


def export_ndjson(log: Log, out: IO[bytes], stream: str | None = None, *, types: Types = None, after: int = 0) -> int:
    """Write events as NDJSON lines in order of position.

    Returns:
        How many.
    """
    count = 0
    for event in log.read(stream, types=types, after=after):
        out.write(line_of(event) + b"\n")
        count += 1
    return count


def export_parquet(log: Log, path: str, stream: str, *, types: Types = None) -> int:
    """Write a stream's rows, with the envelope's columns, to a Parquet file that appears whole or not at all.

    Returns:
        How many rows.
    """
    partial = f"{path}.part"
    try:
        log.scan(stream, types=types, envelope=True).sink_parquet(partial)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return int(pl.scan_parquet(path).select(pl.len()).collect().item())


def import_ndjson(log: Log, lines: Iterable[bytes | str], stream: str | None = None) -> Iterator[Receipt]:
    """Append lines of NDJSON, 10,000 at a time; each batch is one commit.

    Args:
        lines: Lines of an export, or objects with at least ``type`` and ``data``. Blank ones are passed over.
        stream: The stream to append to; by default the one that each line names.

    Raises:
        InvalidEvent: A line is not an event; names the line. The batches before it stand.
    """
    decode = msgspec.json.Decoder(Line).decode
    # Stretches of one stream each, so that the order over all streams stays.
    pending: list[tuple[str, list[Draft]]] = []
    waiting = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidEvent(
                f"line {number} is not an event: {error}", hint='Write {"stream": "…", "type": "…", "data": {…}}'
            ) from error
        target = stream or line.stream
        if target is None:
            raise InvalidEvent(f"line {number} names no stream", hint="Give each line a stream, or name one for all")
        draft = Draft(Plain(line.type, line.data), line.tags, line.metadata or None, line.effective)
        if not pending or pending[-1][0] != target:
            pending.append((target, []))
        pending[-1][1].append(draft)
        waiting += 1
        if waiting >= _BATCH:
            yield _append(log, pending)
            pending, waiting = [], 0
    if pending:
        yield _append(log, pending)


def _append(log: Log, pending: list[tuple[str, list[Draft]]]) -> Receipt:
    return log.commit([log.stage(stream, drafts) for stream, drafts in pending])


def import_parquet(log: Log, path: str, stream: str, *, type: str | None = None) -> Iterator[Receipt]:
    """Append the rows of a Parquet file as frames, in the file's order; the envelope's columns are left out.

    Args:
        type: The type of the events; by default the ``_type`` of the file's rows, if they have one.
    """
    if not os.path.exists(path):
        raise NotFound(f"there is no file {path}", hint="Give the path of a Parquet file")
    rows = pl.scan_parquet(path)
    names = rows.collect_schema().names()
    if type is None:
        if "_type" not in names:
            raise InvalidEvent("the file does not say what type its events are", hint="Give type='Click', for example")
        types = rows.select(pl.col("_type").unique()).collect()["_type"].to_list()
        if len(types) != 1:
            raise InvalidEvent(
                f"the file holds events of {len(types)} types", hint="Import them as NDJSON, or give a type"
            )
        type = types[0]
    columns = [name for name in names if name not in RESERVED]
    total = int(rows.select(pl.len()).collect().item())
    for start in range(0, total, 1_048_576):
        yield log.append(stream, rows.select(columns).slice(start, 1_048_576).collect(), type=type)
