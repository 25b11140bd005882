"""How far a long work is: a bar on a terminal; of a copy or a restore, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from .output import note

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from ..log.moving import Progress

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
        with _shown(what, follow) as show:
            yield show
    else:
        yield _Lines(what, follow)


Snapshots = Mapping[str, Any]
"""By table, how far its snapshot is: ``done``, ``rows`` and how many are ``expected``."""


@contextmanager
def reading() -> Iterator[Callable[[Snapshots, int, Exception | None], None]]:
    """What to call now and then while a capture runs: shows each snapshot's rows, rate and time left, and then how
    many events came."""
    if not sys.stderr.isatty():
        yield _Reading()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}")
    rates = _Rates()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}
        stream = bar.add_task("changes", total=None, said="")

        def show(tables: Snapshots, events: int, trouble: Exception | None) -> None:
            for name, each in tables.items():
                if each.done and name not in tasks:
                    continue
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=None, said="")
                total = max(each.expected, each.rows) or None
                bar.update(tasks[name], completed=each.rows, total=total, said=rates.way(name, each))
            bar.update(stream, said=f"waiting: {trouble}" if trouble else f"{events:,} events")

        yield show


class _Rates:
    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}

    def way(self, name: str, each: Any) -> str:
        since, rows = self._began.setdefault(name, (time.monotonic(), each.rows))
        rate = (each.rows - rows) / max(time.monotonic() - since, 0.001)
        text = f"{each.rows:,} rows, {rate:,.0f}/s"
        if each.done or not rate or each.expected <= each.rows:
            return text
        return f"{text}, {_clock((each.expected - each.rows) / rate)} left"


class _Reading:
    def __init__(self) -> None:
        self._rates = _Rates()
        self._said = time.monotonic()
        self._done: set[str] | None = None
        self._trouble = ""

    def __call__(self, tables: Snapshots, events: int, trouble: Exception | None) -> None:
        done = {name for name, each in tables.items() if each.done}
        told = "" if trouble is None else str(trouble)
        if told != self._trouble:
            self._trouble = told
            if told:
                note(f"waiting: {told}")
        for name in sorted(done - self._done) if self._done is not None else []:
            note(f"{name}: snapshot done, {tables[name].rows:,} rows")
        self._done = done
        if time.monotonic() - self._said >= _LINES_EVERY:
            self._said = time.monotonic()
            for name in tables.keys() - done:
                note(f"{name}: {self._rates.way(name, tables[name])}")
            if tables and len(done) == len(tables):
                note(f"{events:,} events")


class _Bar(Protocol):
    def __call__(self, done: int, total: int, said: str = "") -> None: ...


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
def _shown(what: str, follow: bool) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, TextColumn

    with _bar(what, TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}")) as bar:

        def show(step: Progress) -> None:
            said = f"waiting: {step.trouble}" if step.trouble else _way(step)
            if step.level and follow:
                said = f"level at {step.position:,}; {_lag(step)}"
            bar(step.position, step.head, said)

        yield show


@contextmanager
def walking(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with a position and the last one: a bar, if there is a terminal."""
    if sys.stderr.isatty():
        with _bar(what) as bar:
            yield bar
    else:
        yield None


@contextmanager
def _bar(what: str, *columns: ProgressColumn) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, said="")
        yield lambda done, total, said="": bar.update(task, completed=done, total=max(total, 1), said=said)
