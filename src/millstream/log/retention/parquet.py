"""Runs as Parquet files, each run's hash worked out from the file again before anything relies on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ...errors import DamagedLog, StorageError, Trimmed
from ...frames import encode_frame, frame_hash
from ...storage.forked import check_frames
from ..framing import ENVELOPE, enveloped
from ..records import Run
from .reader import BODIES, COLUMNS, OBJECTS, WINDOW, read_rows

if TYPE_CHECKING:
    from ..log import Log


class Content(msgspec.Struct):
    """A run with what is in it, and the hash that its header has for it."""

    run: Run
    hash: bytes
    data: Any
    """A frame, or JSON objects as text."""


def contents(log: Log, runs: Sequence[Run]) -> list[Content]:
    """Runs of one kind with what is in them; those that were trimmed in the meantime are left out.

    Raises:
        DamagedLog: A body does not match its header: it is not to be passed off as sound.
    """
    hashes = Hashes(log)
    found = []
    for run in runs:
        try:
            data: Any = run.frame() if run.is_frame else [_text(run, line) for line in run.lines()]
        except Trimmed:
            continue
        content = Content(run, hashes.of(run), data)
        if digest(data) != content.hash:
            raise DamagedLog(run.position, "its body does not match its hash")
        found.append(content)
    return found


def _text(run: Run, line: Any) -> str:
    try:
        return line if isinstance(line, str) else line.decode()
    except UnicodeDecodeError as error:
        raise DamagedLog(run.position, f"its JSON is not UTF-8 ({error})") from error


def weight(content: Content) -> int:
    """About how many bytes a run has."""
    data = content.data
    return sum(map(len, data)) if isinstance(data, list) else int(data.estimated_size())


def digest(data: Any) -> bytes:
    """The body's hash of a frame, or of JSON objects (docs/format.md)."""
    if isinstance(data, pl.DataFrame):
        return frame_hash(data)
    return hashlib.sha256("\n".join(data).encode()).digest()


class Hashes:
    """The body hashes of runs, whose headers are fetched in pages as long as runs stand close together."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: dict[int, bytes] = {}
        self._page = 1
        self._used = 0
        """How many of the page were asked for."""

    def of(self, run: Run) -> bytes:
        """The hash that a run's header has for its body."""
        if run.position not in self._known:
            self._page = min(self._page * 2, 1_000) if self._used * 2 > self._page else max(self._page // 2, 1)
            rows, _ = self._log.store.headers(run.position - 1, self._page)
            self._known, self._used = {row[0]: row[-2] for row in rows}, 0
        self._used += 1
        return self._known[run.position]


def write(found: Sequence[Content], path: Path) -> str:
    """Write runs of one kind to a Parquet file that gives each of them back as it is.

    Returns:
        The layout: a column for each field of frames, one of text for JSON objects. What Parquet does not give back
        as it was is written as bytes, a frame's Arrow body a row.
    """
    check_frames()
    failure: BaseException | None = None
    for layout in (COLUMNS, BODIES) if found[0].run.is_frame else (OBJECTS,):
        try:
            _frame(found, layout).write_parquet(path, compression="zstd", row_group_size=WINDOW)
            if _reads_back(found, path, layout):
                return layout
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            failure = error  # a type that Parquet has not, or no room: then the next one fails as well
    raise StorageError(
        f"runs from position {found[0].run.position} on cannot be written to {path.parent} and read back as they are",
        hint="See that there is room; TMPDIR says where such files are made",
    ) from failure


def _frame(found: Sequence[Content], layout: str) -> pl.DataFrame:
    if layout == COLUMNS:
        return pl.concat([enveloped([content.run], content.data) for content in found])
    if layout == BODIES:
        rows = [enveloped([content.run], content.data).head(1).select(list(ENVELOPE)) for content in found]
        bodies = [encode_frame(content.data) for content in found]
        counts = [content.run.count for content in found]
        return pl.DataFrame({"_body": bodies, "_count": counts}).hstack(pl.concat(rows).get_columns())
    lines = pl.DataFrame({"_data": [line for content in found for line in content.data]})
    return enveloped([content.run for content in found], lines)


def _reads_back(found: Sequence[Content], path: Path, layout: str) -> bool:
    rows = _rows(path, layout)
    left: pl.DataFrame | None = None
    for content in found:
        while left is None or left.height < content.run.count:
            more = next(rows, None)
            if more is None:
                return False
            left = more if left is None else pl.concat([left, more])
        part, left = left.head(content.run.count), left.slice(content.run.count)
        if digest(part if layout != OBJECTS else part["_data"].to_list()) != content.hash:
            return False
    return next(rows, None) is None and (left is None or not left.height)


def _rows(path: Path, layout: str) -> Iterator[pl.DataFrame]:
    if layout == BODIES:
        yield read_rows(path, layout, None, None)
        return
    number = 0
    while (rows := read_rows(path, layout, number, None)).height:
        yield rows
        number += 1
