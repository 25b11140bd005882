"""Commands of coroutines, decided together: those that wait at the same time share a thread and a commit."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..storage.base import Receipt
from .context import Context
from .deciding import Deciding, Waiting, taken
from .handling import Handler


class _Awaited(Waiting):
    """A command that a coroutine waits for."""

    __slots__ = ("future", "loop")

    def __init__(self, handler: Handler, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(handler, context)
        self.loop = loop
        self.future: asyncio.Future[Receipt] = loop.create_future()


class Gathering:
    """Commands that wait to be decided together.

    Args:
        deciding: Decides them.
        start: Has a function called on another thread.
    """

    def __init__(self, deciding: Deciding, start: Callable[[Callable[[], None]], object]) -> None:
        self._deciding = deciding
        self._start = start
        self._mutex = threading.Lock()
        self._queue: deque[_Awaited] = deque()
        self._busy = False
        """Whether a thread decides, or is about to."""
        self._asked: asyncio.AbstractEventLoop | None = None
        """The loop that was asked last to begin."""

    def submit(self, handler: Handler, context: Context) -> asyncio.Future[Receipt]:
        """Have a command executed with those that wait; call it on the loop of the one who awaits it."""
        loop = asyncio.get_running_loop()
        waiting = _Awaited(handler, context, loop)
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
                batch = taken(self._queue)
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

    def _executed(self, batch: Sequence[_Awaited]) -> dict[_Awaited, Receipt | BaseException]:
        return dict(zip(batch, self._deciding.decided(batch), strict=True))

    def _answer(self, batch: Sequence[_Awaited], outcomes: dict[_Awaited, Receipt | BaseException]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Awaited]] = {}
        for each in batch:
            by_loop.setdefault(each.loop, []).append(each)
        for loop, some in by_loop.items():
            with suppress(RuntimeError):  # the loop has ended: nobody waits for these any more
                loop.call_soon_threadsafe(_resolve, some, outcomes)


def _resolve(batch: Sequence[_Awaited], outcomes: dict[_Awaited, Receipt | BaseException]) -> None:
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
