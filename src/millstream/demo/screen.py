"""What is printed: on a terminal in colours and with a progress bar, elsewhere as plain lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from importlib.util import find_spec
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..cdc import Change
from .domain import FlightDeparted
from .flights import day, local
from .flows import LATE, MANY
from .folder import Folder
from .play import Delay
from .report import Changes, Sighting, Windows

WIDTH = 100
"""Lines are no longer than this, on however wide a terminal."""


class Screen:
    """Prints the parts of the demo.

    Args:
        console: Where to; by default the terminal, or whatever stdout is.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if self.console.width > WIDTH:
            self.console.width = WIDTH

    @property
    def live(self) -> bool:
        """Whether there is a terminal, on which what was printed can be changed."""
        return self.console.is_terminal

    def line(self, *parts: str | Text, style: str = "") -> None:
        """Print a line, two columns in, broken where it is too long."""
        self.console.print(Padding(Text.assemble(*parts, style=style), (0, 0, 0, 2)))

    def gap(self) -> None:
        """Print an empty line."""
        self.console.print()

    def opening(self, title: str, followed: bool) -> None:
        """What will be seen."""
        self.console.print(Text.assemble(("Millstream", "bold cyan"), f"  {title} at New York's airports, in one log"))
        self.gap()

    def played(self, flights: int, events: int, size: int, seconds: float) -> None:
        """How the play went."""
        self.gap()
        self.line(
            (f"{flights:,}", "bold"), " flights became ", (f"{events:,}", "bold"), " events in one file of ",
            (f"{size / 1e6:.0f} MB", "bold"), f", in {seconds:.1f} s. All that follows is read from it.",
        )  # fmt: skip

    def part(self, number: int, title: str, *code: str) -> None:
        """The heading of a pattern, and the code that it takes."""
        self.gap()
        title = f"{number}  {title}"
        self.console.print(Rule(Text(title, style="bold cyan"), align="left", characters="─", style="cyan"))
        for line in code:
            self.console.print(Padding(Text(line, style="green"), (0, 0, 0, 4)), soft_wrap=True)
        if code:
            self.gap()

    def table(self, columns: Iterable[str | tuple[str, str]], rows: Iterable[Iterable[str | Text]]) -> None:
        """A table; columns are titles, or titles with what they are given: ``right``, ``fold``."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
        for column in columns:
            title, how = column if isinstance(column, tuple) else (column, "")
            table.add_column(title, justify="right" if how == "right" else "left", no_wrap=how != "fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(Padding(table, (0, 0, 0, 2)))

    # --- the patterns -----------------------------------------------------------------------------------

    def sightings(self, found: list[Sighting], aircraft: int, events: int) -> None:
        """Event sourcing."""
        code = []
        if found:
            at = _iso_local(found[0].at)
            code = [f'Repository(log, Aircraft).get("aircraft-{found[0].aircraft}", at="{at}")']
        self.part(1, "Event sourcing: every aircraft, at any moment", *code)
        self.line(f"{aircraft:,} aircraft are what their {events:,} events made them; so they can be asked")
        self.line("where they were, and how late they had run that day:")
        self.gap()
        if not found:
            self.line("(no noon has passed yet to ask about)", style="dim")
            return
        rows = [
            [Text(s.aircraft, style="bold"), _when(s.at), _where(s), _how_late(s)]
            for s in found
        ]  # fmt: skip
        self.table(["Aircraft", "When", ("Where it was", "fold"), ("Departures that day, so far", "fold")], rows)

    def changes(self, found: Changes) -> None:
        """Change data capture."""
        self.part(
            2,
            "Change data capture: what another program does to its database",
            'capture("sqlite:///operations.sqlite", tables=["flights"])',
        )
        self.line("A process that knows nothing of Millstream has written:  ", *_counts(found.counts))
        self.gap()
        rows = [
            [Text(c.operation, style=_OPERATION.get(c.operation, "")), _key(c), _row(c, c.before), _row(c, c.after)]
            for c in found.examples
        ]
        self.table(["Change", "Row", ("before", "fold"), ("after", "fold")], rows)

    def delay(self, shown: Delay | None) -> None:
        """CQRS."""
        self.part(
            3,
            "CQRS: a command changes the log, a read model answers",
            "receipt = app.execute(DelayFlight(aircraft, flight, minutes, reason))",
            "app.query(GetBoard(airport, since, rows), after=receipt)",
        )
        if shown is None:
            self.line("(no flight has been delayed by command so far)", style="dim")
            return
        command = shown.command
        self.line(
            f"{_when(local(shown.at), with_year=False)}, {shown.airport}: ", (command.flight.split()[0], "bold"),
            f" will leave {command.minutes} minutes late ({command.reason}).",
        )  # fmt: skip
        self.line(f"The query after the receipt had it on the board {shown.waited * 1000:.0f} ms later:")
        self.gap()
        before = {row["flight"]: row for row in shown.before}
        self.table(
            ["Sched.", "Flight", ("Destination", "fold"), "Airline", "Before", "After"],
            [_board_row(row, before.get(row["flight"], row)) for row in shown.after],
        )
        if shown.rejection:
            self.gap()
            self.line("Another one was rejected, and left no event: ", (shown.rejection, "italic"), ".")

    def windows(self, found: Windows | None) -> None:
        """Stream processing."""
        self.part(
            4,
            "Stream processing: windows in event time, alerts",
            'departures.group_by("origin").window(tumbling("5m")).agg(departures=pl.len())',
            f'departures.filter(pl.col("delay") >= {LATE}).group_by("origin").window(sliding("1h"))',
            f'          .agg(late=pl.len()).alert(pl.col("late") >= {MANY}, cooldown="2h")',
        )
        if found is None:
            self.line("(no window has closed yet)", style="dim")
            return
        self.line(
            f"{found.departures:,} departures in {found.count:,} windows; {found.open} more in windows that are open",
            f" still. They came up to {_span(found.disorder[0])} out of order; {found.late} were too late.",
        )
        self.line(*_agreement(found))
        self.gap()
        self.table(
            ["The fullest five minutes", "", ("Departures", "right")],
            [[_when(w["window_start"]), w["origin"], str(w["departures"])] for w in found.top],
        )
        self.gap()
        if not found.alerts:
            self.line("No airport had so many late departures.")
            return
        last = found.alerts[-_ALERTS:]
        title = f"Alerts: {len(found.alerts)}" + (f", the last {len(last)}" if len(last) < len(found.alerts) else "")
        self.table(
            [title, "", f"Left {LATE}+ min late within the hour", ("Mean delay", "right")],
            [
                [_when(a["window_end"]), Text(a["origin"], style="bold red"), str(a["late"]), f"{a['mean_delay']:.0f} min"]
                for a in last
            ],
        )

    # --- the end ----------------------------------------------------------------------------------------

    def closing(self, folder: Folder, aircraft: str | None) -> None:
        """The files that were made, and commands to look further."""
        self.gap()
        self.console.print(Rule(Text("Look further", style="bold cyan"), align="left", style="cyan"))
        for path, what in (
            (folder.log, "the log"),
            (folder.board, "the read model"),
            (folder.operations, "the other program's database"),
        ):
            self.console.print(Padding(Text.assemble((path, "bold"), ("  " + what, "dim")), (0, 0, 0, 2)), soft_wrap=True)
        self.gap()
        for command in commands(folder, aircraft):
            self.console.print(Padding(Text(command, style="green"), (0, 0, 0, 2)), soft_wrap=True)
        if find_spec("duckdb") is None or find_spec("pyarrow") is None:
            self.gap()
            self.line("`millstream sql` needs two more packages: pip install 'millstream[sql]'", style="dim")


def commands(folder: Folder, aircraft: str | None) -> list[str]:
    """Commands to look further with, ready to be pasted into a shell."""
    log = shlex.quote(folder.log)
    query = "select origin, max(departures) as most from windows group by origin order by origin"
    return [
        f"millstream streams {log}" + (f" '{aircraft[:-2]}*'" if aircraft else ""),
        f"millstream read {log} {aircraft or 'departures'} --limit 5",
        f"millstream read {log} alerts --backwards --limit 3",
        f'millstream sql {log} "{query}"',
        f"millstream verify {log}",
    ]


_ALERTS = 4
_OPERATION = {"INSERT": "green", "UPDATE": "yellow", "DELETE": "red"}


def _when(moment: datetime | date, *, with_year: bool = True) -> str:
    shown = local(moment) if isinstance(moment, datetime) and moment.tzinfo is not None else moment
    return f"{day(shown)} {shown:%H:%M}"


def _clock(moment: datetime) -> str:
    return f"{local(moment):%H:%M}"


def _iso_local(moment: datetime) -> str:
    shown = local(moment)
    offset = shown - moment.replace(tzinfo=None)
    hours = round(offset / timedelta(hours=1))
    return f"{shown:%Y-%m-%dT%H:%M}{hours:+03d}:00"


def _where(seen: Sighting) -> str:
    last = seen.last
    if last is None:
        return "not seen yet"
    route = f"{last.origin}→{last.dest}"
    same_day = local(last.departed).date() == local(seen.at).date()
    if seen.landed is not None:
        landed = _clock(seen.landed) if same_day else f"on {day(local(seen.landed))}"
        return f"at {last.dest}, landed {landed}" if same_day else f"last seen {route} {landed}"
    if seen.at - last.departed > timedelta(hours=18):
        return f"last seen {route} on {day(local(last.departed))}"
    return f"in the air {route}"


def _how_late(seen: Sighting) -> Text:
    if not seen.today:
        return Text("none", style="dim")
    return Text("\n").join(_departure(each) for each in seen.today)


def _departure(event: FlightDeparted) -> Text:
    text = Text(f"{_clock(event.departed)} {event.origin}→{event.dest} ")
    return text.append(_minutes(event.delay), style="red" if event.delay >= LATE else "")


def _minutes(delay: int) -> str:
    if delay == 0:
        return "on time"
    return f"{abs(delay)} min {'late' if delay > 0 else 'early'}"


def _counts(counts: dict[str, int]) -> list[Any]:
    parts: list[Any] = []
    for operation, count in counts.items():
        parts += [(f"{count:,} ", "bold"), (operation, _OPERATION[operation]), "  "]
    return parts


def _key(change: Change) -> str:
    row = change.after or change.before or {}
    return str(row.get("id", "")).replace(" ", "\n")


def _row(change: Change, row: dict[str, Any] | None) -> str:
    """The columns of a row; of an update, those that have changed."""
    if row is None:
        return "–"
    other = change.before if row is change.after else change.after
    shown = [n for n in row if n != "id" and not (change.operation == "UPDATE" and other and other[n] == row[n])]
    return ", ".join(f"{name} {_value(row[name])}" for name in shown)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value)
    return text.removesuffix(":00+00:00").replace("T", " ") + " UTC" if text.endswith(":00+00:00") else text


def _board_row(row: dict[str, Any], before: dict[str, Any]) -> list[str | Text]:
    changed = row != before
    style = "bold yellow" if changed else ""
    cells = [
        _clock(datetime.fromisoformat(row["scheduled"])), row["flight"].split()[0], row["destination"],
        row["airline"].removesuffix(" Inc.").removesuffix(" Co."), _status(before), _status(row),
    ]  # fmt: skip
    return [Text(cell, style=style) for cell in cells]


def _status(row: dict[str, Any]) -> str:
    status = row["status"].partition(":")[0]
    if status in ("delayed", "departed"):
        return f"{status} {_clock(datetime.fromisoformat(row['expected']))}"
    return str(status)


def _span(span: timedelta) -> str:
    minutes = round(span / timedelta(minutes=1))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def _agreement(found: Windows) -> list[Any]:
    source = f"the file (by schedule: {_span(found.disorder[1])} out of order)"
    if found.agrees:
        return ["Polars counts the same from ", source, ", window by window ", ("✓", "bold green")]
    return ["Polars counts otherwise from ", source, " ", ("✗", "bold red")]
