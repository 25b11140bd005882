"""The rows of a part: in memory, or beyond the limit in a file, where they are read as they are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from ..frames import decode_frame, encode_frame
from .hashing import Hashes
from .keys import Ints
from .rooms import Room, Span

HASH = "__hash"
"""The column with the hash of each row's key, by which a part that has one is sorted."""

_asked = itertools.count(1)


class Body:
    """Rows that never change.

    Attributes:
        height: How many they are.
        schema: Their columns.
        size: About how many bytes they take in memory.
        lane: The lane that all of them are in (`lanes`), if they are sorted by the hash of their key.
        used: When they were last asked for, as a number that grows.
    """

    __slots__ = ("_filed", "_frame", "height", "lane", "schema", "size", "used")

    def __init__(self, frame: pl.DataFrame, lane: int | None = None) -> None:
        self._frame: pl.DataFrame | None = frame
        self._filed: _Filed | None = None
        self.height = frame.height
        self.schema = frame.schema
        self.size = int(frame.estimated_size())
        self.lane = lane
        self.used = next(_asked)

    @property
    def spilled(self) -> bool:
        """Whether they are in a file, and not in memory."""
        return self._frame is None

    @property
    def frame(self) -> pl.DataFrame:
        """All of them; read anew where they are in a file."""
        self.used = next(_asked)
        frame, filed = self._frame, self._filed
        if frame is None:
            assert filed is not None
            frame = filed.read()
        return frame

    def hashes(self) -> Hashes:
        """The hashes of their keys, ascending; not to be kept."""
        self.used = next(_asked)
        return self._numbers(HASH)

    def at(self, places: Ints) -> pl.DataFrame:
        """Some of them, by their places."""
        frame, filed = self._frame, self._filed
        if frame is not None:
            return frame[places]
        assert filed is not None
        return filed.read(places)

    def least(self, column: str, limit: int) -> int | None:
        """The least number of a column that is not below a limit; None when all are. Reads only that column."""
        values = self._numbers(column)
        alive = values[values >= limit]
        return int(alive.min()) if len(alive) else None

    def below(self, column: str, limit: int) -> int:
        """How many numbers of a column are below a limit. Reads only that column."""
        return int(np.count_nonzero(self._numbers(column) < limit))

    def _numbers(self, column: str) -> np.ndarray[Any, Any]:
        frame, filed = self._frame, self._filed
        if frame is not None:
            return frame[column].to_numpy()
        assert filed is not None
        return filed.numbers(column)

    def spill(self, room: Room) -> None:
        """Put them into a file, and let go of them.

        Raises:
            SpillFailed: There is no room for them; they stay where they are.
        """
        frame = self._frame
        if frame is not None:
            self._filed = _filed(frame, room)
            self._frame = None


class _Column(msgspec.Struct, frozen=True, eq=False):
    """A column in a file: numbers that may be read where they stand, or texts, or something else."""

    name: str
    dtype: pl.DataType
    numbers: tuple[str, int] | None = None
    """Their kind, as numpy names it, and where they are."""
    nulls: int | None = None
    """Where it says which of them are null."""
    texts: tuple[int, int] | None = None
    """Where the ends of texts are, and their bytes."""


class _Filed(msgspec.Struct, frozen=True, eq=False):
    """Rows in a file. What are no numbers stands there as Arrow too, to be read as a whole."""

    span: Span
    height: int
    columns: tuple[_Column, ...]
    others: tuple[int, int] | None

    def numbers(self, name: str) -> np.ndarray[Any, Any]:
        """A column of numbers as it stands in the file; not to be kept."""
        [column] = (column for column in self.columns if column.name == name)
        assert column.numbers is not None
        return self.span.array(column.numbers[0], self.height, column.numbers[1])

    def read(self, places: Ints | None = None) -> pl.DataFrame:
        """All rows, or some of them by their places; copies."""
        others = None
        found = []
        for column in self.columns:
            if column.numbers is not None:
                values = self.numbers(column.name)
                # An array of one's own: Polars may take it as it is, and the file's is not to be kept.
                series = pl.Series(column.name, np.array(values) if places is None else values[places])
                if series.dtype != column.dtype:
                    series = series.cast(column.dtype)
                if column.nulls is not None:
                    known = self.span.array("bool", self.height, column.nulls)
                    known = np.array(known) if places is None else known[places]
                    series = series.zip_with(pl.Series(known), pl.Series(column.name, [None], column.dtype))
                found.append(series)
            elif places is not None and column.texts is not None:
                found.append(self._texts(column, places))
            else:
                if others is None:
                    assert self.others is not None
                    others = decode_frame(self.span.bytes(*self.others))
                found.append(others[column.name] if places is None else others[column.name][places])
        return pl.DataFrame(found)

    def _texts(self, column: _Column, places: Ints) -> pl.Series:
        assert column.texts is not None
        ends = self.span.array("int64", self.height + 1, column.texts[0])
        begins, stops, data = ends[places].tolist(), ends[places + 1].tolist(), column.texts[1]
        held = [self.span.bytes(data + begin, stop - begin) for begin, stop in zip(begins, stops, strict=True)]
        series = pl.Series(column.name, held, pl.Binary)
        if column.nulls is not None:
            known = self.span.array("bool", self.height, column.nulls)[places]
            series = series.zip_with(pl.Series(known), pl.Series(column.name, [None], pl.Binary))
        return series.cast(column.dtype)


def _filed(frame: pl.DataFrame, room: Room) -> _Filed:
    pieces: list[memoryview | bytes] = []
    columns: list[_Column] = []
    others: list[str] = []

    def put(values: np.ndarray[Any, Any]) -> int:
        pieces.append(np.ascontiguousarray(values).data.cast("B") if len(values) else b"")
        return len(pieces) - 1

    for series in frame:
        dtype = series.dtype
        nulls = put(series.is_not_null().to_numpy()) if series.null_count() else None
        if _is_number(dtype):
            plain = series if dtype.is_numeric() else series.to_physical()
            if nulls is not None:
                plain = plain.fill_null(False if dtype == pl.Boolean else 0)
            values = plain.to_numpy()
            columns.append(_Column(series.name, dtype, (values.dtype.str, put(values)), nulls))
            continue
        others.append(series.name)
        texts = None
        if dtype in (pl.String, pl.Binary):
            held = series.cast(pl.Binary).fill_null(b"")
            sizes = held.bin.size().to_numpy().astype(np.int64)
            texts = (put(np.concatenate([[0], sizes.cumsum()])), len(pieces))
            pieces.append(b"".join(held.to_list()))
        columns.append(_Column(series.name, dtype, None, nulls, texts))
    if others:
        pieces.append(encode_frame(frame.select(others)))
    span, places = room.put(pieces)
    return _Filed(
        span,
        frame.height,
        tuple(_placed(column, places) for column in columns),
        (places[-1], len(pieces[-1])) if others else None,
    )


def _placed(column: _Column, places: Sequence[int]) -> _Column:
    """A column with its pieces' places for their numbers."""
    return _Column(
        column.name,
        column.dtype,
        None if column.numbers is None else (column.numbers[0], places[column.numbers[1]]),
        None if column.nulls is None else places[column.nulls],
        None if column.texts is None else (places[column.texts[0]], places[column.texts[1]]),
    )


def _is_number(dtype: pl.DataType) -> bool:
    return dtype in _NUMBERS or isinstance(dtype, pl.Datetime | pl.Duration)


_NUMBERS = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
    *(pl.Float32, pl.Float64, pl.Boolean, pl.Date, pl.Time),
)
