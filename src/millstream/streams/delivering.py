"""How rows get to where they go outside the log, around the commit that says that they did.

Files are written aside before the commit, which notes their paths, and get their names after it; then the note goes.
Whoever takes the flow up renames what was committed and removes what was not. A worker that was fenced cannot commit,
so what it has written stays aside.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec
import polars as pl

from ..errors import StorageError
from ..log.files import PARTIAL, make_folder, partial_name, sync_file, sync_folder
from ..storage.database import Database
from .columns import need
from .ends import FileSink, FunctionSink, Sink
from .errors import FlowError

if TYPE_CHECKING:
    from ..log.log import Log

_TABLE = "flow_files"
TABLES = {_TABLE: "flow text primary key, files text not null"}
"""What flows that write files keep beside the log: the files of their last commit, until these have their names."""

_NOBODY = "__HIVE_DEFAULT_PARTITION__"
"""How a folder is called whose rows have null there, by a convention that others read."""

_NUMBERED = re.compile(r"\d{20}-\d{20}(-\d{1,9})?\.(parquet|ndjson|csv)\.[0-9a-f]{12}\.part")


class Delivery(Protocol):
    """Takes the rows of a commit."""

    every: float
    """Seconds of rows in a commit, while nothing is to be caught up with."""

    def open(self, database: Database) -> None:
        """Learn what the last commit noted. Called in the transaction that takes the flow over."""

    def recover(self) -> None:
        """Finish what that commit began. Called after the transaction."""

    def give(self, frames: Iterable[pl.DataFrame], first: int, last: int) -> None:
        """Take the rows of these positions. Called before the commit."""

    def note(self, database: Database) -> None:
        """Note in the commit what is to be finished after it; may be called again."""

    def finish(self) -> None:
        """Finish it. Called after the commit."""


def delivery(sink: Sink, log: Log) -> Delivery | None:
    """What brings rows where they go; None for the log itself."""
    if isinstance(sink, FileSink):
        return _ToFiles(sink, log)
    return _ToFunction(sink) if isinstance(sink, FunctionSink) else None


class _ToFiles:
    def __init__(self, sink: FileSink, log: Log) -> None:
        self.every = sink.every / 1e6
        self._sink = sink
        self._log = log
        # Whatever the working directory is later.
        self._folder = os.path.abspath(sink.folder)
        self._mark = mark_of(sink.name)
        self._files: list[tuple[str, str]] = []
        """Those of the commit at hand: the path that each is written to, and the one that it gets."""

    def open(self, database: Database) -> None:
        database.ensure_table(_TABLE, TABLES[_TABLE])
        noted = self._noted(database)
        self._files = [] if noted is None else msgspec.json.decode(noted, type=list[tuple[str, str]])

    def _noted(self, database: Database) -> str | None:
        row = database.one(f"select files from {database.own(_TABLE)} where flow = ?", (self._sink.name,))
        return None if row is None else row["files"]

    def recover(self) -> None:
        try:
            make_folder(self._folder)
            for aside, path in self._files:
                if not os.path.exists(aside) and not os.path.exists(path) and self._is_unfinished():
                    raise StorageError(
                        f"{path} was committed by flow {self._sink.name!r} and is not there, nor is {aside}",
                        hint="Bring the folder back as it was; if the file was moved on, put one of that name (it may"
                        " be empty) in its place until the flow has been taken up",
                    )
            self.finish()
            for path in glob.glob(os.path.join(glob.escape(self._folder), "**", f"*{PARTIAL}"), recursive=True):
                if self._is_mine(os.path.basename(path)):
                    with suppress(FileNotFoundError):
                        os.remove(path)
        except OSError as error:
            raise _refused(self._folder, error) from error

    def _is_unfinished(self) -> bool:
        """Whether nobody else has finished the commit meanwhile."""
        with self._log.transaction() as tx:
            return self._noted(tx.db) == self._text

    def _is_mine(self, name: str) -> bool:
        return name.startswith(self._mark) and _NUMBERED.fullmatch(name[len(self._mark) :]) is not None

    def give(self, frames: Iterable[pl.DataFrame], first: int, last: int) -> None:
        self._files = []
        some = (frame for frame in frames if frame.height)
        for number, (frame, is_only) in enumerate(_with_only(some), 1):
            # Where types have changed within a commit, each kind of rows has a file; and very many rows have several.
            several = "" if is_only else f"-{number}"
            name = f"{self._mark}{first:020}-{last:020}{several}.{self._sink.format}"
            for folder, rows in self._partitions(frame):
                self._write(rows, os.path.join(folder, name))

    def _partitions(self, frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
        by = list(self._sink.by)
        if not by:
            return [("", frame)]
        need(by, frame.columns, "to_files(partition_by=...)")
        for column in by:
            dtype = frame.schema[column]
            if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
                raise FlowError(
                    f"to_files(partition_by=...) cannot name folders by column {column!r} of type {dtype}",
                    hint="Make a column of text of it: with_columns(...)",
                )
            if frame[column].cast(pl.String).eq(_NOBODY).any():
                raise FlowError(
                    f"column {column!r} of to_files(partition_by=...) holds the text {_NOBODY!r}, which means null",
                    hint="Replace the text before: with_columns(...)",
                )
        texts = [frame[name].cast(pl.String) for name in by]
        found = frame.with_columns(text.alias(f"__by{i}") for i, text in enumerate(texts))
        hidden = [f"__by{i}" for i in range(len(by))]
        pieces = []
        for values, rows in found.group_by(hidden, maintain_order=True):
            parts = [
                f"{quote(name, safe=' ')}={_NOBODY if value is None else quote(str(value), safe=' ')}"
                for name, value in zip(by, values, strict=True)
            ]
            pieces.append((os.path.join(*parts), rows.drop(hidden)))
        return pieces

    def _write(self, rows: pl.DataFrame, name: str) -> None:
        path = os.path.join(self._folder, name)
        aside = partial_name(path)
        if os.path.exists(path) or any(path == other for _, other in self._files):
            raise _taken(path)
        try:
            make_folder(os.path.dirname(path))
            if self._sink.format == "parquet":
                rows.write_parquet(aside)
            elif self._sink.format == "ndjson":
                rows.write_ndjson(aside)
            else:
                rows.write_csv(aside)
            sync_file(aside)
        except OSError as error:
            raise _refused(path, error) from error
        except pl.exceptions.PolarsError as error:
            raise FlowError(
                f"rows cannot be written as {self._sink.format}: {str(error).splitlines()[0]}",
                hint="Cast the column, leave it out with select(...), or use format='parquet'",
            ) from error
        self._files.append((aside, path))

    @property
    def _text(self) -> str:
        return msgspec.json.encode(self._files).decode()

    def note(self, database: Database) -> None:
        table = database.own(_TABLE)
        database.execute(f"delete from {table} where flow = ?", (self._sink.name,))
        if self._files:
            database.execute(f"insert into {table} (flow, files) values (?, ?)", (self._sink.name, self._text))

    def finish(self) -> None:
        if not self._files:
            return
        folders = set()
        for aside, path in self._files:
            try:
                # What has its name already leaves nothing aside; who reads the files may have moved it on.
                if os.path.exists(aside) and os.path.exists(path):
                    raise _taken(path)
                with suppress(FileNotFoundError):
                    os.replace(aside, path)
                    folders.add(os.path.dirname(path))
            except OSError as error:
                raise _refused(path, error) from error
        for folder in folders:
            sync_folder(folder)
        with self._log.transaction() as tx:
            # Not what somebody who has taken the flow over meanwhile has noted.
            tx.db.execute(
                f"delete from {tx.db.own(_TABLE)} where flow = ? and files = ?", (self._sink.name, self._text)
            )
        self._files = []


def _with_only(frames: Iterator[pl.DataFrame]) -> Iterator[tuple[pl.DataFrame, bool]]:
    """Frames, each with whether it is the only one."""
    first = next(frames, None)
    if first is None:
        return
    second = next(frames, None)
    yield first, second is None
    if second is not None:
        yield second, False
        yield from ((frame, False) for frame in frames)


def mark_of(name: str) -> str:
    """What the names of all files of a flow begin with: its name, as far as that can be in the name of a file."""
    plain = quote(name, safe=" ")
    if os.sep in name or len(plain) > 80:
        # A plus is in no quoted name.
        plain = f"{quote(os.path.basename(name), safe=' ')[:60]}+{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    # Files whose names begin with a dot are hidden.
    return f"{'%2E' + plain[1:] if plain.startswith('.') else plain}-"


def _taken(path: str) -> StorageError:
    return StorageError(
        f"{path} is there already, and no file of this commit",
        hint="Another log, or one that was there before, has written to the folder: move its files away,"
        " or give the flow a folder or a name= of its own",
    )


def _refused(path: str, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}",
        hint="See to the folder, its room and its permissions; the flow then goes on where it was",
    )


class _ToFunction:
    every = 0.0

    def __init__(self, sink: FunctionSink) -> None:
        self._function = sink.function
        self._name = sink.name

    def open(self, database: Database) -> None:
        pass

    def recover(self) -> None:
        pass

    def give(self, frames: Iterable[pl.DataFrame], first: int, last: int) -> None:
        for frame in frames:
            if not frame.height:
                continue
            try:
                self._function(frame)
            except Exception as error:
                raise FlowError(
                    f"the function of flow {self._name!r} fails ({type(error).__name__}: {error})",
                    hint="Make it take every row; when the flow is run again, it is given these rows again",
                ) from error

    def note(self, database: Database) -> None:
        pass

    def finish(self) -> None:
        pass
