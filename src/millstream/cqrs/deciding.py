"""Commands that are decided together, for callers that wait: one after the other on one thread, with one commit.

To be woken for its command costs a thread more than the command does, and of threads that decide at the same time each
takes the interpreter from the other at every statement. But a handler that waits for something holds up those that
share its thread: so only such as were quick until now are decided together, and not those of a log that is far away.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec

from ..errors import MillstreamError
from ..log.transaction import is_inside
from ..storage.base import Receipt
from .attempt import Attempt
from .context import Context
from .execution import Batch, Execution
from .handling import Handler

MOST = 256
"""The most commands that are decided together."""

_QUICK = 0.005
"""Seconds that a handler may take to be decided with others."""
_FADES = 0.9
"""How much of its slowest time counts at its next call."""
_WAITS = 0.0005
"""Seconds that a handler may wait on an average, what is loaded for it included, to be decided with others: threads of
their own wait at the same time."""
_WEIGHT = 0.1
"""How much of the average is the last call's."""
_AGAIN = 10.0
"""Seconds after which it is tried again whether a handler still waits."""


class Waiting:
    """A command whose caller waits, and the context variables that it is decided with."""

    __slots__ = ("context", "error", "handler", "variables")

    def __init__(self, handler: Handler, context: Context) -> None:
        self.handler = handler
        self.context = context
        self.variables = contextvars.copy_context()
        self.error: BaseException | None = None
        """What its handler has raised, if that is not an error of this library."""


Queued = TypeVar("Queued", bound=Waiting)


def taken(queue: deque[Queued], most: int = MOST) -> list[Queued]:
    """The first of a queue, taken out of it. Call with its mutex held."""
    found = list(islice(queue, most))
    for _ in found:
        queue.popleft()
    return found


class _Raised(MillstreamError):
    """Stands for an error that is not of this library, in a batch that is to go on."""


class _Waited(Handler, frozen=True):
    """The handler of a command that is decided with others."""

    waiting: Any
    note: Callable[[Callable[..., object], float, float], None]

    def __call__(self, attempt: Attempt, loop: asyncio.AbstractEventLoop | None) -> None:
        began, worked = time.monotonic(), time.thread_time()
        try:
            self.waiting.variables.run(Handler.__call__, self, attempt, loop)
        except MillstreamError:
            raise
        except BaseException as error:
            self.waiting.error = error
            raise _Raised(type(error).__name__) from error  # its text may raise in its turn
        finally:
            took = time.monotonic() - began
            self.note(self.function, took, took - (time.thread_time() - worked))


class Deciding:
    """Decides commands together, and knows of which handlers it may.

    Args:
        execution: Executes them.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._times: dict[Callable[..., object], float] = {}
        """How long each handler took lately."""
        self._waits: dict[Callable[..., object], tuple[float, float]] = {}
        """How long each waited on an average, and when that was learned."""
        self._timed: dict[Callable[..., object], Handler] = {}

    def takes(self, handler: Handler) -> bool:
        """Whether the commands of a handler may be decided with others."""
        if (
            self._times.get(handler.function, _QUICK) >= _QUICK
            or handler.is_async
            or handler.in_commit
            or self.execution.middleware
        ):
            return False
        waits, learned = self._waits.get(handler.function, (0.0, 0.0))
        return waits < _WAITS or time.monotonic() - learned > _AGAIN

    def is_inside(self) -> bool:
        """Whether this thread is in a transaction or a commit of the log, where it cannot commit anything."""
        return is_inside(self.execution.log)

    def alone(self, handler: Handler, context: Context, loop: asyncio.AbstractEventLoop | None = None) -> Receipt:
        """Execute a command by itself, and note how long its handler's function takes.

        What is loaded for it does not count: threads that do so at once wait for each other.
        """
        timed = self._timed.get(handler.function)
        if timed is None:
            timed = self._timed[handler.function] = self._noting(handler)
        return self.execution.run(timed, context, loop)

    def _noting(self, handler: Handler) -> Handler:
        function = handler.function

        def decide(**arguments: object) -> object:
            began = time.monotonic()
            try:
                return function(**arguments)
            finally:
                self._note(function, time.monotonic() - began)

        return msgspec.structs.replace(handler, function=decide)

    def _note(self, function: Callable[..., object], took: float, waited: float | None = None) -> None:
        self._times[function] = max(took, self._times.get(function, 0.0) * _FADES)
        if waited is not None:
            average = self._waits.get(function, (0.0, 0.0))[0]
            self._waits[function] = average + _WEIGHT * (waited - average), time.monotonic()

    def decided(self, batch: Sequence[Waiting]) -> list[Receipt | BaseException]:
        """Decide commands and commit what they lead to; the receipt of each, or what it failed with."""
        waited = {number: (self._waited(each), each.context) for number, each in enumerate(batch)}
        found = Batch(self.execution, waited, None)
        failure: BaseException | None = None
        try:
            found.run()
        except BaseException as error:
            failure = error
        outcomes: list[Receipt | BaseException] = []
        for number, waiting in enumerate(batch):
            outcome: Receipt | BaseException | None = found.outcomes.get(number, failure)
            if isinstance(outcome, _Raised):
                outcome = waiting.error
            assert outcome is not None
            outcomes.append(outcome)
        return outcomes

    def _waited(self, waiting: Waiting) -> Handler:
        handler = waiting.handler
        return _Waited(
            handler.function,
            handler.name,
            handler.command,
            handler.fillers,
            handler.in_commit,
            handler.is_async,
            waiting,
            self._note,
        )
