"""A captured table for analysis: its present rows and its whole history, in a DuckDB file or a folder of Parquet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from ...errors import UsageError
from ...time import Duration, duration_micros
from ..change import SchemaChanged, SnapshotCompleted
from .base import RETRIES, Changes, SinkBase

if TYPE_CHECKING:
    import polars as pl

    from ...log import Log, Recorded
    from ...storage.database import Database

Format = Literal["parquet", "delta"]

_DUCK = (".duckdb", ".ddb", ".db")


class House(Protocol):
    """What a warehouse is kept in."""

    location: str

    def open(self, log: Log, stream: str) -> int: ...
    def apply(self, changes: Changes) -> None: ...
    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None: ...
    def settle(self, last: bool) -> None: ...
    def close(self) -> None: ...
    def current(self) -> pl.DataFrame: ...
    def history(self) -> pl.DataFrame: ...


class Warehouse(SinkBase):
    """The present rows of a captured table, and all that ever happened to them.

    In a DuckDB file (``"warehouse.duckdb"``), they are the tables ``users`` and ``users_history``, changed in one
    transaction with the position: exactly once. The file is let go of whenever all changes are in it, so that other
    programs can read it.

    In a folder (``"lake/"``), they are ``lake/users/current.parquet`` and files ``lake/users/history/day=…/….parquet``,
    or two Delta tables. Each file appears whole, or not at all, and says up to which position it goes: exactly once,
    too. They are written every `refresh`, so that files are few; what is not written yet is taken from the log
    again after a crash.

    Columns have types that follow from the source's. A value that has no place in its column's type (an infinite date,
    a NaN in a ``numeric(10,2)``) is parked; `kinds` can make such a column text.

    Args:
        place: The path of a file that ends in ``.duckdb`` (extra ``sql``), or a folder.
        table: The table's name in the warehouse; by default its own.
        format: Of a folder: ``"parquet"``, or ``"delta"`` (extra ``delta``).
        kinds: Kinds for some columns instead of their own, such as ``{"valid_until": "text"}``.
        refresh: Of a folder: how often files are written. The file of the present rows is written less often when it
            takes long.
        name: Names the follower; by default made of the place.
        size: How many changes are given at once.
        retries: As in `SinkBase`.

    Raises:
        UsageError: The place cannot be used.
        MissingExtra: An extra is not installed.

    Example:
        >>> import millstream as ms
        >>> ms.Warehouse("lake/").name
        'warehouse:lake/'
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        table: str | None = None,
        format: Format = "parquet",
        kinds: Mapping[str, str] | None = None,
        refresh: Duration | float = "30s",
        name: str | None = None,
        size: int = 10_000,
        retries: int | None = RETRIES,
    ) -> None:
        place = os.fspath(place)
        if not place or "://" in place:
            raise UsageError(f"{place!r:.60} is no place for a warehouse", hint='Write "warehouse.duckdb" or "lake/"')
        if format not in ("parquet", "delta"):
            raise UsageError(f"{format!r:.40} is no format", hint='Write "parquet" or "delta"')
        self._house: House
        if place.endswith(_DUCK) and not os.path.isdir(place):
            if format != "parquet":
                raise UsageError("a file of DuckDB has no other format", hint="Give a folder for Delta tables")
            from .duck import Duck

            self._house = Duck(place, table, dict(kinds or {}))
        else:
            from .lake import Lake

            seconds = float(refresh) if isinstance(refresh, int | float) else duration_micros(refresh) / 1e6
            self._house = Lake(place, table, dict(kinds or {}), format, seconds)
        self.name = name or f"warehouse:{place}" + (f"#{table}" if table else "")
        self.size = size
        self.retries = retries

    def open(self, log: Log, stream: str) -> int:
        """Get the warehouse ready, and say what it holds."""
        return self._house.open(log, stream)

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Bring changes in."""
        self._house.apply(changes)

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Change the columns of the present rows as the source's were."""
        self._house.notice(event, recorded)

    def settle(self, *, last: bool = False) -> None:
        """Write what is to be written, and let others at the file."""
        self._house.settle(last)

    def close(self) -> None:
        """Close it."""
        self._house.close()

    def current(self) -> pl.DataFrame:
        """The present rows, as far as they are written. For a warehouse that was opened by its follower."""
        return self._house.current()

    def history(self) -> pl.DataFrame:
        """All changes, as far as they are written, in their order: see the guide for the columns."""
        return self._house.history()
