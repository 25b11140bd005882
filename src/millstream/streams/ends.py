"""Where a flow's rows go: a stream of the log, files, a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import polars as pl

from ..errors import UsageError
from ..log.handlers import check_plain
from ..time import Duration, duration_micros
from .errors import FlowError
from .windows import check_names

if TYPE_CHECKING:
    from .flow import Flow

Format = Literal["parquet", "ndjson", "csv"]


class Sink(msgspec.Struct, frozen=True):
    """Where a flow's rows go: the stream and the type of its events, both empty where they go elsewhere."""

    stream: str
    type: str
    name: str


class FileSink(Sink, frozen=True):
    """Files in a folder."""

    folder: str
    format: Format
    by: tuple[str, ...]
    every: int
    """So many microseconds of rows come into one file."""


class FunctionSink(Sink, frozen=True):
    """A function."""

    function: Callable[[pl.DataFrame], Any]


def name_of(flow: Flow) -> str:
    """A flow's name.

    Raises:
        FlowError: It has no end, and so no name.
    """
    if flow.sink is None:
        raise FlowError("a flow without an end is never run, and has no name", hint="End it with .to(stream, type=...)")
    return flow.sink.name


class Ending:
    """What `Flow` has of them."""

    __slots__ = ()

    def to_files(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Format = "parquet",
        partition_by: str | Sequence[str] = (),
        every: Duration = "10s",
        name: str | None = None,
    ) -> Flow:
        """Write the rows to files in a folder, each exactly once.

        A file holds the rows of one commit (of each partition), in their order, and is named by the flow and the
        positions of the log that it comes of: ``clicks-00000000000000000001-00000000000000004096.parquet``. It is
        written aside, and gets its name when the commit has happened; what a process that was killed has left behind
        is finished or removed when the flow is taken up again, wherever it is run then. So no file is there in part,
        no row in two files, and none is missing. A file that is there already is never overwritten: `StorageError`.

        Args:
            folder: The folder; made if need be. Other flows of the log may write there as well, by names of their own.
            format: ``"parquet"``, ``"ndjson"`` or ``"csv"``.
            partition_by: Columns by whose values the files are put into folders, ``day=2024-01-15/country=it/``. They
                are in the files, too. Null is ``__HIVE_DEFAULT_PARTITION__``, which therefore cannot be a value.
            every: While nothing is to be caught up with, so much time of rows comes into one file.
            name: As for `Flow.to`; by default the folder's, as given, but that ``./out`` is ``out``.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> day = pl.col("ts").dt.strftime("%Y-%m-%d")
            >>> kept = ms.stream("clicks", time="ts").with_columns(day=day).to_files("clicks", partition_by="day")
        """
        if format not in ("parquet", "ndjson", "csv"):
            raise UsageError(f"format={format!r} is not known", hint="Use 'parquet', 'ndjson' or 'csv'")
        by = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
        check_names(by, ())
        where = os.fspath(folder)
        return self._ended(FileSink("", "", name or os.path.normpath(where), where, format, by, duration_micros(every)))

    def to_function(self, function: Callable[[pl.DataFrame], Any], *, name: str) -> Flow:
        """Give the rows to a function, each at least once, in their order.

        It is called with a frame of some rows, in the thread that runs the flow, before the commit that holds the
        flow's checkpoint. A flow that was killed in between gives rows again, perhaps in other frames: from the first
        that was not committed, so never one that is missing. A function that raises ends the flow with `FlowError`.

        Args:
            function: Takes a frame.
            name: Names the flow, as for `Flow.to`.

        Example:
            >>> import millstream as ms
            >>> shown = ms.stream("clicks").to_function(print, name="show clicks")
        """
        if not callable(function):
            raise UsageError(f"{function!r:.60} is no function", hint="Give a function of a frame")
        check_plain(function)
        return self._ended(FunctionSink("", "", name, function))

    def _ended(self, sink: Sink) -> Flow:
        from .flow import Flow

        assert isinstance(self, Flow)
        if self.sink is not None:
            raise FlowError("the flow has ended already", hint="Give it one end; others may begin with the same flow")
        return msgspec.structs.replace(self, sink=sink)
