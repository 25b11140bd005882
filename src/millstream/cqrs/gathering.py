"""Commands of coroutines, decided together: those that wait at the same time share a thread and a commit.

A thread for each would spend more on being woken than on its command. But a handler that waits for something holds up
those that share its thread: so only such as were quick until now are gathered, and the others get threads of their own.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from ..errors import MillstreamError
from ..storage.base import Receipt
from .attempt import Attempt
from .context import Context
from .execution import Batch, Execution
from .handling import Handler

_QUICK = 0.005
"""Seconds that a handler may take to be gathered."""
_FADES = 0.9
"""How much of its slowest time counts at its next call."""
_MOST = 256
"""The most commands that are decided together."""


class _Raised(MillstreamError):
    """Stands for an error that is not of this library, in a batch that is to go on."""


class _Waiting:
    """A command that waits, and who waits for it."""

    __slots__ = ("context", "error", "future", "handler", "loop", "variables")

    def __init__(self, handler: Handler, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self.handler = handler
        self.context = context
        self.loop = loop
        self.future: asyncio.Future[Receipt] = loop.create_future()
        self.variables = contextvars.copy_context()
        self.error: BaseException | None = None
        """What its handler has raised, if that is not an error of this library."""


class _Measured(Handler, frozen=True):
    """A handler that notes how long it takes."""

    note: Callable[[float], None] | None = None
    waiting: Any = None

    def __call__(self, attempt: Attempt, loop: asyncio.AbstractEventLoop | None) -> None:
        began = time.monotonic()
        try:
            if self.waiting is None:
                Handler.__call__(self, attempt, loop)
            else:
                self.waiting.variables.run(Handler.__call__, self, attempt, loop)
        except MillstreamError:
            raise
        except BaseException as error:
            if self.waiting is None:
                raise
            self.waiting.error = error
            raise _Raised(type(error).__name__) from error  # its text may raise in its turn
        finally:
            if self.note is not None:
                self.note(time.monotonic() - began)


class Gathering:
    """Commands that wait to be decided together.

    Args:
        execution: Executes them.
        start: Has a function called on another thread.
    """

    def __init__(self, execution: Execution, start: Callable[[Callable[[], None]], object]) -> None:
        self._execution = execution
        self._start = start
        self._mutex = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._busy = False
        """Whether a thread decides, or is about to."""
        self._asked: asyncio.AbstractEventLoop | None = None
        """The loop that was asked last to begin."""
        self._times: dict[Callable[..., object], float] = {}
        """How long each handler took lately."""

    def takes(self, handler: Handler) -> bool:
        """Whether the commands of a handler may be decided on one thread with others."""
        if handler.is_async or handler.in_commit or self._execution.middleware:
            return False
        return self._times.get(handler.function, _QUICK) < _QUICK

    def measured(self, handler: Handler, waiting: _Waiting | None = None) -> Handler:
        """The handler, of which is noted how long it takes."""

        def note(seconds: float) -> None:
            self._times[handler.function] = max(seconds, self._times.get(handler.function, 0.0) * _FADES)

        return _Measured(
            handler.function,
            handler.name,
            handler.command,
            handler.fillers,
            handler.in_commit,
            handler.is_async,
            note,
            waiting,
        )

    def submit(self, handler: Handler, context: Context) -> asyncio.Future[Receipt]:
        """Have a command executed with those that wait; call it on the loop of the one who awaits it."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(handler, context, loop)
        with self._mutex:
            self._queue.append(waiting)
            begin = not self._busy and self._asked is not loop
            if begin:
                self._asked = loop
        if begin:
            # Not at once: who can go on now, as after the last commit, is to be in it. Each loop is asked, for one may
            # not go on.
            loop.call_soon(self._begin)
        return waiting.future

    def _begin(self) -> None:
        with self._mutex:
            self._asked = None
            if self._busy or not self._queue:
                return
            self._busy = True
        try:
            self._start(self._work)
        except BaseException as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        with self._mutex:
            waiting, self._busy = list(self._queue), False
            self._queue.clear()
        self._answer(waiting, dict.fromkeys(waiting, error))

    def _work(self) -> None:
        """Execute what waits, until nothing does, or loops have been asked to begin anew."""
        while True:
            with self._mutex:
                batch = list(islice(self._queue, _MOST))
                for _ in batch:
                    self._queue.popleft()
            self._answer(batch, self._executed([each for each in batch if not each.future.cancelled()]))
            if self._is_over():
                return

    def _is_over(self) -> bool:
        """Whether nothing waits, or a loop will see to it: those who were answered may have more to be decided."""
        with self._mutex:
            asked = None
            for loop in {each.loop for each in self._queue}:  # all of them: one may be held up
                with suppress(RuntimeError):  # it has ended
                    # What was answered goes on in the turn after the next.
                    loop.call_soon_threadsafe(loop.call_soon, self._begin)
                    asked = loop
            if self._queue and asked is None:
                return False
            self._busy, self._asked = False, asked
            return True

    def _executed(self, batch: Sequence[_Waiting]) -> dict[_Waiting, Receipt | BaseException]:
        found = Batch(self._execution, {n: (self.measured(w.handler, w), w.context) for n, w in enumerate(batch)}, None)
        failure: BaseException | None = None
        try:
            found.run()
        except BaseException as error:
            failure = error
        outcomes: dict[_Waiting, Receipt | BaseException] = {}
        for number, waiting in enumerate(batch):
            outcome: Receipt | BaseException | None = found.outcomes.get(number, failure)
            if isinstance(outcome, _Raised):
                outcome = waiting.error
            assert outcome is not None
            outcomes[waiting] = outcome
        return outcomes

    def _answer(self, batch: Sequence[_Waiting], outcomes: dict[_Waiting, Receipt | BaseException]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Waiting]] = {}
        for each in batch:
            by_loop.setdefault(each.loop, []).append(each)
        for loop, some in by_loop.items():
            with suppress(RuntimeError):  # the loop has ended: nobody waits for these any more
                loop.call_soon_threadsafe(_resolve, some, outcomes)


def _resolve(batch: Sequence[_Waiting], outcomes: dict[_Waiting, Receipt | BaseException]) -> None:
    for each in batch:
        outcome = outcomes.get(each)
        if each.future.done() or outcome is None:
            continue  # cancelled; the command stands all the same
        if isinstance(outcome, StopIteration):  # which no future takes
            each.future.set_exception(RuntimeError(f"the handler raised {outcome!r}"))
        elif isinstance(outcome, BaseException):
            each.future.set_exception(outcome)
        else:
            each.future.set_result(outcome)
