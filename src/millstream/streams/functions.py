"""Verbs of a flow that take Python functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from ..errors import UsageError
from .shaping import Mapped
from .windows import check_names

if TYPE_CHECKING:
    from .flow import Flow, Stage


class Functions:
    """What `Flow` has of them."""

    __slots__ = ()

    def _with(self, stage: Stage, **changes: Any) -> Flow:
        raise NotImplementedError

    def map_batches(
        self, function: Callable[[pl.DataFrame], Any], *, schema: Mapping[str, Any], reads: Iterable[str] | None = None
    ) -> Flow:
        """With columns that a Python function makes of many rows at a time.

        Rows come in batches of any size, and a batch may come again: so the function must give each row a value that
        depends on that row alone, and have no other effects.

        Args:
            function: Takes a frame, and gives one (or what a frame can be made of) with a row for each row.
            schema: The columns that it gives, with their types.
            reads: The columns that it is shown; by default all, which then are read.

        Raises:
            FlowError: When it runs: it fails, or gives something else than ``schema`` says.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> def length(frame: pl.DataFrame) -> pl.DataFrame:
            ...     return frame.select(length=pl.col("text").str.len_chars())
            >>> flow = ms.stream("posts").map_batches(length, schema={"length": pl.UInt32}, reads=["text"])
        """
        return self._mapped(function, schema, reads, by_row=False)

    def map_rows(
        self,
        function: Callable[[dict[str, Any]], Any],
        *,
        schema: Mapping[str, Any],
        reads: Iterable[str] | None = None,
        errors: str | None = None,
    ) -> Flow:
        """With columns that a Python function makes of each row: slow beside expressions, and plain.

        Args:
            function: Takes a row as a dict, and gives the new columns as one; or, of a single column, its value.
            schema: The columns that it gives, with their types.
            reads: The columns that it is shown; by default all.
            errors: The name of a further column: null, or the traceback of a function that has failed for the row,
                whose columns are null then. Without it, a failure ends the flow.

        Raises:
            FlowError: When it runs: it fails, or gives something else than ``schema`` says.
        """
        return self._mapped(function, schema, reads, by_row=True, errors=errors)

    def _mapped(
        self,
        function: Callable[..., Any],
        schema: Mapping[str, Any],
        reads: Iterable[str] | None,
        *,
        by_row: bool,
        errors: str | None = None,
    ) -> Flow:
        if not callable(function):
            raise UsageError(f"{function!r:.60} is no function", hint="Give a function of a frame, or of a row")
        if not schema or not all(isinstance(name, str) for name in schema):
            raise UsageError("schema= names no column", hint="Write schema={'score': pl.Float64}")
        if isinstance(reads, str):
            raise UsageError("reads= is one string", hint=f"Give a list: reads=[{reads!r}]")
        stage = Mapped(function, dict(schema), None if reads is None else tuple(reads), by_row, errors)
        check_names((), tuple(stage.outputs))
        return self._with(stage)
