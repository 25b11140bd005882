"""How far a copy or a restore is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .output import note

if TYPE_CHECKING:
    from ..log.copy import Progress

_LINES_EVERY = 5.0
"""Seconds between two lines, where there is no terminal."""


@contextmanager
def moving(what: str, *, follow: bool = False) -> Iterator[Callable[[Progress], None]]:
    """What to call with each step: shows position, rate, time left, and once level the lag.

    Args:
        what: A word for what is done.
        follow: It goes on when level; say so, and how far behind it is.
    """
    if sys.stderr.isatty():
        with _bar(what, follow) as show:
            yield show
    else:
        yield _Lines(what, follow)


class _Lines:
    def __init__(self, what: str, follow: bool) -> None:
        self._what = what
        self._follow = follow
        self._said = time.monotonic()
        self._level: int | None = None
        self._trouble = ""

    def __call__(self, step: Progress) -> None:
        now = time.monotonic()
        if step.trouble != self._trouble:
            self._trouble = step.trouble
            if step.trouble:
                note(f"waiting: {step.trouble}")
                return
        if step.level:
            first = self._level is None
            if self._follow and (first or (step.position != self._level and now - self._said >= _LINES_EVERY)):
                note(f"level at position {step.position}; {_lag(step)}")
                self._said = now
            if self._follow:
                self._level = step.position
        elif now - self._said >= _LINES_EVERY:
            note(f"{self._what}: {_way(step)}")
            self._said = now


def _way(step: Progress) -> str:
    left = "" if step.left is None else f", {_clock(step.left)} left"
    return f"{step.position:,} of {step.head:,}, {step.rate:,.0f} events/s{left}"


def _lag(step: Progress) -> str:
    return f"{step.behind} behind, last page {step.lag:.2f} s old"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _bar(what: str, follow: bool) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, said="")

        def show(step: object) -> None:
            from ..log.copy import Progress as Step

            assert isinstance(step, Step)
            said = f"waiting: {step.trouble}" if step.trouble else _way(step)
            if step.level and follow:
                said = f"level at {step.position:,}; {_lag(step)}"
            bar.update(task, completed=step.position, total=max(step.head, 1), said=said)

        yield show
