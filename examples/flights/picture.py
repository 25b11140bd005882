"""The flows' answers as a picture: SVG, drawn by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from html import escape

import polars as pl

from .flows import ZONE

WIDTH, LEFT, RIGHT = 960, 56, 16
INK, FAINT, BAR = "#1f2933", "#d9dee5", "#b4442f"
LINES = ("#1769aa", "#b4442f", "#3c7d3e")
SHADES = ("#f1f3f6", "#fbe3c8", "#f6bd86", "#e98d55", "#cf5a35", "#96281b")
"""From no late departures to half of them and more."""

Rows = Iterator[str]


class Axis:
    """Days from left to right."""

    def __init__(self, first: date, last: date) -> None:
        self.first, self.days = first, (last - first).days + 1
        self.step = (WIDTH - LEFT - RIGHT) / self.days

    def at(self, days: float) -> float:
        """Where a moment is, in days since the first."""
        return LEFT + days * self.step

    def marks(self, top: float, bottom: float) -> Rows:
        """Some days, named below."""
        shown = [self.first + timedelta(days=n) for n in range(self.days)]
        for day in shown:
            # Where months are narrow, a 29th would stand in the way of the next 1st.
            weekly = (day.day - 1) % 7 == 0 and (day.day < 29 or self.days <= 35)
            if weekly if self.days <= 62 else day.day == 1:
                x = self.at((day - self.first).days)
                if x > WIDTH - RIGHT - 40:
                    continue
                yield f'<path d="M{x:.1f} {top:.0f}V{bottom:.0f}" stroke="{FAINT}"/>'
                yield _text(x + 2, bottom + 12, f"{day.day} {day:%b}")


def draw(per_hour: pl.DataFrame, rolling: pl.DataFrame, never_left: pl.DataFrame, title: str) -> str:
    """The three answers, one above the other, with one axis of days.

    Args:
        per_hour: What the flow ``per_hour`` gave.
        rolling: What ``rolling`` gave.
        never_left: What ``never_left`` gave.
        title: What stands above.
    """
    local = pl.col("window_start").dt.convert_time_zone(ZONE)
    hours = per_hour.group_by(day=local.dt.date(), hour=local.dt.hour()).agg(pl.col("departures", "late").sum())
    first, last = hours["day"].min(), hours["day"].max()
    assert isinstance(first, date)
    assert isinstance(last, date)
    axis = Axis(first, last)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 620" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="620" fill="white"/>',
        _text(LEFT, 24, title, size=16),
        *_heat(axis, hours.sort("day", "hour"), 62),
        *_lines(axis, rolling, 300, 150),
        *_bars(axis, never_left, 500, 90),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _heat(axis: Axis, hours: pl.DataFrame, top: float) -> Rows:
    height = 8
    yield _text(LEFT, top - 8, "Departures 30 minutes late or more, among all of their hour, by the hour of the day")
    for hour in range(0, 24, 6):
        yield _text(LEFT - 6, top + hour * height + 8, f"{hour:02}:00", anchor="end")
    for row in hours.iter_rows(named=True):
        share = row["late"] / row["departures"]
        shade = SHADES[min(int(share * 10), len(SHADES) - 1)] if share else SHADES[0]
        x, y = axis.at((row["day"] - axis.first).days), top + row["hour"] * height
        yield (
            f'<rect x="{x:.1f}" y="{y:.0f}" width="{max(axis.step - 0.5, 0.5):.1f}" height="{height - 0.5}"'
            f' fill="{shade}"/>'
        )
    for number, shade in enumerate(SHADES):
        x = WIDTH - RIGHT - (len(SHADES) - number) * 56
        yield f'<rect x="{x}" y="{top - 18}" width="10" height="10" fill="{shade}"/>'
        label = "< 10 %" if number == 0 else f"≥ {number * 10} %"
        yield _text(x + 13, top - 9, label)


def _lines(axis: Axis, rolling: pl.DataFrame, top: float, height: float) -> Rows:
    most = rolling.group_by("carrier").len().sort(["len", "carrier"], descending=[True, False]).head(3)
    carriers = most["carrier"].to_list()
    local = pl.col("window_end").dt.convert_time_zone(ZONE).dt.replace_time_zone(None)
    steps = (
        rolling.filter(pl.col("carrier").is_in(carriers) & (pl.col("flights") >= 5))
        .sort("window_end", maintain_order=True)
        .group_by("carrier", step=local.dt.truncate("3h" if axis.days <= 62 else "1d"), maintain_order=True)
        .agg(pl.col("mean").last())
        .with_columns(at=(pl.col("step") - pl.lit(axis.first)).dt.total_seconds() / 86_400)
    )
    high = max(float(steps["mean"].max() or 0), 60.0)  # type: ignore[arg-type]
    bottom = top + height
    yield _text(LEFT, top - 8, "Mean delay of a carrier's departures of the last six hours, in minutes")
    yield from axis.marks(top, bottom)
    for minutes in range(0, int(high) + 1, 30 if high < 150 else 60):
        y = bottom - minutes / high * height
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>'
        yield _text(LEFT - 6, y + 4, str(minutes), anchor="end")
    for number, carrier in enumerate(carriers):
        points = [
            f"{axis.at(at):.1f} {bottom - max(mean, 0) / high * height:.1f}"
            for at, mean in steps.filter(pl.col("carrier") == carrier).select("at", "mean").iter_rows()
        ]
        yield f'<path d="M{"L".join(points)}" fill="none" stroke="{LINES[number]}" stroke-width="1.2"/>'
        yield _text(WIDTH - RIGHT - (3 - number) * 40, top - 8, f"— {carrier}", fill=LINES[number])


def _bars(axis: Axis, never_left: pl.DataFrame, top: float, height: float) -> Rows:
    days = never_left.group_by(day=pl.col("scheduled").dt.convert_time_zone(ZONE).dt.date()).len().sort("day")
    high = max([1, *days["len"].to_list()])
    bottom = top + height
    yield _text(LEFT, top - 8, f"Flights that never left, by the day of their schedule ({never_left.height} in all)")
    yield from axis.marks(top, bottom)
    for count in (0, high):
        yield _text(LEFT - 6, bottom - count / high * height + 4, str(count), anchor="end")
    yield f'<path d="M{LEFT} {bottom}H{WIDTH - RIGHT}" stroke="{INK}"/>'
    for day, count in days.iter_rows():
        x, size = axis.at((day - axis.first).days), count / high * height
        yield (
            f'<rect x="{x + axis.step * 0.1:.1f}" y="{bottom - size:.1f}" width="{axis.step * 0.8:.1f}"'
            f' height="{size:.1f}" fill="{BAR}"/>'
        )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, fill: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(text)}</text>'
    )
