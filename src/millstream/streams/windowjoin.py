"""Pairs of rows that are in the same window."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from .columns import AT, utc
from .errors import FlowError
from .joins import Join, spans
from .keys import Ints
from .windows import Hopping

_ROW = "__row"
BOUNDS = ("window_start", "window_end")


class WindowJoin(Join, frozen=True, eq=False):
    """The operator of ``join`` with a window. Rows are kept until the last of their windows has closed."""

    window: Hopping

    @property
    def shape(self) -> str:
        return f"join {self.how} on {self.on} in windows {self.window.size}/{self.window.every}"

    @property
    def gives(self) -> tuple[str, ...]:
        return BOUNDS

    def limits(self, watermark: int) -> tuple[int, int]:
        first = (self._closed(watermark) + 1) * self.window.every
        return first, first

    def _closed(self, watermark: int) -> int:
        """The number of the last window whose end the watermark has reached."""
        return (watermark - self.window.size) // self.window.every

    def _pairs(self, left: pl.DataFrame, right: pl.DataFrame, before: int, after: int) -> pl.DataFrame:
        first, last = self._closed(before) + 1, self._closed(after)
        if first > last:
            return pl.DataFrame()
        lefts, rights = (self._in_windows(frame, first, last) for frame in (left, right))
        # From here on the time of a row is the number of its window: partners are those of the same.
        begins, ends, order = spans(lefts, rights, self.on, 0, 0)
        counts = ends - begins
        ones, others = lefts[_ROW].to_numpy(), rights[_ROW].to_numpy()
        found: list[tuple[Ints, Ints, Ints]] = []
        if self.how not in ("semi", "anti"):
            which = np.repeat(np.arange(len(counts)), counts)
            partners = order[np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts - begins, counts)]
            found.append((ones[which], others[partners], lefts[AT].to_numpy()[which]))
        if self.how != "inner":
            which = np.flatnonzero((counts > 0) if self.how == "semi" else (counts == 0))
            found.append((ones[which], np.full(len(which), -1), lefts[AT].to_numpy()[which]))
        if self.how == "full":
            begins, ends, _ = spans(rights, lefts, self.on, 0, 0)
            which = np.flatnonzero(ends == begins)
            found.append((np.full(len(which), -1), others[which], rights[AT].to_numpy()[which]))
        a, b, windows = (np.concatenate(each).astype(np.int64) for each in zip(*found, strict=True))
        if not len(windows):
            return pl.DataFrame()
        return self._joined(left, right, a, b, windows * self.window.every + self.window.size - 1)

    def _in_windows(self, frame: pl.DataFrame, first: int, last: int) -> pl.DataFrame:
        """Each row once for each of its windows between two, with the window's number as its time."""
        size, every = self.window.size, self.window.every
        frame = frame.with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64))
        pieces = []
        for back in range(math.ceil(size / every)):
            window = pl.col(AT) // every - back
            inside = window.is_between(first, last) & (window * every + size > pl.col(AT))
            pieces.append(frame.filter(inside).with_columns(window.alias(AT)))
        return pl.concat(pieces)

    def _joined(self, left: pl.DataFrame, right: pl.DataFrame, lefts: Ints, rights: Ints, at: Ints) -> pl.DataFrame:
        frame = super()._joined(left, right, lefts, rights, at)
        for name in BOUNDS:
            if name in frame.columns and name not in self.on:
                raise FlowError(
                    f"the rows that are joined in windows have a column {name!r} already",
                    hint="Leave it out with select(...), or give prefix='...' for the other side",
                )
        end = pl.col(AT) + 1
        start = end - self.window.size
        others = [name for name in frame.columns if name not in (*self.on, *BOUNDS)]
        return frame.select(*self.on, utc(start).alias(BOUNDS[0]), utc(end).alias(BOUNDS[1]), *others)
