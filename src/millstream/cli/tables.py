"""Tables and records for a terminal, by rich."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from decimal import Decimal
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .output import cell, values

_OPTIONAL = frozenset({"effective", "tags", "metadata"})
"""Columns of an event that are left out of a narrow table, and of one in which no event has them."""
_TIMES = frozenset({"time", "_time"})
_STYLES = {"position": "cyan", "time": "dim", "_time": "dim", "type": "green"}
_GAP = 2
_LEAST = 8
_NARROW = 100


def console() -> Console:
    """The terminal, or what stands in for it."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def print_table(rows: Sequence[Any], names: Sequence[str]) -> None:
    """Print rows as a table that fits the terminal's width: what is too long ends in an ellipsis."""
    if not rows:
        return
    terminal = console()
    columns = dict(zip(names, zip(*(list(values(row, names)) for row in rows), strict=True), strict=True))
    narrow = terminal.width < _NARROW
    kept = {name: column for name, column in columns.items() if name not in _OPTIONAL or (any(column) and not narrow)}
    numeric = {name for name, column in kept.items() if _is_numeric(column)}
    cells = {name: [name, *(shown(name, value) for value in column)] for name, column in kept.items()}
    for name in _TIMES & cells.keys() if narrow else ():
        cells[name] = _short(cells[name])
    widths = fitted({name: max(map(cell_len, texts)) for name, texts in cells.items()}, numeric, terminal.width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for name, texts in cells.items():
        table.add_column(
            Text(texts[0]),
            justify="right" if name in numeric else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=widths[name],
            style=_STYLES.get(name, ""),
        )
    for row in zip(*(texts[1:] for texts in cells.values()), strict=True):
        table.add_row(*map(Text, row))
    terminal.print(table)


def _is_numeric(column: Sequence[Any]) -> bool:
    filled = [value for value in column if value is not None]
    return bool(filled) and all(isinstance(v, int | float | Decimal) and not isinstance(v, bool) for v in filled)


def _short(times: Sequence[str]) -> list[str]:
    """Times for a narrow terminal: to the second; and of one day, without it, which then stands in the header."""
    days = {time[:10] for time in times[1:]}
    if len(days) == 1:
        return [days.pop(), *(time[11:19] for time in times[1:])]
    return [times[0], *(time[:19] for time in times[1:])]


def fitted(natural: Mapping[str, int], rigid: Set[str], room: int) -> dict[str, int]:
    """Widths that fit a room together: the widest gives way first; numbers and times do not.

    Example:
        >>> fitted({"n": 5, "name": 12, "data": 90}, {"n"}, 49)
        {'n': 5, 'name': 12, 'data': 28}
    """
    widths = dict(natural)
    soft = [name for name in widths if name not in rigid and name not in _TIMES]
    excess = sum(widths.values()) + _GAP * (len(widths) - 1) - room
    while excess > 0 and soft:
        widest = max(soft, key=lambda name: widths[name])
        second = max((widths[name] for name in soft if name != widest), default=0)
        least = max(second - 1, _LEAST)
        if widths[widest] <= least:
            break
        cut = min(excess, widths[widest] - least)
        widths[widest] -= cut
        excess -= cut
    return widths


def print_record(record: Mapping[str, Any]) -> None:
    """Print a record: a line for each field, its name before it."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in record.items():
        grid.add_row(Text(name), Text(shown(name, value)))
    console().print(grid)


def shown(name: str, value: Any) -> str:
    """A value as it is shown: times to the millisecond, fractions to six places, nothing that steers the terminal."""
    if value is None:
        return ""
    if name == "time" and isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "milliseconds")
    if isinstance(value, float) and 1e-4 <= abs(value) < 1e6:
        return f"{value:.6f}".rstrip("0").rstrip(".")
    if name == "tags":
        return shown("", ", ".join(value))
    if isinstance(value, bool):
        return "yes" if value else ""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cell(value))


class Lines:
    """A table that grows for as long as it is followed: columns of fixed width, a line for each event."""

    def __init__(self) -> None:
        self._console = console()
        self._widths = {"position": 10, "time": 23, "stream": 18, "version": 7, "type": 20}
        self._narrow = self._console.width < _NARROW
        if self._narrow:
            self._widths.update(position=8, time=8, stream=12, type=14)
        self._begun = False
        self._day = ""

    def write(self, rows: Sequence[Any]) -> None:
        """Print more rows."""
        if not self._begun and rows:
            self._begun = True
            self._fit(rows)
            self._line({name: name for name in [*self._widths, "data"]}, "bold")
        for row in rows:
            cells = {name: shown(name, getattr(row, name)) for name in [*self._widths, "data"]}
            if self._narrow:
                self._tell_day(cells["time"][:10])
                cells["time"] = cells["time"][11:19]
            self._line(cells, "")

    def _tell_day(self, day: str) -> None:
        # There is no room for the day in each line: it stands in one of its own where it begins.
        if day != self._day:
            self._day = day
            self._console.print(Text(" " * (self._widths["position"] + _GAP) + day, style="dim"))

    def _fit(self, rows: Sequence[Any]) -> None:
        # The rows that are there already tell what is to be expected; those to come may be somewhat longer.
        room = max(self._console.width // 5, 8)
        for name in ("stream", "type"):
            longest = max(cell_len(getattr(row, name)) for row in rows)
            self._widths[name] = max(len(name), min(longest + 2, room))

    def _line(self, cells: Mapping[str, str], style: str) -> None:
        line = Text(style=style, end="\n", no_wrap=True, overflow="crop")
        left = self._console.width
        for name, width in self._widths.items():
            text = _fitted(cells[name], width, right=name in ("position", "version"))
            line.append(text + "  ", style=style or _STYLES.get(name, ""))
            left -= width + 2
        line.append(_cropped(cells["data"], max(left, 8)), style=style)
        self._console.print(line, soft_wrap=False, no_wrap=True, overflow="crop")


def _fitted(text: str, width: int, *, right: bool) -> str:
    text = _cropped(text, width)
    gap = " " * (width - cell_len(text))
    return gap + text if right else text + gap


def _cropped(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
