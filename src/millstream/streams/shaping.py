"""The stages without memory: each row for itself."""

from __future__ import annotations

import msgspec
import polars as pl

from .columns import ENVELOPE, hidden, is_hidden, names_of
from .expressions import apply


class Filter(msgspec.Struct, frozen=True, eq=False):
    """Keeps the rows that meet a condition."""

    condition: pl.Expr

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of([self.condition])

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        return apply("filter", frame.columns, lambda: frame.filter(self.condition))


class WithColumns(msgspec.Struct, frozen=True, eq=False):
    """Adds or replaces columns."""

    expressions: tuple[pl.Expr, ...]

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of(self.expressions)

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        seen = _seen(frame, self.expressions)
        added = apply("with_columns", frame.columns, lambda: seen.with_columns(self.expressions))
        return _beside(added, frame)


class Select(msgspec.Struct, frozen=True, eq=False):
    """Keeps only some columns."""

    expressions: tuple[pl.Expr, ...]

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of(self.expressions)

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        seen = _seen(frame, self.expressions)

        def compute() -> pl.DataFrame:
            names = seen.lazy().select(self.expressions).collect_schema().names()
            # With a literal alone, select would give one row.
            return seen.with_columns(self.expressions).select(names)

        return _beside(apply("select", frame.columns, compute), frame)


def _seen(frame: pl.DataFrame, expressions: tuple[pl.Expr, ...]) -> pl.DataFrame:
    """The columns that expressions may see: ``pl.all()`` means the user's, others are asked for by name."""
    asked = names_of(expressions)
    return frame.select(name for name in frame.columns if not is_hidden(name) or (name in ENVELOPE and name in asked))


def _beside(result: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """The result with the hidden columns of the frame that it came from."""
    own = [name for name in result.columns if not is_hidden(name)]
    return result.select(own).with_columns(frame.select(hidden(frame)))
