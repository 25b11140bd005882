"""What is printed: on a terminal in colours and with a progress bar, elsewhere as plain lines."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
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
        moving: Where the progress goes while it moves; by default there too.
    """

    def __init__(self, console: Console | None = None, *, moving: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.moving = moving or self.console
        if self.console.width > WIDTH:
            self.console.width = WIDTH

    @property
    def live(self) -> bool:
        """Whether there is a terminal, on which what was printed can be changed."""
        return self.console.is_terminal

    def line(self, *parts: Any, style: str = "") -> None:
        """Print a text, two columns in, broken where it is too long."""
        text = Text.assemble(*parts, style=style)
        for line in text.wrap(self.console, self.console.width - 3):
            line.rstrip()
            self.console.print(Text("  ").append_text(line))

    def verbatim(self, text: str, *, indent: int = 2, style: str = "green") -> None:
        """Print a text to be copied: it is never broken."""
        self.console.print(Text(" " * indent + text, style=style), soft_wrap=True)

    def gap(self) -> None:
        """Print an empty line."""
        self.console.print()

    def opening(self, title: str) -> None:
        """What will be seen."""
        self.console.print(Text.assemble(("Millstream", "bold cyan"), f"  {title} at New York's airports, in one log"))
        self.gap()

    def played(self, flights: int, events: int, size: int, seconds: float, *, in_file: bool) -> None:
        """How the play went."""
        self.gap()
        place = " events in one file of " if in_file else " events in PostgreSQL, "
        self.line(
            (f"{flights:,}", "bold"), " flights became ", (f"{events:,}", "bold"), place,
            (f"{size / 1e6:.0f} MB", "bold"), f", in {seconds:.1f} s. All that follows is read from it.",
        )  # fmt: skip

    def part(self, number: int, title: str, *code: str) -> None:
        """The heading of a pattern, and the code that it takes."""
        self.gap()
        title = f"{number}  {title}"
        self.console.print(Rule(Text(title, style="bold cyan"), align="left", characters="─", style="cyan"))
        for line in code:
            self.verbatim(line, indent=4)
        if code:
            self.gap()

    def table(self, *tables: Table) -> None:
        """Print tables, side by side."""
        grid = Table.grid(padding=(0, 4, 0, 0))
        grid.add_row(*tables)
        with self.console.capture() as capture:
            self.console.print(Padding(grid if len(tables) > 1 else tables[0], (0, 0, 0, 2), expand=False))
        for line in Text.from_ansi(capture.get().rstrip()).split("\n"):
            line.rstrip()
            self.console.print(line)

    # --- the patterns -----------------------------------------------------------------------------------

    def sightings(self, found: list[Sighting], aircraft: int, events: int) -> None:
        """Event sourcing."""
        code = []
        if found:
            at = _iso_local(found[0].at)
            code = [f'aircraft.get("aircraft-{found[0].aircraft}", at="{at}")']
        self.part(1, "Event sourcing: every aircraft, at any moment", *code)
        self.line(f"{aircraft:,} aircraft are what their {events:,} events made them; so they can be asked")
        self.line("where they were, and how late they had run that day:")
        self.gap()
        if not found:
            self.line("(no noon has passed yet to ask about)", style="dim")
            return
        rows: list[list[str | Text]] = [
            [Text(s.aircraft, style="bold"), _when(s.at), _where(s), _how_late(s)] for s in found
        ]
        self.table(table(["Aircraft", "When", ("Where it was", "fold"), ("That day, so far", "fold")], rows))

    def changes(self, found: Changes) -> None:
        """Change data capture."""
        self.part(
            2,
            "Change data capture: what another program does to its database",
            'capture("sqlite:///operations.sqlite", tables=["flights"])',
        )
        self.line("Another process, plain sqlite3:  ", *_counts(found.counts))
        self.gap()
        columns = list((found.examples[0].after or found.examples[0].before or {}) if found.examples else {})
        rows = [row for change in found.examples for row in _change_rows(change)]
        self.table(table(["Change", "", *columns], rows))

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
        rows = [_board_row(row, before.get(row["flight"], row)) for row in shown.after]
        self.table(table(["Sched.", "Flight", "Destination", "Airline", "Before", "After"], rows))
        if shown.rejection:
            self.gap()
            self.line("A second one was rejected: ", (shown.rejection, "italic"), ".")

    def windows(self, found: Windows | None) -> None:
        """Stream processing."""
        self.part(
            4,
            "Stream processing: windows in event time, alerts",
            'departures.group_by("origin").window(tumbling("5m")).agg(n=pl.len())',
            f'departures.filter(pl.col("delay") >= {LATE}).group_by("origin")',
            '    .window(sliding("1h")).agg(late=pl.len())',
            f'    .alert(pl.col("late") >= {MANY}, cooldown="2h")',
        )
        if found is None:
            self.line("(no window has closed yet)", style="dim")
            return
        self.line(
            f"{found.departures:,} departures in {found.count:,} windows; {found.open} more in windows still open. ",
            f"They came up to {_span(found.disorder[0])} out of order; {found.late} came too late.",
        )
        self.line(*_agreement(found))
        self.gap()
        fullest = table(
            ["Top windows", "", "in five minutes"],
            [[_when(w["window_start"]), w["origin"], f"{w['departures']} departures"] for w in found.top],
        )
        last = found.alerts[-_ALERTS:]
        if not last:
            self.table(fullest)
            self.gap()
            self.line(f"No airport had {MANY} departures {LATE} minutes late within an hour: no alert.")
            return
        alerts: list[list[str | Text]] = [
            [
                _when(a["window_end"]),
                Text(a["origin"], style="bold red"),
                f"{a['late']} late by {a['mean_delay']:.0f} min",
            ]
            for a in last
        ]
        self.table(fullest, table([f"Alerts: {len(found.alerts)}", "", "within an hour"], alerts))

    # --- the end ----------------------------------------------------------------------------------------

    def closing(self, folder: Folder, aircraft: str | None) -> None:
        """What was made, and commands to look further."""
        self.gap()
        self.console.print(Rule(Text("Look further", style="bold cyan"), align="left", style="cyan"))
        made = (
            (folder.shown_log, "the log"),
            (folder.board, "the departures board, a read model"),
            (folder.operations, "the other program's database"),
        )
        room = max(len(path) for path, _ in made)
        for path, what in made:
            self.console.print(Text.assemble("  ", (path.ljust(room), "bold"), ("  " + what, "dim")), soft_wrap=True)
        self.gap()
        for command in commands(folder, aircraft):
            self.verbatim(command)
        if find_spec("duckdb") is None or find_spec("pyarrow") is None:
            self.gap()
            self.line("`millstream sql` needs two more packages: pip install 'millstream[sql]'", style="dim")


def commands(folder: Folder, aircraft: str | None) -> list[str]:
    """Commands to look further with, ready to be pasted into a shell."""
    log, millstream = shlex.quote(folder.shown_log), shlex.quote(_program())
    query = "select count(*), max(late) from alerts"
    return [
        f"{millstream} streams {log}" + (f" '{aircraft[:-2]}*'" if aircraft else ""),
        f"{millstream} read {log} {aircraft or 'departures'} --limit 5",
        f"{millstream} read {log} alerts --backwards --limit 3",
        f'{millstream} sql {log} "{query}"',
        f"{millstream} verify {log}",
    ]


def _program() -> str:
    """How a shell finds the command line: not by its name alone where its virtual environment is not active."""
    beside = os.path.join(os.path.dirname(sys.executable), "millstream")
    if shutil.which("millstream") or not os.path.exists(beside):
        return "millstream"
    return min(os.path.relpath(beside), beside, key=len)


def table(columns: Iterable[str | tuple[str, str]], rows: Iterable[Iterable[str | Text]]) -> Table:
    """A table; columns are titles, or titles with how they are set: ``right``, ``fold``."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    for column in columns:
        title, how = column if isinstance(column, tuple) else (column, "")
        made.add_column(title, justify="right" if how == "right" else "left", no_wrap=how != "fold")
    for row in rows:
        made.add_row(*row)
    return made


_ALERTS = 3
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
        parts += ["  " if parts else "", (f"{count:,} ", "bold"), (operation, _OPERATION[operation])]
    return parts


def _change_rows(change: Change) -> Iterator[list[str | Text]]:
    """The row before and the row after, as far as there are such; what an update changed stands out."""
    title = Text(change.operation, style=_OPERATION[change.operation])
    for name, row, other in (("before", change.before, change.after), ("after", change.after, change.before)):
        if row is not None:
            cells = [
                Text(_value(value), style="bold yellow" if other is not None and other[column] != value else "")
                for column, value in row.items()
            ]
            yield [title, Text(name, style="dim"), *cells]
            title = Text()


def _value(value: Any) -> str:
    """A value as it is shown; of a time, the day and New York's time."""
    if isinstance(value, str) and value.endswith("+00:00"):
        return _when(datetime.fromisoformat(value))
    return "null" if value is None else str(value)


def _board_row(row: dict[str, Any], before: dict[str, Any]) -> list[str | Text]:
    changed = row != before
    style = "bold yellow" if changed else ""
    cells = [
        _clock(datetime.fromisoformat(row["scheduled"])), row["flight"].split()[0], _cut(row["destination"], 18),
        _cut(row["airline"].removesuffix(" Inc.").removesuffix(" Co."), 17), _status(before), _status(row),
    ]  # fmt: skip
    return [Text(cell, style=style) for cell in cells]


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def _status(row: dict[str, Any]) -> str:
    status = row["status"].partition(":")[0]
    if status in ("delayed", "departed"):
        return f"{status} {_clock(datetime.fromisoformat(row['expected']))}"
    return str(status)


def _span(span: timedelta) -> str:
    minutes = round(span / timedelta(minutes=1))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def _agreement(found: Windows) -> list[Any]:
    order = f"in the order of the file, {_span(found.disorder[1])} out of order"
    if found.agrees:
        return [("✓", "bold green"), f" Polars counts the same {order}."]
    return [("✗", "bold red"), f" Polars counts otherwise {order}."]
