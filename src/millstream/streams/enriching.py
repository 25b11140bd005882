"""Columns that come from elsewhere: an asynchronous function asked for each row, many at a time.

Answers come from outside the log, so they are the one thing here that a replay need not give again; what is kept of
them is what the flow has written. Rows keep their order whatever order the answers come in.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

import polars as pl

from ..errors import Rejected
from .columns import SEQUENCE, dicts
from .errors import FlowError
from .shaping import Mapped, named

T = TypeVar("T")
Answer = tuple[tuple[Any, ...] | None, BaseException | None]

_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds before the first retry, doubled for each that follows; and the most."""


ROWS = 1_024
"""Rows of a batch where some are asked for: what stops or shares a thread with a flow waits for a batch."""


class Answers:
    """Answers that were given not long ago, by what was asked; the oldest go first.

    Args:
        keep: For how many seconds one counts.
        size: How many are kept.
    """

    def __init__(self, keep: float, size: int) -> None:
        self._keep = keep
        self._size = size
        self._held: OrderedDict[Any, tuple[float, tuple[Any, ...]]] = OrderedDict()

    def get(self, asked: Any) -> tuple[Any, ...] | None:
        """What was answered; None if nothing was, or too long ago."""
        found = self._held.get(asked)
        if found is None or time.monotonic() - found[0] >= self._keep:
            return None
        return found[1]

    def put(self, asked: Any, answer: tuple[Any, ...]) -> None:
        """Keep an answer."""
        self._held.pop(asked, None)
        self._held[asked] = (time.monotonic(), answer)
        while len(self._held) > self._size:
            self._held.popitem(last=False)


class Enriched(Mapped, frozen=True, eq=False):
    """Adds columns that an asynchronous function gives for each row."""

    concurrency: int = 1
    timeout: float = 10.0
    retries: int = 0
    answers: Answers | None = None

    @property
    def verb(self) -> str:
        return "enrich"

    def _of_rows(self, shown: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
        answers = wait_for(self._ask_all(shown)) if shown.height else []
        return self.columns_of(answers, frame)

    def columns_of(self, answers: Sequence[Answer], frame: pl.DataFrame) -> pl.DataFrame:
        """Answers as columns.

        Raises:
            FlowError: There was none for a row of the frame, and no column takes the reason.
        """
        for place, (_, error) in enumerate(answers):
            if error is not None and self.errors is None:
                raise FlowError(
                    f"the function of enrich fails for the row at position {frame[SEQUENCE][place]}"
                    f" ({type(error).__name__}: {error})",
                    hint="When it is run again, the flow goes on after its last commit;"
                    " or say errors='problem', and a column says why",
                ) from error
        names = list(self.types)
        rows = [(None,) * len(names) if values is None else values for values, _ in answers]
        made = self._typed(pl.DataFrame(rows, schema=dict.fromkeys(names), orient="row", infer_schema_length=None))
        if self.errors is None:
            return made
        problems = ["".join(traceback.format_exception(error)) if error else None for _, error in answers]
        return made.with_columns(pl.Series(self.errors, problems, dtype=pl.String))

    async def answer(self, row: dict[str, Any], waiting: dict[Any, asyncio.Future[Answer]]) -> Answer:
        """The answer to a row; ``waiting``: what is asked for already, by what is shown."""
        if self.answers is None:
            return await self._ask(row)
        return await self._ask_once(self.answers, row, waiting)

    async def _ask_all(self, shown: pl.DataFrame) -> list[Answer]:
        found: list[Answer | None] = [None] * shown.height
        waiting: dict[Any, asyncio.Future[Answer]] = {}
        rows = enumerate(dicts(shown))
        failed = asyncio.Event()
        askers = [self._ask_some(rows, found, waiting, failed) for _ in range(min(self.concurrency, shown.height))]
        async with asyncio.TaskGroup() as group:
            for each in askers:
                group.create_task(each)
        if None in found and not failed.is_set():
            raise FlowError(
                "the function of enrich gave no answer for some rows",
                hint="Let no call of it cancel the tasks of others",
            )
        # Where one has failed and the flow ends with it, others were not asked.
        return [each or (None, None) for each in found]

    async def _ask_some(
        self,
        rows: Iterator[tuple[int, dict[str, Any]]],
        found: list[Answer | None],
        waiting: dict[Any, asyncio.Future[Answer]],
        failed: asyncio.Event,
    ) -> None:
        """Take one row after the other, beside others that do."""
        for place, row in rows:
            if failed.is_set():
                return
            answer = await self.answer(row, waiting)
            found[place] = answer
            if answer[1] is not None and self.errors is None:
                failed.set()

    async def _ask_once(
        self, answers: Answers, row: dict[str, Any], waiting: dict[Any, asyncio.Future[Answer]]
    ) -> Answer:
        """The answer to a row, which is asked for unless it is known, or asked for already."""
        asked = repr(row)
        known = answers.get(asked)
        if known is not None:
            return known, None
        if asked in waiting:
            return await waiting[asked]
        waiting[asked] = future = asyncio.get_running_loop().create_future()
        try:
            answer = await self._ask(row)
            if answer[0] is not None:
                answers.put(asked, answer[0])
            if not future.done():
                future.set_result(answer)
            return answer
        finally:
            # Those that wait for it end with it; this does nothing where it has a result.
            future.cancel()
            del waiting[asked]

    async def _ask(self, row: dict[str, Any]) -> Answer:
        own = asyncio.current_task()
        assert own is not None
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
            answer: Answer
            try:
                async with asyncio.timeout(self.timeout):
                    answer = await asyncio.create_task(self._call(row))
            except TimeoutError as error:
                answer = None, error
            except asyncio.CancelledError as error:
                if own.cancelling():
                    raise
                # Something that the function awaits was cancelled, by itself: the flow goes on.
                answer = None, error
            if answer[1] is None or isinstance(answer[1], Rejected):
                return answer
        return answer

    async def _call(self, row: dict[str, Any]) -> Answer:
        """One attempt, to be run as a task of its own: a call that cancels its task cancels no other's."""
        try:
            return named(await self.function(dict(row)), list(self.types)), None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # SystemExit, too, which would end the loop of all flows.
            return None, error


# --- the loop ---------------------------------------------------------------------------------------------

_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_of_process = 0
_lock = threading.Lock()


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in the one loop of all flows.

    It goes on between batches, so that connections that a function keeps stay good.
    """
    future = soon(work)
    try:
        return future.result()
    except CancelledError as error:
        raise FlowError("what a flow asked for was cancelled", hint="Run the flow again") from error
    except BaseException:
        future.cancel()
        raise


def soon(work: Coroutine[Any, Any, T]) -> Future[T]:
    """A coroutine at work in that loop."""
    return asyncio.run_coroutine_threadsafe(work, _running())


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _thread, _of_process
    with _lock:
        # A process that was forked has no threads of those that it was forked from.
        is_there = _of_process == os.getpid() and _thread is not None and _thread.is_alive()
        if _loop is None or not is_there:
            _loop, _of_process = asyncio.new_event_loop(), os.getpid()
            _thread = threading.Thread(target=_run, args=(_loop,), name="millstream-enrich", daemon=True)
            _thread.start()
        return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for good: neither what a task of a function raises nor a function that stops it ends it."""
    while not loop.is_closed():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
