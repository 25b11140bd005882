"""Live queries: an answer, and then each that differs from the one before, as the read models move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import polars as pl

from ..log import Log
from .follower import Follower

Result = TypeVar("Result")

_NOTHING: Any = object()
_LOOK = 0.5
"""How often, in seconds, a subscription looks up that waits to be told."""
_POLL = 0.01
"""How often, in seconds, it looks at read models that another process keeps."""


def answers(
    log: Log,
    followers: Sequence[Follower],
    moved: threading.Condition,
    answer: Callable[[], Result],
    *,
    by_head: bool,
    timeout: float | None,
) -> Iterator[Result]:
    """The answer to a query, and each that differs from the one before; see ``App.subscribe``.

    Args:
        followers: Those of the read models that it is asked of.
        moved: Told whenever one of them has moved that this process keeps.
        answer: Answers it now.
        by_head: Whether the answer may also change with the log's head alone.
    """

    def mark() -> list[Any]:
        return [*(follower.mark() for follower in followers), log.head if by_head else 0]

    last: Any = _NOTHING
    seen: list[Any] | None = None
    quiet_since = time.monotonic()
    while not log.closed:
        now = mark()
        if now != seen:
            seen = now
            result = answer()
            if last is _NOTHING or not _same(result, last):
                last = result
                yield result
                quiet_since = time.monotonic()
                continue
        if timeout is not None and time.monotonic() - quiet_since >= timeout:
            return
        pause = _LOOK if timeout is None else min(_LOOK, timeout)
        if by_head:
            log.wait(log.head if seen is None else seen[-1], pause)
        elif all(follower.is_kept_here for follower in followers):
            with moved:
                if mark() == seen:
                    moved.wait(pause)
        else:
            time.sleep(min(_POLL, pause))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, pl.DataFrame) and isinstance(other, pl.DataFrame):
        return one.equals(other)
    return type(one) is type(other) and bool(one == other)
