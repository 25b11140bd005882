"""Commands of threads, decided together: one thread decides for all that come while it is at it."""

from __future__ import annotations

import threading
from collections import deque

from ..storage.arrivals import Arrivals
from ..storage.base import Receipt
from ..storage.line import Waiter, line_up, wake
from .context import Context
from .deciding import MOST, Deciding, Waiting, taken
from .handling import Handler

_PATIENCE = 0.1
"""Seconds after which a thread that waits to be taken along goes alone: what is under way may wait for it."""


class _Caller(Waiting):
    """A command that a thread waits for."""

    __slots__ = ("leads", "outcome", "thread", "waiter")

    def __init__(self, handler: Handler, context: Context) -> None:
        super().__init__(handler, context)
        self.thread = threading.get_ident()
        self.waiter = Waiter()
        self.leads = False
        """Its thread is the next to decide for all that wait."""
        self.outcome: Receipt | BaseException | None = None

    def result(self) -> Receipt:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome


class Crowd:
    """Commands of threads that are executed at the same time.

    Args:
        deciding: Decides them.
    """

    def __init__(self, deciding: Deciding) -> None:
        self._deciding = deciding
        self._mutex = threading.Lock()
        self._queue: deque[_Caller] = deque()
        self._arrivals = Arrivals(self._mutex, self._queue)
        self._leader: int | None = None
        """The thread that decides, or is about to."""
        self._last = 1
        """How many were decided together the last time."""

    def run(self, handler: Handler, context: Context) -> Receipt:
        """Execute a command for the thread that calls, alone or with those of others.

        The main thread goes alone: a Ctrl-C, which comes to it, is to end no command but its own. So does who is called
        by one that decides, and who is in a transaction: nobody else may wait for these.
        """
        if (
            not self._deciding.takes(handler)
            or threading.current_thread() is threading.main_thread()
            or self._leader == threading.get_ident()
            or self._deciding.is_inside()
        ):
            return self._deciding.alone(handler, context)
        caller = _Caller(handler, context)
        with self._mutex:
            leads = self._leader is None
            if leads:
                self._leader = caller.thread
            else:
                self._queue.append(caller)
                self._arrivals.came()
        if leads or self._leads(caller):
            try:
                self._lead(caller)
            finally:
                self._pass_on()
        return caller.result()

    def _leads(self, caller: _Caller) -> bool:
        """Wait until a command was decided, or its thread is to lead."""
        try:
            if not caller.waiter.wait(_PATIENCE):
                if self._leave(caller):
                    self._alone(caller)
                    return False
                caller.waiter.wait_on()
        except BaseException:  # thrown into the thread from outside: it must not take the lead away with it
            caller.waiter.leave()
            if not self._leave(caller) and caller.leads:
                self._pass_on()
            raise
        return caller.leads

    def _leave(self, caller: _Caller) -> bool:
        """Out of the queue again, unless its command is being decided or its thread is to lead."""
        with self._mutex:
            if caller not in self._queue:
                return False
            self._queue.remove(caller)
            return True

    def _lead(self, caller: _Caller) -> None:
        """Decide a command and those that wait."""
        if self._last > 1:
            self._arrivals.wait(self._last - 1)
        with self._mutex:
            others = taken(self._queue, MOST - 1)
        self._last = 1 + len(others)
        if not others:
            self._alone(caller)
            return
        batch = [caller, *others]
        try:
            outcomes = self._deciding.decided(batch)
        except BaseException as error:
            outcomes = [error] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.outcome = outcome
        wake(line_up([each.waiter for each in others]))

    def _alone(self, caller: _Caller) -> None:
        try:
            caller.outcome = self._deciding.alone(caller.handler, caller.context)
        except BaseException as error:
            caller.outcome = error

    def _pass_on(self) -> None:
        """Have the first that waits lead from here on."""
        with self._mutex:
            if not self._queue:
                self._leader = None
                return
            heir = self._queue.popleft()
            heir.leads = True
            self._leader = heir.thread
        heir.waiter.go()
