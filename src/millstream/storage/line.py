"""Threads whose requests were done together go on one after the other.

Woken all at once, each would wake up only to stand still again until the interpreter is its own, and the interpreter
would wait for one of them to come back from that whenever it is passed on. So each wakes the next one, which is up by
the time that it has come to its next request.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

_LOOK = 1.0
"""How often, in seconds, one that is to be woken for certain looks whether that was forgotten."""


class Waiter:
    """A thread that waits for what others do for it.

    Attributes:
        answered: What it waits for is done, and it goes on when its turn comes.
        after: Whom it wakes then.
        gone: It waits no longer, and wakes nobody.
    """

    __slots__ = ("_gate", "after", "answered", "gone")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self.answered = False
        self.after: Waiter | None = None
        self.gone = False

    def wait(self, seconds: float) -> bool:
        """Wait until it is woken; False when that takes too long."""
        if not self._gate.acquire(timeout=seconds):
            return False
        wake(self.after)
        return True

    def wait_on(self) -> None:
        """Wait until it is woken, for as long as that takes."""
        while not self.answered and not self._gate.acquire(timeout=_LOOK):
            pass
        wake(self.after)

    def go(self) -> None:
        """Have it go on."""
        with suppress(RuntimeError):  # it was told so before
            self._gate.release()

    def leave(self) -> None:
        """Wait no longer, thrown out perhaps: those after it go on without it."""
        self.gone = True
        wake(self.after)


def line_up(waiters: Sequence[Waiter]) -> Waiter | None:
    """Have waiters go on in this order, each woken by the one before. Gives the first, for `wake`."""
    first: Waiter | None = None
    for each in reversed(waiters):
        each.after, first = first, each
        each.answered = True
    return first


def wake(waiter: Waiter | None) -> None:
    """Have one go on whose turn it is. To wake one too many, or one twice, does no harm."""
    while waiter is not None:
        waiter.go()
        if not waiter.gone:
            return
        waiter = waiter.after
