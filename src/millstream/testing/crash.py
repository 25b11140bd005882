"""Real crashes at chosen moments: what a capture must survive."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..cdc.points import Point, set_hook


@contextmanager
def crash_at(point: Point, *, after: int = 0) -> Iterator[None]:
    """Let this process die, as by ``kill -9``, when a capture in it reaches a named moment.

    Args:
        point: ``before-commit`` and ``after-commit`` (of changes into the log), ``after-acknowledge`` (to the source),
            ``put-ahead`` (in the middle of a large transaction), ``in-chunk`` and ``in-snapshot`` (with rows of a
            snapshot in hand).
        after: How often it may be reached before.

    Example:
        In a process of its own, since nothing is left of it::

            with ms.testing.crash_at("before-commit"):
                ms.capture(url, tables=["users"]).catch_up(log)
    """
    left = after

    def reached(name: Point) -> None:
        nonlocal left
        if name == point:
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    set_hook(reached)
    try:
        yield
    finally:
        set_hook(None)
