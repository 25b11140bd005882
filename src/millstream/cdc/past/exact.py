"""Rows of a table without a key, which are told apart by all that they hold: change by change, in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from .lines import Left

Stored = tuple[Any, ...]


class ExactRows:
    """The rows of a table that has no key, or NULL in one: SQLite lets many rows have that.

    Args:
        names: The columns, in the order of the values of a row.
        key: Those that tell a row whose values in them are not NULL.
    """

    def __init__(self, names: Sequence[str], key: Sequence[str]) -> None:
        self.names = tuple(names)
        self.key = tuple(self.names.index(name) for name in key)
        self.rows: dict[Any, list[Stored]] = {}

    def apply(self, before: Stored | None, after: Stored | None) -> None:
        """Take a change in: the row before goes, the row after comes."""
        was: Stored | None = None
        if before is not None:
            address = self._address(before)
            same = self.rows.get(address)
            if same is not None:
                was = same.pop()
                if not same:
                    del self.rows[address]
        if after is None:
            return
        if any(value.__class__ is Left for value in after):
            was = was or self._known(after)
            after = tuple(
                (was[i] if was is not None else None) if value.__class__ is Left else value
                for i, value in enumerate(after)
            )
        if self._keyed(after):
            self.rows[self._address(after)] = [after]
        else:
            self.rows.setdefault(self._address(after), []).append(after)

    def clear(self) -> None:
        """No row is left."""
        self.rows.clear()

    def fill(self, frame: pl.DataFrame) -> None:
        """Take in the rows of a frame with these columns."""
        for row in frame.select(self.names).iter_rows():
            self.apply(None, row)

    def frame(self, schema: dict[str, Any]) -> pl.DataFrame:
        """The rows as a frame."""
        rows = [row for same in self.rows.values() for row in same]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self.names)
        return pl.DataFrame(
            [
                pl.Series(name, values, dtype=schema[name], strict=True)
                for name, values in zip(self.names, columns, strict=True)
            ]
        )

    def _known(self, after: Stored) -> Stored | None:
        same = self.rows.get(self._address(after)) if self._keyed(after) else None
        return same[-1] if same else None

    def _keyed(self, row: Stored) -> bool:
        return bool(self.key) and all(row[i] is not None for i in self.key)

    def _address(self, row: Stored) -> Any:
        if self._keyed(row):
            return True, *[row[i] for i in self.key]
        return False, *["NaN" if value != value else value for value in row]
