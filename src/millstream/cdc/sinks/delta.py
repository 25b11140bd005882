"""The files of a warehouse as two Delta tables, each of whose commits says the position that it goes up to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import polars as pl

from ...errors import MissingExtra, SinkUnavailable, UsageError

_LOOSE = {pl.Null: pl.String, pl.Time: pl.String, pl.Duration("us"): pl.Int64, pl.UInt64: pl.Decimal(20, 0)}
"""Types that Delta has not: times become text, durations microseconds."""


def require_delta() -> Any:
    """See that the extra is there.

    Raises:
        MissingExtra: It is not.
    """
    try:
        import deltalake
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtra("delta", "deltalake") from error
    return deltalake


def check_path(folder: str) -> None:
    """See that a path is one that Delta can use, which takes it for an address.

    Raises:
        UsageError: It is not.
    """
    odd = sorted({each for each in os.path.abspath(folder) if each in "%[]\\"})
    if odd:
        raise UsageError(
            f"no Delta table can be in {folder!r}: its path has {' and '.join(map(repr, odd))}",
            hint="Give a folder without them, or format='parquet'",
        )


class DeltaFiles:
    """``history`` and ``current``, in the folder. A commit carries the position as its application transaction."""

    def __init__(self, folder: str, app: str) -> None:
        self._delta = require_delta()
        self._history = os.path.abspath(os.path.join(folder, "history"))
        self._current = os.path.abspath(os.path.join(folder, "current"))
        self._app = app

    def history_position(self) -> int:
        """That of its last commit."""
        return self._position(self._history)

    def current_position(self) -> int:
        """That of its last commit."""
        return self._position(self._current)

    def _position(self, path: str) -> int:
        if not self._delta.DeltaTable.is_deltatable(path):
            return 0
        return int(self._delta.DeltaTable(path).transaction_version(self._app) or 0)

    def add_history(self, rows: pl.DataFrame, first: int, last: int, position: int) -> None:
        """One commit. It goes up to its last change; for one that comes late, no further than the history went."""
        days = rows.with_columns(rows["time"].dt.date().alias("day"))
        self._write(self._history, days, "append", max(last, self.history_position()))

    def known(self, positions: Sequence[int]) -> set[int]:
        """By a scan of the column of positions, which skips files by their statistics."""
        if not self._delta.DeltaTable.is_deltatable(self._history):
            return set()
        table = self._delta.DeltaTable(self._history)
        found = pl.from_arrow(
            table.to_pyarrow_table(
                columns=["position"],
                filters=[("position", ">=", min(positions)), ("position", "<=", max(positions))],
            )
        )
        assert isinstance(found, pl.DataFrame)
        return set(found["position"].to_list()).intersection(positions)

    def read_current(self) -> pl.DataFrame | None:
        """The table."""
        return self._read(self._current)

    def write_current(self, rows: pl.DataFrame, position: int) -> None:
        """One commit that overwrites; the versions before stay readable, as in any Delta table."""
        self._write(self._current, rows, "overwrite", position)

    def read_history(self) -> pl.DataFrame | None:
        """The table."""
        rows = self._read(self._history)
        return rows.drop("day") if rows is not None else None

    def _read(self, path: str) -> pl.DataFrame | None:
        if not self._delta.DeltaTable.is_deltatable(path):
            return None
        rows = pl.from_arrow(self._delta.DeltaTable(path).to_pyarrow_table())
        assert isinstance(rows, pl.DataFrame)
        return rows

    def _write(self, path: str, rows: pl.DataFrame, mode: str, position: int) -> None:
        delta = self._delta
        casts = {name: _LOOSE[dtype] for name, dtype in rows.schema.items() if dtype in _LOOSE}
        rows = rows.with_columns([_cast(rows[name], dtype) for name, dtype in casts.items()])
        properties = delta.CommitProperties(app_transactions=[delta.Transaction(self._app, position)])
        try:
            delta.write_deltalake(
                path,
                rows.to_arrow(),
                mode=mode,
                partition_by=["day"] if mode == "append" else None,
                schema_mode="merge" if mode == "append" else "overwrite",
                commit_properties=properties,
            )
        except delta.exceptions.SchemaMismatchError as error:
            raise UsageError(
                f"a column of {path} has another type: {error}",
                hint='Make it text from the beginning: kinds={"it": "text"}',
            ) from error
        except delta.exceptions.DeltaError as error:
            raise SinkUnavailable(f"{path}: {error}", hint="Look into the folder") from error


def _cast(values: pl.Series, dtype: Any) -> pl.Series:
    if values.dtype == pl.Duration("us"):
        return values.dt.total_microseconds()
    return values.cast(dtype)
