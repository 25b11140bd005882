"""The flights, and the order in which they became known.

The file lists flights by schedule, so a flight that left 22 hours late stands 22 hours before its time. A live feed
knows nothing of the future: here each fact comes when it became known. A day's plan comes three hours before the
day begins (New York's), a departure and a landing when they happened, a cancellation at the time at which the flight
was to leave (the data does not say when it was decided). The landing is the departure plus the time in the air, the
earliest it can have been: the data has no taxiing.

The feed is polled every so often, and a poll brings what became known since, its departures in the order of the
schedule. So departures reach the log out of order, but by no more than the time between two polls.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from importlib.resources import as_file, files
from typing import NamedTuple

import msgspec
import polars as pl

from ..errors import NotFound, UsageError
from ..time import from_micros, to_micros

ZONE = "America/New_York"
MINUTE = 60_000_000
HOUR = 60 * MINUTE
QUICK_DAYS = 3

_COLUMNS = {
    "scheduled": pl.Datetime("us", "UTC"),
    "departed": pl.Datetime("us", "UTC"),
    "dep_delay": pl.Int64(),
    "arr_delay": pl.Int64(),
    "air_time": pl.Int64(),
    "carrier": pl.String(),
    "flight": pl.Int64(),
    "tailnum": pl.String(),
    "origin": pl.String(),
    "dest": pl.String(),
}
PLANNED, DEPARTED, LANDED, CANCELLED = range(4)


class Flight(NamedTuple):
    """A flight, all that will be known of it. Times are microseconds since 1970."""

    id: str
    carrier: str
    aircraft: str
    origin: str
    dest: str
    scheduled: int
    departed: int | None
    delay: int | None
    arr_delay: int | None
    landed: int | None
    planned: int


class Poll(msgspec.Struct, frozen=True):
    """What the feed brings at one moment.

    Attributes:
        at: The moment, in microseconds since 1970.
        facts: What became known since the poll before, in order: when, what (PLANNED …), and of which flight.
    """

    at: int
    facts: list[tuple[int, int, Flight]]

    @property
    def departures(self) -> list[Flight]:
        """The flights that have left, in the order of the schedule."""
        return sorted((f for _, kind, f in self.facts if kind == DEPARTED), key=lambda f: (f.scheduled, f.id))


class Timetable:
    """The flights of a file.

    Args:
        frame: The file's rows.
        quick: Only the first three days.
    """

    def __init__(self, frame: pl.DataFrame, *, quick: bool = False) -> None:
        frame = frame.sort("scheduled", maintain_order=True).with_columns(_day("scheduled").alias("day"))
        if quick:
            first = frame["day"].min()
            assert isinstance(first, date)
            frame = frame.filter(pl.col("day") < first + timedelta(days=QUICK_DAYS))
        self.frame = frame
        self.days: list[date] = frame["day"].unique().sort().to_list()
        self.flights = [Flight(*row) for row in _flights(frame).iter_rows()]
        self.every = 30 * MINUTE if len(self.days) <= 62 else HOUR
        """The time between two polls, in microseconds: a year is played in longer steps than a month."""

    @property
    def title(self) -> str:
        """The span, such as ``January 2013``."""
        first, last = self.days[0], self.days[-1]
        if (first.year, first.month) == (last.year, last.month) and len(self.days) >= 28:
            return f"{first:%B %Y}"
        return f"{day(first)} to {day(last)} {last.year}"

    @property
    def facts(self) -> pl.DataFrame:
        """What became known, in order: ``at``, ``kind``, ``index`` of the flight."""
        of = pl.DataFrame(
            [(f.planned, f.scheduled, f.departed, f.landed) for f in self.flights],
            schema=dict.fromkeys(("planned", "scheduled", "departed", "landed"), pl.Int64),
            orient="row",
        ).with_row_index("index")
        kinds = [
            (PLANNED, pl.col("planned"), pl.lit(True)),
            (DEPARTED, pl.col("departed"), pl.col("departed").is_not_null()),
            (LANDED, pl.col("landed"), pl.col("landed").is_not_null()),
            (CANCELLED, pl.col("scheduled"), pl.col("departed").is_null()),
        ]
        each = [of.filter(has).select(at.alias("at"), pl.lit(kind).alias("kind"), "index") for kind, at, has in kinds]
        return pl.concat(each).sort("at", "kind", "index")

    def polls(self, every: int, *, after: int = 0) -> Iterator[Poll]:
        """The feed, poll by poll; polls that bring nothing are left out.

        Args:
            every: Microseconds between two polls, which fall on multiples of it.
            after: Only what became known after this time.
        """
        facts = self.facts.filter(pl.col("at") > after).with_columns((-(-pl.col("at") // every) * every).alias("poll"))
        present, found = 0, list[tuple[int, int, Flight]]()
        for at, kind, index, poll in facts.iter_rows():
            if poll != present:
                if found:
                    yield Poll(present, found)
                present, found = poll, []
            found.append((at, kind, self.flights[index]))
        if found:
            yield Poll(present, found)


def read_flights(path: str | None) -> pl.DataFrame:
    """The rows of a file of flights; by default, those of January 2013 that are part of the package.

    Raises:
        NotFound: There is no such file.
        UsageError: It is not a Parquet file with the columns of the packaged one, or holds no flight.
    """
    if path is None:
        with as_file(files(__package__) / "january.parquet") as packaged:
            return pl.read_parquet(packaged).select(pl.col(name).cast(dtype) for name, dtype in _COLUMNS.items())
    try:
        frame = pl.read_parquet(path, glob=False)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", hint="Give the path of a Parquet file of flights") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"{path} cannot be read as Parquet", hint=_LIKE) from error
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise UsageError(f"{path} has no column {missing[0]!r}", hint=_LIKE)
    try:
        frame = frame.select(pl.col(name).cast(dtype) for name, dtype in _COLUMNS.items())
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"a column of {path} has another type than it should", hint=_LIKE) from error
    frame = frame.filter(pl.col("scheduled").is_not_null() & pl.col("origin").is_not_null())
    if not frame.height:
        raise UsageError(f"{path} holds no flight", hint=_LIKE)
    return frame


_LIKE = "It should be like january.parquet in the package, such as the flights of the whole year"


def _day(column: str) -> pl.Expr:
    return pl.col(column).dt.convert_time_zone(ZONE).dt.date()


def _flights(frame: pl.DataFrame) -> pl.DataFrame:
    departed = pl.col("departed").dt.epoch("us")
    # Polars brings its own table of time zones; not every machine has one.
    midnight = pl.col("day").cast(pl.Datetime("us")).dt.replace_time_zone(ZONE, ambiguous="earliest").dt.epoch("us")
    # A number is used twice a day now and then, from two airports.
    times = pl.int_range(1, pl.len() + 1).over("carrier", "flight", "day")
    again = pl.when(times > 1).then(pl.format(" #{}", times)).otherwise(pl.lit(""))
    return frame.select(
        id=pl.format("{}{} {}{}", "carrier", "flight", pl.col("day").dt.to_string(), again),
        carrier="carrier",
        aircraft=pl.col("tailnum").fill_null("unassigned"),
        origin="origin",
        dest="dest",
        scheduled=pl.col("scheduled").dt.epoch("us"),
        departed=departed,
        delay="dep_delay",
        arr_delay="arr_delay",
        landed=departed + pl.col("air_time") * MINUTE,
        planned=midnight - 3 * HOUR,
    )


def local(moment: datetime | int) -> datetime:
    """A moment as New York's clocks show it (without a zone)."""
    micros = moment if isinstance(moment, int) else to_micros(moment)
    shown = pl.select(pl.from_epoch(pl.lit(micros), "us").dt.replace_time_zone("UTC").dt.convert_time_zone(ZONE))
    found = shown.to_series().dt.replace_time_zone(None).item()
    assert isinstance(found, datetime)
    return found


def at_local(day: date, hour: int, minute: int = 0) -> datetime:
    """The moment (UTC) at which New York's clocks show a time."""
    naive = pl.lit(datetime(day.year, day.month, day.day, hour, minute))
    return from_micros(pl.select(naive.dt.replace_time_zone(ZONE, ambiguous="earliest").dt.epoch("us")).item())


def day(moment: date) -> str:
    """A day as it is shown: ``9 Jan``."""
    return f"{moment.day} {moment:%b}"
