"""The demo from its first line to its last."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from ..time import from_micros, to_micros
from .domain import stream_of
from .flights import HOUR, MINUTE, Timetable, at_local, day, local, read_flights
from .folder import Folder
from .live import Dashboard, alert_line, hour_line
from .play import Play
from .report import changes, sightings, windows
from .schema import Schema
from .screen import Screen

Stopped = Callable[[], bool]

_POLLS_A_SECOND = 10


def run(
    out: str, data: str | None, *, follow: bool = False, speed: float = 600.0, quick: bool = False,
    screen: Screen | None = None, log: str | None = None,
) -> bool:  # fmt: skip
    """Play, and show what came of it; see `command.demo`.

    Returns:
        Whether it was interrupted.
    """
    screen = screen or Screen()
    timetable = Timetable(read_flights(data), quick=quick)
    with (
        Schema(log) if log is not None else nullcontext() as schema,
        Folder(out, schema) as folder,
        _interruptible() as stopped,
    ):
        screen.opening(timetable.title)
        began = time.monotonic()
        with Play(folder, timetable, delay_on=timetable.days[0] if follow else None) as play:
            # Live from the second morning on; without following, all is played at once.
            until = to_micros(at_local(timetable.days[min(1, len(timetable.days) - 1)], 5)) if follow else None
            _play(play, screen, stopped, until)
            if follow and not stopped():
                _follow(play, screen, stopped, speed)
            interrupted = stopped()
            if interrupted:
                screen.gap()
                screen.line("Interrupted: what has come in so far.", style="yellow")
            play.finish()
            _report(play, screen, time.monotonic() - began)
        return interrupted


def _play(play: Play, screen: Screen, stopped: Stopped, until: int | None) -> None:
    """Play as fast as it goes."""
    flights = play.timetable.flights
    total = len(flights) if until is None else sum((f.departed or f.scheduled) <= until for f in flights)
    with _progress(screen, total) as show:
        for poll in play.timetable.polls(play.timetable.every):
            if stopped() or (until is not None and poll.at > until):
                return
            play.take(poll)
            show(play)


@contextmanager
def _progress(screen: Screen, total: int) -> Iterator[Callable[[Play], None]]:
    """Tells how far it is: a bar on a terminal, else a line for each tenth."""
    if not screen.live:
        told = 0

        def tell(play: Play) -> None:
            nonlocal told
            if play.flights * 10 // total > told:
                told = play.flights * 10 // total
                screen.line(f"{told * 10:3d} %  {_moment(play.at)}  {play.log.head:,} events")

        yield tell
        return
    bar = BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan")
    columns = (TextColumn(" {task.description}"), bar, TextColumn("{task.fields[events]} events"))
    with Progress(*columns, console=screen.moving, expand=True, refresh_per_second=8, transient=True) as progress:
        task = progress.add_task("", total=total, events="0")

        def update(play: Play) -> None:
            progress.update(task, completed=play.flights, description=_moment(play.at), events=f"{play.log.head:,}")

        yield update
    screen.console.print(progress.get_renderable())


def _follow(play: Play, screen: Screen, stopped: Stopped, speed: float) -> None:
    """Play at a speed, until it is over or stopped."""
    every = MINUTE * max(1, -(-round(speed) // (60 * _POLLS_A_SECOND)))
    every = min(every, play.timetable.every)
    begin, began = play.at, time.monotonic()
    dashboard = Dashboard(play, speed)
    screen.gap()
    if not screen.live:
        hour = begin // HOUR * HOUR
        for poll in play.timetable.polls(every, after=begin):
            if not _until(began + (poll.at - begin) / 1e6 / speed, stopped):
                return
            play.take(poll)
            for alert in dashboard.news():
                screen.line(f"ALERT  {alert_line(alert)}")
            while hour + HOUR < poll.at:
                hour += HOUR
                screen.line(hour_line(play, hour))
        return
    with Live(dashboard, console=screen.console, refresh_per_second=4, transient=True):
        for poll in play.timetable.polls(every, after=begin):
            if not _until(began + (poll.at - begin) / 1e6 / speed, stopped):
                return
            play.take(poll)


def _until(moment: float, stopped: Stopped) -> bool:
    """Wait for a moment. False when it is stopped before."""
    while not stopped():
        left = moment - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, 0.05))
    return False


def _report(play: Play, screen: Screen, seconds: float) -> None:
    log, timetable = play.log, play.timetable
    streams = [info for info in log.streams("aircraft-*") if info.name != stream_of("unassigned")]
    screen.played(play.flights, log.head, log.store.size(), seconds, in_file=log.store.is_file)
    seen = sightings(log, timetable.days)
    screen.sightings(seen, len(streams), sum(info.version for info in streams))
    screen.changes(changes(log))
    screen.delay(play.delay)
    screen.windows(windows(log, timetable))
    busiest = max(streams, key=lambda info: info.version).name if streams else None
    screen.closing(play.folder, stream_of(seen[0].aircraft) if seen else busiest)


def _moment(micros: int) -> str:
    shown = local(from_micros(micros))
    return f"{day(shown):>6} {shown:%H:%M}"


@contextmanager
def _interruptible() -> Iterator[Stopped]:
    """Have Ctrl-C and SIGTERM asked for between two steps rather than raised within one.

    The second time, they are raised.
    """
    asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
