"""The files of a warehouse as plain Parquet: names say which positions they hold, so that none counts twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import glob

import polars as pl

from ...log.files import PARTIAL, make_folder, whole

_POSITION = "millstream_position"


class ParquetFiles:
    """``history/day=2024-01-15/first-last.parquet`` and ``current.parquet``, which tells its position in its metadata.

    Several files of history belong together when their changes are of several days. A small file tells up to where the
    history goes, and is written last: files beyond that are what a killed process has left, and are removed.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.abspath(folder)
        self._history = os.path.join(self._folder, "history")
        self._current = os.path.join(self._folder, "current.parquet")
        self._mark = os.path.join(self._folder, "history.position")
        make_folder(self._history)
        held = self.history_position()
        for path in glob(os.path.join(glob_escape(self._folder), "**", f"*{PARTIAL}"), recursive=True):
            with suppress(FileNotFoundError):
                os.remove(path)
        for path, _, last in self._files():
            if last > held:
                os.remove(path)

    def history_position(self) -> int:
        """What the small file says."""
        try:
            with open(self._mark) as file:
                return int(file.read())
        except FileNotFoundError:
            return 0

    def current_position(self) -> int:
        """What the file's metadata says."""
        if not os.path.exists(self._current):
            return 0
        return int(pl.read_parquet_metadata(self._current).get(_POSITION, 0))

    def add_history(self, rows: pl.DataFrame, first: int, last: int, position: int) -> None:
        """A file for each day; then the mark."""
        days = rows.with_columns(rows["time"].dt.date().alias("day"))
        for (day,), some in days.group_by(["day"], maintain_order=True):
            folder = os.path.join(self._history, f"day={day}")
            make_folder(folder)
            with whole(os.path.join(folder, f"{first:019d}-{last:019d}.parquet")) as path:
                some.drop("day").write_parquet(path)
        if last == position:
            with whole(self._mark) as path, open(path, "w") as file:
                file.write(str(position))

    def known(self, positions: Sequence[int]) -> set[int]:
        """By the names, and then the column of positions."""
        low, high = min(positions), max(positions)
        found: set[int] = set()
        for path, first, last in self._files():
            if first <= high and last >= low:
                found.update(pl.read_parquet(path, columns=["position"], glob=False)["position"].to_list())
        return found.intersection(positions)

    def read_current(self) -> pl.DataFrame | None:
        """The file."""
        return pl.read_parquet(self._current, glob=False) if os.path.exists(self._current) else None

    def write_current(self, rows: pl.DataFrame, position: int) -> None:
        """Another file in its place."""
        with whole(self._current) as path:
            rows.write_parquet(path, metadata={_POSITION: str(position)})

    def read_history(self) -> pl.DataFrame | None:
        """All files."""
        frames = [pl.read_parquet(path, glob=False, hive_partitioning=False) for path, _, _ in self._files()]
        return pl.concat(frames, how="diagonal_relaxed") if frames else None

    def _files(self) -> Iterator[tuple[str, int, int]]:
        for path in sorted(glob(os.path.join(glob_escape(self._history), "day=*", "*.parquet"))):
            first, _, last = os.path.basename(path).removesuffix(".parquet").partition("-")
            yield path, int(first), int(last)


def glob_escape(path: str) -> str:
    """A path that stands for itself in a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
