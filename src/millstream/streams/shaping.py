"""The stages without memory: each row for itself."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import polars as pl

from .columns import ENVELOPE, GONE, SEQUENCE, dicts, hidden, is_hidden, names_of, need, picked, visible
from .errors import FlowError
from .expressions import apply


class Filter(msgspec.Struct, frozen=True, eq=False):
    """Keeps the rows that meet a condition."""

    condition: pl.Expr

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of([self.condition])

    def met(self, frame: pl.DataFrame) -> pl.Series:
        """Whether each row meets it."""

        def compute() -> pl.Series:
            [found] = frame.select(self.condition.alias("met")).get_columns()
            if found.dtype != pl.Boolean:
                frame.filter(self.condition)  # says what is wrong with it
            # A literal is one value for all rows.
            return found if len(found) == frame.height else found.new_from_index(0, frame.height)

        return apply("filter", frame.columns, compute)

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(self.met(frame))


class Unmet(msgspec.Struct, frozen=True, eq=False):
    """Marks the rows of a table that do not meet a condition as gone: the row of that key before them is."""

    condition: pl.Expr

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of([self.condition])

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        gone = pl.col(GONE) | ~self.condition.fill_null(False)
        return apply("filter", frame.columns, lambda: frame.with_columns(gone.alias(GONE)))


class WithColumns(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Adds or replaces columns."""

    expressions: tuple[pl.Expr, ...]

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of(self.expressions)

    @cached_property
    def _names(self) -> list[str] | None:
        return outputs_of(self.expressions)

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self._names is not None:
            return apply("with_columns", visible(frame), lambda: frame.with_columns(self.expressions))
        seen = _seen(frame, self.expressions)
        added = apply("with_columns", frame.columns, lambda: seen.with_columns(self.expressions))
        return _beside(added, frame)


class Select(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Keeps only some columns."""

    expressions: tuple[pl.Expr, ...]

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of(self.expressions)

    @cached_property
    def _names(self) -> list[str] | None:
        return outputs_of(self.expressions)

    @cached_property
    def _only_columns(self) -> bool:
        """Whether it leaves all that it keeps as it is."""
        return self._names is not None and all(each.meta.is_column() for each in self.expressions)

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        beside = hidden(frame)
        if self._names is not None and beside:
            if self._only_columns and set(self._names) <= set(frame.columns):
                return picked(frame, [*self._names, *beside])
            return apply("select", visible(frame), lambda: frame.select(*self.expressions, *beside))
        seen = _seen(frame, self.expressions)

        def compute() -> pl.DataFrame:
            names = seen.lazy().select(self.expressions).collect_schema().names()
            # With a literal alone, select would give one row.
            return seen.with_columns(self.expressions).select(names)

        return _beside(apply("select", frame.columns, compute), frame)


class Mapped(msgspec.Struct, frozen=True, eq=False):
    """Adds or replaces columns by a Python function."""

    function: Callable[..., Any]
    types: Mapping[str, Any]
    """The columns that it gives."""
    asks: tuple[str, ...] | None
    """The columns that it is shown; None for all."""
    by_row: bool
    """It takes a row, not a frame."""
    errors: str | None = None
    """The column that says why the function failed for a row; without one, its failure is the flow's."""

    @property
    def reads(self) -> set[str]:
        """The columns that it reads by name."""
        return set(self.asks or ())

    @property
    def verb(self) -> str:
        """What it is called."""
        return "map_rows" if self.by_row else "map_batches"

    @property
    def outputs(self) -> list[str]:
        """The columns that it gives."""
        return [*self.types, *([self.errors] if self.errors else [])]

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        need(self.asks or (), frame.columns, self.verb, visible(frame))
        shown = frame.select(self.asks if self.asks is not None else visible(frame))
        made = self._of_rows(shown, frame) if self.by_row else self._of_frame(shown)
        return frame.with_columns(made.get_columns())

    def _of_frame(self, shown: pl.DataFrame) -> pl.DataFrame:
        if not shown.height:
            return pl.DataFrame(schema=dict(self.types))
        try:
            given = self.function(shown)
        except Exception as error:
            raise FlowError(
                f"the function of map_batches fails ({type(error).__name__}: {error})",
                hint="Make it take every row, nulls too; or use map_rows(errors=...), which tells the rows apart",
            ) from error
        try:
            made = pl.DataFrame(given)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise FlowError(
                f"the function of map_batches gave {given!r:.60}, which is no frame",
                hint="Have it give a pl.DataFrame with the columns that schema= names",
            ) from error
        if made.height != shown.height:
            raise FlowError(
                f"the function of map_batches made {made.height} rows of {shown.height}",
                hint="Give a row for each row, in their order; filter afterwards",
            )
        need(self.types, made.columns, "schema= of map_batches")
        return self._typed(made.select(list(self.types)))

    def _of_rows(self, shown: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
        names = list(self.types)
        values: list[tuple[Any, ...]] = []
        problems: list[str | None] = []
        for index, row in enumerate(dicts(shown)):
            try:
                values.append(named(self.function(row), names))
                problems.append(None)
            except Exception as error:
                if self.errors is None:
                    raise FlowError(
                        f"the function of map_rows fails for the row at position {frame[SEQUENCE][index]}"
                        f" ({type(error).__name__}: {error})",
                        hint="Make it take every row; or say errors='problem', and a column says which failed, and why",
                    ) from error
                values.append((None,) * len(names))
                problems.append("".join(traceback.format_exception(error)))
        made = pl.DataFrame(values, schema=dict.fromkeys(names), orient="row", infer_schema_length=None)
        made = self._typed(made)
        if self.errors is not None:
            made = made.with_columns(pl.Series(self.errors, problems, dtype=pl.String))
        return made

    def _typed(self, made: pl.DataFrame) -> pl.DataFrame:
        types: Any = dict(self.types)
        try:
            return made.cast(types)
        except pl.exceptions.PolarsError as error:
            raise FlowError(
                f"what a function gave is not as schema= says: {str(error).splitlines()[0]}",
                hint="Name the type that all its values have",
            ) from error


def named(given: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """The values of these columns in what a function gave: a dict, or of a single column its value."""
    got = given if isinstance(given, Mapping) else {names[0]: given} if len(names) == 1 else dict(given)
    return tuple(got[name] for name in names)


Rowwise = Filter | Unmet | WithColumns | Select | Mapped
"""Each row for itself."""


def outputs_of(expressions: Sequence[pl.Expr]) -> list[str] | None:
    """The columns that expressions give, where they may be asked beside the hidden columns: none stands for several,
    and none reads or gives a hidden one."""
    if any(each.meta.has_multiple_outputs() for each in expressions):
        return None
    names = [each.meta.output_name() for each in expressions]
    hidden_ones = any(is_hidden(name) for name in names) or any(
        is_hidden(name) and name not in ENVELOPE for name in names_of(expressions)
    )
    return None if hidden_ones or len(set(names)) < len(names) else names


def _seen(frame: pl.DataFrame, expressions: tuple[pl.Expr, ...]) -> pl.DataFrame:
    """The columns that expressions may see: ``pl.all()`` means the user's, others are asked for by name."""
    asked = names_of(expressions)
    return frame.select(name for name in frame.columns if not is_hidden(name) or (name in ENVELOPE and name in asked))


def _beside(result: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """The result with the hidden columns of the frame that it came from."""
    own = [name for name in result.columns if not is_hidden(name)]
    return result.select(own).with_columns(frame.select(hidden(frame)))
