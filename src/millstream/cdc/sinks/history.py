"""All changes of a table as rows: what happened, where it stands in the log, when, and the row before and after."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ..shape import Shape
from ..values import Unchanged
from .base import Changes
from .columns import frame

BEFORE, AFTER = "before_", "after_"
"""What the names of the columns of the row before and after begin with."""


def history_frame(changes: Changes, shape: Shape, kinds: Mapping[str, str]) -> pl.DataFrame:
    """Changes of rows of one shape, a row each.

    Columns are ``position``, ``operation``, ``time`` (of the change at the source), ``unchanged`` (columns that an
    update did not tell; they are null here), and the row's columns, before and after.
    """
    head = pl.DataFrame(
        {
            "position": pl.Series([recorded.position for _, recorded in changes], dtype=pl.Int64),
            "operation": pl.Series([change.operation for change, _ in changes], dtype=pl.String),
            "time": pl.Series([change.timestamp for change, _ in changes], dtype=pl.Datetime("us", "UTC")),
            "unchanged": pl.Series(
                [[n for n, v in (change.after or {}).items() if v is Unchanged] for change, _ in changes],
                dtype=pl.List(pl.String),
            ),
        }
    )
    before = frame([change.before or {} for change, _ in changes], shape.columns, kinds, BEFORE)
    after = frame([change.after or {} for change, _ in changes], shape.columns, kinds, AFTER)
    return pl.concat([head, before, after], how="horizontal")
