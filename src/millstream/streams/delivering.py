"""How rows get to where they go outside the log, around the commit that says that they did.

Files are written aside before the commit, which notes their names, and get these after it. Whoever takes the flow up
renames what was committed and removes what was not. A worker that was fenced cannot commit, so what it has written
stays aside.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol
from urllib.parse import quote

import msgspec
import polars as pl

from ..errors import StorageError
from ..log.files import PARTIAL, make_folder, partial_name, sync_file, sync_folder
from ..storage.database import Database
from .columns import need
from .ends import FileSink, FunctionSink, Sink
from .errors import FlowError

_TABLE = "flow_files"
TABLES = {_TABLE: "flow text primary key, files text not null"}
"""What flows that write files keep beside the log: the files of their last commit."""

_NOBODY = "__HIVE_DEFAULT_PARTITION__"
"""How a folder is called whose rows have null there, by a convention that others read."""

_NUMBERED = re.compile(r"\d{20}-\d{20}(-\d+)?\.(parquet|ndjson|csv)\.[0-9a-f]{12}\.part")


class Delivery(Protocol):
    """Takes the rows of a commit."""

    every: float
    """Seconds of rows in a commit, while nothing is to be caught up with."""

    def open(self, database: Database) -> None:
        """Learn what the last commit noted. Called in the transaction that takes the flow over."""

    def recover(self) -> None:
        """Finish what that commit began. Called after the transaction."""

    def give(self, frames: Sequence[pl.DataFrame], first: int, last: int) -> None:
        """Take the rows of these positions. Called before the commit."""

    def note(self, database: Database) -> None:
        """Note in the commit what is to be finished after it; may be called again."""

    def finish(self) -> None:
        """Finish it. Called after the commit."""


def delivery(sink: Sink) -> Delivery | None:
    """What brings rows where they go; None for the log itself."""
    if isinstance(sink, FileSink):
        return _ToFiles(sink)
    return _ToFunction(sink) if isinstance(sink, FunctionSink) else None


class _ToFiles:
    def __init__(self, sink: FileSink) -> None:
        self.every = sink.every / 1e6
        self._sink = sink
        self._files: list[tuple[str, str]] = []
        """Those of the commit at hand: where each is written, and its name, within the folder."""

    def open(self, database: Database) -> None:
        database.ensure_table(_TABLE, TABLES[_TABLE])
        row = database.one(f"select files from {database.own(_TABLE)} where flow = ?", (self._sink.name,))
        self._files = [] if row is None else msgspec.json.decode(row["files"], type=list[tuple[str, str]])

    def recover(self) -> None:
        try:
            make_folder(os.path.abspath(self._sink.folder))
            self.finish()
            noted = {aside for aside, _ in self._files}
            for path in glob.glob(os.path.join(glob.escape(self._sink.folder), "**", f"*{PARTIAL}"), recursive=True):
                aside = os.path.relpath(path, self._sink.folder)
                if self._is_mine(os.path.basename(path)) and aside not in noted:
                    with suppress(FileNotFoundError):
                        os.remove(path)
        except OSError as error:
            raise _refused(self._sink.folder, error) from error

    def _is_mine(self, name: str) -> bool:
        return name.startswith(self._mark) and _NUMBERED.fullmatch(name[len(self._mark) :]) is not None

    @property
    def _mark(self) -> str:
        """What the names of all files of the flow begin with; nothing where it is called as its folder is."""
        return "" if self._sink.name == self._sink.folder else f"{quote(self._sink.name, safe=' ')}-"

    def give(self, frames: Sequence[pl.DataFrame], first: int, last: int) -> None:
        self._files = []
        frames = [frame for frame in frames if frame.height]
        for number, frame in enumerate(frames, 1):
            # Where types have changed within a commit, each kind of rows has a file.
            several = f"-{number}" if len(frames) > 1 else ""
            name = f"{self._mark}{first:020}-{last:020}{several}.{self._sink.format}"
            for folder, rows in self._partitions(frame):
                self._write(rows, os.path.join(folder, name))

    def _partitions(self, frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
        by = list(self._sink.by)
        if not by:
            return [("", frame)]
        need(by, frame.columns, "to_files(partition_by=...)")
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
        path = os.path.join(self._sink.folder, name)
        aside = partial_name(path)
        try:
            make_folder(os.path.dirname(os.path.abspath(path)))
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
        self._files.append((os.path.relpath(aside, self._sink.folder), name))

    def note(self, database: Database) -> None:
        files = msgspec.json.encode(self._files).decode()
        table = database.own(_TABLE)
        database.execute(f"delete from {table} where flow = ?", (self._sink.name,))
        database.execute(f"insert into {table} (flow, files) values (?, ?)", (self._sink.name, files))

    def finish(self) -> None:
        folders = set()
        for aside, name in self._files:
            path = os.path.join(self._sink.folder, name)
            try:
                # One that is not there has its name already; who reads the files may have moved it on.
                with suppress(FileNotFoundError):
                    os.replace(os.path.join(self._sink.folder, aside), path)
                    folders.add(os.path.dirname(os.path.abspath(path)))
            except OSError as error:
                raise _refused(path, error) from error
        for folder in folders:
            sync_folder(folder)


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

    def give(self, frames: Sequence[pl.DataFrame], first: int, last: int) -> None:
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
