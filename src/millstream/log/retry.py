"""Trying again after a version conflict: what a decision on the present state does when it came second."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import VersionConflict

Result = TypeVar("Result")

ATTEMPTS = 20
"""How often a decision is made before it is given up: some two seconds against a steady rival."""

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.1
_turns = [threading.Lock() for _ in range(64)]


class Contended(VersionConflict):
    """A decision was made again and again, and each time another one came first."""

    code = "contended"

    def __init__(self, stream: str, expected: int, actual: int, *, attempts: int) -> None:
        super().__init__(stream, expected, actual)
        self.attempts = attempts
        self.message = f"stream {stream!r} was changed by others each of the {attempts} times it was to be updated"
        self.hint = "Try again later, or give what is updated so often streams of its own"
        self.args = (self.message,)


def retrying(decide: Callable[[], Result], *, attempts: int = ATTEMPTS) -> Result:
    """Call until it goes through without a version conflict, pausing longer each time.

    The pauses are random up to a bound that doubles from 1 ms to 100 ms, so that rivals do not meet again in
    step; rivals within the process take turns besides. ``decide`` must load what it decides on anew at each call.

    Raises:
        Contended: It came second ``attempts`` times.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts} is not at least 1")
    try:
        return decide()
    except VersionConflict as first:
        conflict = first
    bound = _FIRST_PAUSE
    turn = _turns[hash(conflict.stream) % len(_turns)]
    for _ in range(attempts - 1):
        # With a limit, and going on without it: two decisions that nest must not wait for each other for ever.
        mine = turn.acquire(timeout=_LONGEST_PAUSE)
        try:
            return decide()
        except VersionConflict as again:
            conflict = again
        finally:
            if mine:
                turn.release()
        time.sleep(random.uniform(0, bound))
        bound = min(2 * bound, _LONGEST_PAUSE)
    raise Contended(conflict.stream, conflict.expected, conflict.actual, attempts=attempts) from conflict
