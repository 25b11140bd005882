"""The past of captured tables, as methods of a log.

What they do is the pattern's, `millstream.cdc`, which the log may not import: it is looked up when it is first called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..storage.forked import check_frames

if TYPE_CHECKING:
    import polars as pl

    from ..storage.base import Receipt
    from .positions import At


class CapturedTables:
    """What a log tells of the tables that were captured into it."""

    def table(
        self, name: str, *, at: At | None = None, position: int | Receipt | None = None, prefix: str = ""
    ) -> pl.DataFrame:
        """A captured table as it stood at a moment of the source; see `millstream.cdc.table`."""
        found: pl.DataFrame = _pattern("table")(self, name, at=at, position=position, prefix=prefix)
        return found

    def row_history(
        self, name: str, key: Any, *, at: At | None = None, position: int | Receipt | None = None, prefix: str = ""
    ) -> list[Any]:
        """Every change of one row of a captured table, in order; see `millstream.cdc.row_history`."""
        found: list[Any] = _pattern("row_history")(self, name, key, at=at, position=position, prefix=prefix)
        return found

    def table_diff(
        self, name: str, before: At | int, after: At | int | None = None, *, prefix: str = ""
    ) -> pl.DataFrame:
        """What differs between a captured table at two moments; see `millstream.cdc.diff`."""
        found: pl.DataFrame = _pattern("diff")(self, name, before, after, prefix=prefix)
        return found


def _pattern(name: str) -> Any:
    check_frames()
    return getattr(import_module("millstream.cdc"), name)
