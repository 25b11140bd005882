"""What the demo is about: aircraft, what happens to them, and the departures board."""

from __future__ import annotations

import csv
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

import millstream as ms

from ..time import from_micros
from .flights import CANCELLED, DEPARTED, LANDED, PLANNED, Flight

# --- events ------------------------------------------------------------------------------------------


class FlightScheduled(ms.Event):
    flight: str
    carrier: str
    origin: str
    dest: str
    scheduled: datetime


class FlightDelayed(ms.Event):
    flight: str
    expected: datetime
    reason: str


class FlightDeparted(ms.Event):
    flight: str
    origin: str
    dest: str
    departed: datetime
    delay: int


class FlightLanded(ms.Event):
    flight: str
    dest: str
    landed: datetime
    delay: int | None


class FlightCancelled(ms.Event):
    flight: str


def stream_of(aircraft: str) -> str:
    """The stream of an aircraft: ``aircraft-N14228``. Flights without one share ``aircraft-unassigned``."""
    return f"aircraft-{aircraft}"


def event_of(kind: int, flight: Flight) -> ms.Event:
    """What the feed reports, as an event of the aircraft."""
    if kind == PLANNED:
        return FlightScheduled(
            flight=flight.id,
            carrier=flight.carrier,
            origin=flight.origin,
            dest=flight.dest,
            scheduled=from_micros(flight.scheduled),
        )
    if kind == DEPARTED and flight.departed is not None:
        return FlightDeparted(
            flight=flight.id,
            origin=flight.origin,
            dest=flight.dest,
            departed=from_micros(flight.departed),
            delay=flight.delay or 0,
        )
    if kind == LANDED and flight.landed is not None:
        return FlightLanded(
            flight=flight.id, dest=flight.dest, landed=from_micros(flight.landed), delay=flight.arr_delay
        )
    assert kind == CANCELLED
    return FlightCancelled(flight=flight.id)


# --- event sourcing: the aggregate ---------------------------------------------------------------------


class Aircraft(ms.Aggregate):
    """An aircraft, as the flights that touch New York show it."""

    expected: dict[str, datetime] = {}
    """The flights that it is to make, and when each is expected to leave."""
    departures: list[FlightDeparted] = []
    """The flights it has made, oldest first."""
    landed: FlightLanded | None = None
    """Its last landing, unless it is in the air."""

    def delay(self, flight: str, minutes: int, reason: str) -> None:
        """Have a flight leave later than expected so far."""
        if minutes <= 0:
            raise ms.Rejected(f"a delay of {minutes} minutes is none")
        if any(departure.flight == flight for departure in self.departures):
            raise ms.Rejected(f"{flight} has left already")
        if flight not in self.expected:
            raise ms.Rejected(f"{self.id} has no flight {flight}")
        self.record(
            FlightDelayed(flight=flight, expected=self.expected[flight] + timedelta(minutes=minutes), reason=reason)
        )

    @ms.on
    def on_scheduled(self, event: FlightScheduled) -> None:
        self.expected[event.flight] = event.scheduled

    @ms.on
    def on_delayed(self, event: FlightDelayed) -> None:
        self.expected[event.flight] = event.expected

    @ms.on
    def on_departed(self, event: FlightDeparted) -> None:
        self.expected.pop(event.flight, None)
        self.departures.append(event)
        self.landed = None

    @ms.on
    def on_landed(self, event: FlightLanded) -> None:
        self.landed = event

    @ms.on
    def on_cancelled(self, event: FlightCancelled) -> None:
        self.expected.pop(event.flight, None)


# --- CQRS: a command, a read model, a query --------------------------------------------------------------


class DelayFlight(ms.Command):
    aircraft: ms.Ref[Aircraft]
    flight: str
    minutes: int
    reason: str


def delay_flight(command: DelayFlight, aircraft: Aircraft) -> None:
    """Decide the command."""
    aircraft.delay(command.flight, command.minutes, command.reason)


class DepartureBoard(ms.Projection):
    """The boards of all airports: a row for each flight, with all that a board shows."""

    schema = """
    create table board (
        flight text primary key, airport text not null, scheduled text not null, expected text not null,
        destination text not null, airline text not null, aircraft text not null, status text not null
    );
    create index board_by_time on board (airport, expected);
    """

    @ms.on
    def on_scheduled(self, event: FlightScheduled, db: ms.Database, recorded: ms.Recorded) -> None:
        when = event.scheduled.isoformat()
        aircraft = recorded.stream.removeprefix("aircraft-")
        airline, destination = names("airlines").get(event.carrier, event.carrier), airport(event.dest)
        db.execute(
            "insert or replace into board values (?, ?, ?, ?, ?, ?, ?, 'on time')",
            (event.flight, event.origin, when, when, destination, airline, aircraft),
        )

    @ms.on
    def on_delayed(self, event: FlightDelayed, db: ms.Database) -> None:
        db.execute(
            "update board set expected = ?, status = ? where flight = ?",
            (event.expected.isoformat(), f"delayed: {event.reason}", event.flight),
        )

    @ms.on
    def on_departed(self, event: FlightDeparted, db: ms.Database) -> None:
        db.execute(
            "update board set expected = ?, status = 'departed' where flight = ?",
            (event.departed.isoformat(), event.flight),
        )

    @ms.on
    def on_cancelled(self, event: FlightCancelled, db: ms.Database) -> None:
        db.execute("update board set status = 'cancelled' where flight = ?", (event.flight,))


class GetBoard(ms.Query[list[dict[str, Any]]]):
    airport: str
    since: datetime
    rows: int


def get_board(query: GetBoard, db: ms.Database) -> list[dict[str, Any]]:
    """Answer the query: the flights scheduled from a time on."""
    return db.query(
        "select * from board where airport = ? and scheduled >= ? order by scheduled, flight limit ?",
        (query.airport, query.since.isoformat(), query.rows),
    )


# --- names -----------------------------------------------------------------------------------------------


def airport(code: str) -> str:
    """What an airport is called on a board, which has no room for ``Intl``."""
    return names("airports").get(code, code).removesuffix(" Intl").removesuffix(" International")


@cache
def names(table: str) -> dict[str, str]:
    """The names of airlines or airports by their codes."""
    text = (files(__package__) / f"{table}.csv").read_text(encoding="utf-8")
    rows = csv.reader(text.splitlines())
    next(rows)
    return {row[0]: row[1] for row in rows}
