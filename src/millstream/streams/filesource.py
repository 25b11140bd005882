"""Files of rows: the past of a flow that is not in the log yet, to be looked at or to be put there."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import polars as pl

from ..errors import NotFound, UsageError
from ..events import Plain
from ..log.checkpoints import Checkpoint, advance, take
from ..log.transfer import parquet_frames
from ..storage.database import Database
from .columns import SEQUENCE

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.base import Receipt, StagedAppend

Format = Literal["parquet", "ndjson", "csv"]

_TABLE = "loaded_files"
TABLES = {
    _TABLE: "loader text not null, file text not null, size bigint not null, rows bigint not null,"
    " whole bigint not null, primary key (loader, file)"
}
"""What was loaded: of each file its size in bytes, how many of its rows, and whether that is all."""

_ROWS = 262_144
"""Rows in a frame, and in a commit."""

_ENDINGS: dict[str, Format] = {".parquet": "parquet", ".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv"}
_PACKED = (".gz", ".zst")


class Files(msgspec.Struct, frozen=True, eq=False):
    """Files of rows, in the order of their names; see `files`."""

    patterns: tuple[str, ...]
    format: Format | None
    types: Mapping[str, Any] | None

    def names(self) -> list[str]:
        """The files that there are now, in the order in which they are read: absolute paths, each file once.

        Raises:
            NotFound: There is none.
        """
        found = {path for pattern in self.patterns for path in _matching(pattern)}
        # However a path is spelled, and through whichever link: a file is known by where it is.
        names = sorted({os.path.realpath(path) for path in found if os.path.isfile(path)})
        if not names:
            folder = next((each for each in self.patterns if os.path.isdir(each)), "past")
            raise NotFound(
                f"there is no file {' or '.join(map(repr, self.patterns))}",
                hint=f"Give paths, or patterns such as {os.path.join(folder, '*.csv.gz')!r}",
            )
        return names

    def frames(self) -> Iterator[pl.DataFrame]:
        """All rows, each with its number from 1 on as ``_position``."""
        done = 0
        for name in self.names():
            for frame in self.rows_of(name):
                numbers = pl.int_range(done + 1, done + 1 + frame.height, dtype=pl.Int64, eager=True)
                done += frame.height
                yield frame.with_columns(numbers.alias(SEQUENCE))

    def load(self, log: Log, stream: str, *, type: str, name: str | None = None, tags: Iterable[str] = ()) -> int:
        """Append the rows to a stream of the log, each once, file by file in the order of their names.

        A commit holds some rows and says that they were loaded. So a load that was killed goes on where it was, one
        that is done again appends only what is in new files, and when two load at once, one ends with `ConsumerFenced`.
        A file is known by where it is, however its path is spelled, and must stay as it is once it was begun with.

        Args:
            log: The log.
            stream: The stream to append to.
            type: The type of the events.
            name: What was loaded is remembered under it; by default under the stream's name.
            tags: Labels for all events.

        Returns:
            How many rows were appended now.

        Raises:
            NotFound: There is no file.
            UsageError: A file cannot be read, or has changed since it was loaded.
            SchemaConflict: A column has other types than the stream has.
        """
        loader, tags = name or stream, tuple(tags)
        with log.transaction() as tx:
            checkpoint = take(tx.db, f"files:{loader}")
            tx.db.ensure_table(_TABLE, TABLES[_TABLE])
            held = {
                row["file"]: row
                for row in tx.db.query(
                    f"select file, size, rows, whole from {tx.db.own(_TABLE)} where loader = ?", (loader,)
                )
            }
        count = 0
        for file in self.names():
            before, size = held.get(file), os.path.getsize(file)
            if before is not None and before["size"] != size:
                raise UsageError(
                    f"{file} has {size:,} bytes, and had {before['size']:,} when it was loaded",
                    hint="Put new rows into new files; or load it again, as what it is now, under another name=",
                )
            if before is not None and before["whole"]:
                continue
            rows = 0 if before is None else before["rows"]
            for frame, is_last in _with_end(self.rows_of(file, after=rows)):
                rows += frame.height
                count += frame.height
                staged = _staged(log, stream, frame, type, tags) if frame.height else None
                loaded = (loader, file, size, rows, int(is_last))
                # The position counts rows; what it is moved from tells whether somebody else has taken over.
                position = checkpoint.position + frame.height
                log.commit([staged], work=_noting(checkpoint, position, loaded))
                checkpoint = msgspec.structs.replace(checkpoint, position=position)
        return count

    def rows_of(self, name: str, *, after: int = 0) -> Iterator[pl.DataFrame]:
        """The rows of a file beyond the first so many, in frames; one without rows at least, with its columns.

        Raises:
            UsageError: It cannot be read.
        """
        format = self.format or _format_of(name)
        try:
            if format == "parquet":
                _, frames = parquet_frames(name, type="")
            elif format == "ndjson":
                frames = iter([self._of_ndjson(name)])
            else:
                frames = iter([self._of_csv(name)])
            for frame in frames:
                if frame.height <= after:
                    after -= frame.height
                    if not frame.height:
                        yield frame
                    continue
                frame, after = frame[after:], 0
                if format == "parquet" and self.types is not None:
                    frame = frame.cast({n: dtype for n, dtype in self.types.items() if n in frame.columns})
                yield from frame.iter_slices(_ROWS)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UsageError(
                f"{name} cannot be read as {format}: {str(error).splitlines()[0]}",
                hint="Say what it is with format=, and of what types its columns are with schema=",
            ) from error

    def _of_ndjson(self, name: str) -> pl.DataFrame:
        name = glob.escape(name)  # for Polars, which takes it for a pattern
        try:
            if self.types is None:
                return pl.read_ndjson(name, infer_schema_length=None)
            # Columns that are not named are of the types of their values.
            found = pl.scan_ndjson(name, infer_schema_length=None).collect_schema()
            return pl.read_ndjson(name, schema={**found, **self.types})
        except pl.exceptions.PolarsError:
            # A file without rows has no types to be found.
            if pl.read_ndjson(name, schema={SEQUENCE: pl.Int64}).height:
                raise
            return pl.DataFrame()

    def _of_csv(self, name: str) -> pl.DataFrame:
        types = dict(self.types or {})
        try:
            # By name, whatever the order of the columns.
            frame = pl.read_csv(
                name, schema_overrides=types, try_parse_dates=True, infer_schema_length=None, glob=False
            )
        except pl.exceptions.NoDataError:
            return pl.DataFrame()
        # A column without a value has no type; to call it text would make text of what other files hold.
        bare = [each.name for each in frame if each.null_count() == frame.height and each.name not in types]
        return frame.cast(dict.fromkeys(bare, pl.Null()))


def files(
    *patterns: str | os.PathLike[str], format: Format | None = None, schema: Mapping[str, Any] | None = None
) -> Files:
    """Files of rows: NDJSON, CSV with a line of names, or Parquet; packed with gzip or zstd, too.

    Rows come file by file in the order of their paths, and as they stand in each. `Flow.over` takes them for a past,
    and `Files.load` puts them into the log, each once, from where flows go on live. A file of text is read as a whole:
    some hundred megabytes at most are well.

    Args:
        patterns: Paths, or patterns: ``"past/*.ndjson.gz"``, ``"past/**/*.parquet"``.
        format: ``"ndjson"``, ``"csv"`` or ``"parquet"``; by default as the name ends.
        schema: The types of columns. Otherwise they are those of all values of a file.

    Example:
        >>> import millstream as ms
        >>> import polars as pl
        >>> pl.DataFrame({"user": [1, 2, 1], "ts": ["2024-01-15", "2024-01-15", "2024-01-16"]}).write_csv("past.csv")
        >>> clicks = ms.stream("clicks", time="ts").group_by("user").window(ms.tumbling("1d")).agg(n=pl.len())
        >>> clicks.over(ms.files("past.csv"))["n"].to_list()
        [1, 1, 1]
        >>> log = ms.open()
        >>> ms.files("past.csv").load(log, "clicks", type="Click")
        3
    """
    if not patterns:
        raise UsageError("no files are named", hint="Write ms.files('past/*.parquet')")
    if format not in (None, "parquet", "ndjson", "csv"):
        raise UsageError(f"format={format!r} is not known", hint="Use 'ndjson', 'csv' or 'parquet'")
    return Files(tuple(os.fspath(pattern) for pattern in patterns), format, schema)


def _noting(
    checkpoint: Checkpoint, position: int, loaded: tuple[str, str, int, int, int]
) -> Callable[[Database, Receipt], None]:
    """What notes in a commit how far a file is loaded."""

    def work(database: Database, receipt: Receipt) -> None:
        advance(database, checkpoint, position)
        table = database.own(_TABLE)
        database.execute(f"delete from {table} where loader = ? and file = ?", loaded[:2])
        database.execute(f"insert into {table} (loader, file, size, rows, whole) values (?, ?, ?, ?, ?)", loaded)

    return work


def _matching(pattern: str) -> list[str]:
    """The paths that a pattern stands for: a file that is called just so is that file, whatever its name could mean."""
    return [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)


def _format_of(name: str) -> Format:
    plain = name
    for ending in _PACKED:
        plain = plain.removesuffix(ending)
    found = _ENDINGS.get(os.path.splitext(plain)[1])
    if found is None:
        raise UsageError(f"{name} may be anything", hint="Give format='ndjson', 'csv' or 'parquet'")
    return found


def _with_end(frames: Iterator[pl.DataFrame]) -> Iterator[tuple[pl.DataFrame, bool]]:
    """Each frame with whether it is the last; one without rows if there is none."""
    held = next(frames, pl.DataFrame())
    for frame in frames:
        yield held, False
        held = frame
    yield held, True


def _staged(log: Log, stream: str, frame: pl.DataFrame, type: str, tags: tuple[str, ...]) -> StagedAppend:
    """Rows to append, without columns that have no value, and so no type; as objects where no column has."""
    filled = frame.select(name for name, dtype in frame.schema.items() if dtype != pl.Null)
    if filled.width:
        return log.stage(stream, filled, type=type, tags=tags)
    return log.stage(stream, [Plain(type, dict.fromkeys(frame.columns))] * frame.height, tags=tags)
