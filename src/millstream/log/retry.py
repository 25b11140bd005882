"""Trying again after a conflict: what a decision on the present state does when it came second."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

from ..errors import ConditionFailed, Conflict, UsageError, VersionConflict

Result = TypeVar("Result")

ATTEMPTS = 20
"""How often a decision is made before it is given up: some two seconds against a steady rival."""

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.1
_PATIENT = 10
_LONGEST_TURN = 2.0
"""Whoever waits for its turn does so for this many times as long as its last decision took; and no longer than so many
seconds."""
_turns = [threading.Lock() for _ in range(64)]


class Contended(Conflict):
    """A decision was made again and again, and each time another one came first.

    Attributes:
        attempts: How often it was made.
        stream: The stream that others changed; None when it was the events that a query matches.
        position: Where the last event of others stands that the query matches; None when it was a stream.
    """

    code = "contended"

    def __init__(self, conflict: VersionConflict | ConditionFailed, *, attempts: int) -> None:
        self.stream = conflict.stream if isinstance(conflict, VersionConflict) else None
        self.position = conflict.position if isinstance(conflict, ConditionFailed) else None
        if self.stream is not None:
            message = f"stream {self.stream!r} was changed by others each of the {attempts} times it was to be updated"
            hint = "Try again later, or give what is updated so often streams of its own"
        else:
            message = (
                f"others appended what the decision is made on each of the {attempts} times it was made"
                f" (the last time at position {self.position})"
            )
            hint = "Try again later, or have the decision read less: narrower tags, fewer types"
        super().__init__(message, hint=hint)
        self.attempts = attempts


def retrying(decide: Callable[[], Result], *, attempts: int = ATTEMPTS, rivals: Hashable = None) -> Result:
    """Call until it goes through without a conflict of versions or of a guard, pausing longer each time.

    The pauses are random up to a bound that doubles from 1 ms to 100 ms, so that rivals do not meet again in
    step; rivals within the process take turns besides. ``decide`` must load what it decides on anew at each call.

    Args:
        rivals: Those who give the same value take turns; by default, those of one stream.

    Raises:
        Contended: It came second ``attempts`` times.
        UsageError: ``attempts`` is no number from 1 on.
    """
    if type(attempts) is not int or attempts < 1:
        raise UsageError(f"attempts={attempts!r:.40} is not a whole number from 1 on", hint="Give an int as attempts")
    conflict: VersionConflict | ConditionFailed
    began = time.monotonic()
    try:
        return decide()
    except (VersionConflict, ConditionFailed) as first:
        conflict, took = first, time.monotonic() - began
    bound = _FIRST_PAUSE
    if rivals is None and isinstance(conflict, VersionConflict):
        rivals = conflict.stream
    turn = _turns[hash(rivals) % len(_turns)]
    for _ in range(attempts - 1):
        # With a limit, and going on without it: two decisions that nest must not wait for each other for ever. But
        # where all are slow, those who have waited in vain would be rivals again.
        mine = turn.acquire(timeout=max(_LONGEST_PAUSE, min(_PATIENT * took, _LONGEST_TURN)))
        began = time.monotonic()
        try:
            return decide()
        except (VersionConflict, ConditionFailed) as again:
            conflict, took = again, time.monotonic() - began
        finally:
            if mine:
                turn.release()
        time.sleep(random.uniform(0, bound))
        bound = min(2 * bound, _LONGEST_PAUSE)
    raise Contended(conflict, attempts=attempts) from conflict
