"""Verbs of a flow that take Python functions."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from ..errors import UsageError
from ..time import Duration, duration_micros
from .columns import columns_named, types_of
from .enriching import Answers, Enriched
from .overtaking import Overtaking
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

    def enrich(
        self,
        function: Callable[[dict[str, Any]], Awaitable[Any]],
        *,
        schema: Mapping[str, Any],
        reads: Iterable[str] | None = None,
        concurrency: int = 32,
        timeout: Duration = "10s",
        retries: int = 2,
        cache: Duration | None = None,
        cache_size: int = 100_000,
        errors: str | None = None,
        ordered: bool = True,
    ) -> Flow:
        """With columns that an asynchronous function brings from elsewhere: a service, a database.

        It is asked for each row, for many at a time; rows keep their order. An answer is part of the row from then on:
        where the flow ends in a stream of the log, it stands there. It is nowhere else. So a batch that was not
        committed (the flow was killed) is asked for again, and so are all rows by `Flow.over`, `Flow.explain` and a
        flow under another name: the answers may then be others, and the function must take being asked twice.

        Args:
            function: A coroutine function. Takes a row as a dict, and gives the new columns as one; or, of a single
                column, its value. All flows of a process have one event loop for it, so it may keep connections.
            schema: The columns that it gives, with their types.
            reads: The columns that it is shown; by default all.
            concurrency: So many are asked for at once, at most; where several processes share the flow, by each.
            timeout: An attempt that takes longer has failed, with ``TimeoutError``.
            retries: How often it is asked again after it has failed, after pauses that grow from a tenth of a second.
                What raises `Rejected` is not asked again.
            cache: For so long an answer holds for other rows that show the function the same; what fails is not kept.
                By default every row is asked for.
            cache_size: The most answers that are kept, in memory.
            errors: The name of a further column: null, or the traceback of a function that has failed for the row,
                whose columns are null then. Without it, a failure ends the flow; run again, it goes on there.
            ordered: With False, rows go on as their answers come, so that a slow one holds up its own row alone. Rows
                that wait are part of the flow's state, ``concurrency`` of them at most between commits, and are asked
                for again when it is taken up. Only ``filter``, ``select``, ``with_columns`` and functions may follow.

        Raises:
            FlowError: When it runs: it fails, or gives something else than ``schema`` says.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> async def country(row: dict) -> str:
            ...     return {"FRA": "de", "JFK": "us"}[row["airport"]]
            >>> flights = pl.DataFrame({"airport": ["JFK", "FRA", "JFK"], "at": ["2024-01-15"] * 3})
            >>> flow = ms.stream("flights", time="at").enrich(country, schema={"in": pl.String}, cache="1h")
            >>> flow.over(flights)["in"].to_list()
            ['us', 'de', 'us']
        """
        if not inspect.iscoroutinefunction(function):
            raise UsageError(
                f"{function!r:.60} is no coroutine function",
                hint="Write async def; or give map_rows a plain function",
            )
        if not isinstance(concurrency, int) or concurrency < 1 or retries < 0 or cache_size < 1:
            raise UsageError(
                f"concurrency={concurrency}, retries={retries}, cache_size={cache_size}",
                hint="Ask at least one at a time, and keep at least one answer",
            )
        plain = self._mapped_stage(function, schema, reads, True, errors)
        seconds = duration_micros(timeout) / 1e6
        if not seconds:
            raise UsageError("an answer in no time", hint="Give timeout= a duration such as '10s'")
        answers = None if cache is None else Answers(duration_micros(cache) / 1e6, cache_size)
        stage = Enriched(
            plain.function,
            plain.types,
            plain.asks,
            True,
            plain.errors,
            concurrency=concurrency,
            timeout=seconds,
            retries=retries,
            answers=answers,
        )
        return self._with(stage if ordered else Overtaking(stage))

    def _mapped(
        self,
        function: Callable[..., Any],
        schema: Mapping[str, Any],
        reads: Iterable[str] | None,
        *,
        by_row: bool,
        errors: str | None = None,
    ) -> Flow:
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"{function!r:.60} is a coroutine function", hint="Give it to enrich(…), which awaits it")
        return self._with(self._mapped_stage(function, schema, reads, by_row, errors))

    def _mapped_stage(
        self,
        function: Callable[..., Any],
        schema: Mapping[str, Any],
        reads: Iterable[str] | None,
        by_row: bool,
        errors: str | None,
    ) -> Mapped:
        if not callable(function):
            raise UsageError(f"{function!r:.60} is no function", hint="Give a function of a frame, or of a row")
        if not schema or not all(isinstance(name, str) for name in schema):
            raise UsageError("schema= names no column", hint="Write schema={'score': pl.Float64}")
        if isinstance(reads, str):
            raise UsageError("reads= is one string", hint=f"Give a list: reads=[{reads!r}]")
        shown = None if reads is None else columns_named("reads=", reads)
        if shown == ():
            raise UsageError("reads= names no column", hint="Name those that the function needs, or leave it out")
        stage = Mapped(function, types_of("schema=", schema), shown, by_row, errors)
        check_names((), tuple(stage.outputs))
        return stage
