"""What is shown while the demo goes on live: the boards, the last windows, alerts and changes."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..cdc import Change
from ..time import from_micros
from .domain import GetBoard
from .flights import HOUR, day, local
from .flows import LATE
from .play import Play

_BARS = " ▁▂▃▄▅▆▇█"
_SPAN = 24
"""How many five-minute windows are shown of each airport: two hours."""


class Dashboard:
    """The state of the application, read from the log and the read model each time it is asked for.

    Args:
        play: The application.
        speed: How fast it is played.
    """

    def __init__(self, play: Play, speed: float) -> None:
        self._play = play
        self._speed = speed
        self._alerts: deque[dict[str, Any]] = deque(maxlen=3)
        self._changes: deque[Change] = deque(maxlen=3)
        self._seen = play.log.head
        counts = play.timetable.frame["origin"].value_counts(sort=True)
        self.airports: list[str] = sorted(counts["origin"].head(3).to_list())

    def news(self) -> list[dict[str, Any]]:
        """The alerts since the last time."""
        log = self._play.log
        head = log.head
        found = [e.data for e in log.read("alerts", after=self._seen, until_position=head + 1)]
        self._alerts.extend(found)
        for run in log.runs("flights", types=Change, after=self._seen, until_position=head + 1):
            self._changes.extend(run.events(Change)[-3:])
        self._seen = head
        return found

    def __rich__(self) -> Group:
        self.news()
        now = self._play.clock()
        heading = Text.assemble(
            (f"{local(now):%a} {day(local(now))} {local(now):%Y %H:%M}", "bold"), f" in New York, ×{self._speed:g}   ",
            (f"{self._play.log.head:,}", "bold"), " events   ", ("Ctrl-C ends", "dim"),
        )  # fmt: skip
        return Group(heading, Text(), self._boards(now), Text(), self._windows(now), Text(), self._news())

    def _boards(self, now: datetime) -> Table:
        table = _table("", "Sched.", "Flight", "Destination", "Aircraft", "Status")
        for airport in self.airports:
            since = now - timedelta(minutes=10)
            for number, row in enumerate(self._play.app.query(GetBoard(airport, since, 4))):
                style = _STYLES.get(row["status"].partition(":")[0], "")
                table.add_row(
                    Text(airport if not number else "", style="bold cyan"),
                    _clock(row["scheduled"]),
                    row["flight"].split()[0],
                    row["destination"][:26],
                    row["aircraft"],
                    Text(status(row), style=style),
                )
        return table

    def _windows(self, now: datetime) -> Table:
        """A bar for each of the last windows; those of the last minutes are still open."""
        table = _table("", "Departures by five minutes, the last two hours (the latest are still open)", "")
        end = int(now.timestamp()) // 300 * 300
        counted: dict[tuple[str, int], int] = {}
        for event in self._play.log.read("windows", backwards=True, limit=_SPAN * 4):
            counted[event.data["origin"], int(event.data["window_start"].timestamp())] = event.data["departures"]
        for airport in self.airports:
            counts = [counted.get((airport, end - 300 * back), 0) for back in range(_SPAN, 0, -1)]
            bars = "".join(_BARS[min(count, len(_BARS) - 1)] * 2 for count in counts)
            table.add_row(Text(airport, style="bold cyan"), Text(bars, style="green"), f"{sum(counts):>3}")
        return table

    def _news(self) -> Table:
        table = _table("Alerts", "Changes in the other program's database")
        lines = max(len(self._alerts), len(self._changes), 1)
        alerts = [alert_line(a) for a in reversed(self._alerts)] + [""] * lines
        changes = [_change_line(c) for c in reversed(self._changes)] + [""] * lines
        if not self._alerts:
            alerts[0] = "none so far"
        for alert, change in list(zip(alerts, changes, strict=False))[:lines]:
            table.add_row(Text(alert, style="red" if self._alerts else "dim"), change)
        return table


def hour_line(play: Play, hour: int) -> str:
    """What an hour brought, in one line: for an output that is no terminal."""
    end = from_micros(hour)
    begin = from_micros(hour - HOUR)
    left: dict[str, int] = {}
    late = 0
    for event in play.log.read(
        "departures", since=begin + timedelta(microseconds=1), until=end + timedelta(microseconds=1)
    ):
        left[event.data["origin"]] = left.get(event.data["origin"], 0) + 1
        late += event.data["delay"] >= LATE
    airports = "  ".join(f"{airport} {count}" for airport, count in sorted(left.items()))
    return f"{day(local(end))} {local(end):%H:%M}  {play.log.head:,} events, left: {airports or 'none'}, late: {late}"


def alert_line(alert: dict[str, Any]) -> str:
    """An alert in a few words."""
    at = local(alert["window_end"])
    return f"{day(at)} {at:%H:%M} {alert['origin']}: {alert['late']} late within the hour"


def status(row: dict[str, Any]) -> str:
    """What a board says of a flight."""
    found = row["status"].partition(":")[0]
    return f"{found} {_clock(row['expected'])}" if found in ("delayed", "departed") else str(found)


def _change_line(change: Change) -> Text:
    row = change.after or change.before or {}
    what = f" {row['status']}" if change.operation == "UPDATE" else ""
    return Text(f"{change.operation} {row['id'].split()[0]}{what}", style=_OPERATIONS[change.operation])


def _clock(text: str) -> str:
    return f"{local(datetime.fromisoformat(text)):%H:%M}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


_STYLES = {"departed": "dim", "delayed": "yellow", "cancelled": "red"}
_OPERATIONS = {"INSERT": "green", "UPDATE": "yellow", "DELETE": "red"}
