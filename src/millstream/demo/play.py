"""The play: a log, everything that is built on it, and the feed that fills it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from importlib.resources import as_file, files
from types import TracebackType
from typing import Any, Self

import msgspec

import millstream as ms

from ..cdc import capture
from ..errors import MillstreamError
from ..storage.base import StagedAppend
from ..testing import FakeClock
from ..time import from_micros
from .domain import DelayFlight, DepartureBoard, GetBoard, delay_flight, event_of, get_board, stream_of
from .flights import CANCELLED, DEPARTED, HOUR, MINUTE, PLANNED, Flight, Poll, Timetable, at_local
from .flows import alerts, departures_frame, per_airport
from .folder import Folder

_PATIENCE = 60.0


class DemoFailed(MillstreamError):
    """A part of the demo has ended when it should not."""

    code = "demo-failed"


class Delay(msgspec.Struct, frozen=True):
    """What the command showed.

    Attributes:
        at: The moment of the log's clock.
        command: The command.
        airport: Where the flight leaves from.
        before: The board before it.
        after: The board right after it.
        position: Where in the log its event stands.
        waited: Seconds from the receipt to the answer of the query after it.
        rejection: Why the same command was rejected for a flight that had left.
    """

    at: int
    command: DelayFlight
    airport: str
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    position: int
    waited: float
    rejection: str


class Play:
    """The demo's application at work, from ``with`` to its end.

    Args:
        folder: Where its files are.
        timetable: The flights.
        delay_on: The day on which a flight is delayed by command; by default the middle one.
    """

    def __init__(self, folder: Folder, timetable: Timetable, *, delay_on: date | None = None) -> None:
        self.folder = folder
        self.timetable = timetable
        self.clock = FakeClock(from_micros(min(f.planned for f in timetable.flights) - HOUR))
        self.log = ms.open(folder.log, clock=self.clock)
        self.flows = (per_airport(timetable.every), alerts(timetable.every))
        self.capture = capture(f"sqlite:///{folder.operations}", tables=["flights"])
        self.app = ms.App(
            self.log,
            projections=[DepartureBoard.into(folder.board)],
            captures=[self.capture],
            flows=self.flows,
        )
        self.app.command(delay_flight)
        self.app.query(get_board)
        self.delay: Delay | None = None
        self.at = 0
        self.polls = 0
        self.flights = 0
        """How many flights are over: they have left, or were cancelled."""
        self._delay_from = at_local(delay_on or timetable.days[len(timetable.days) // 2], 16)
        self._writer: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._writer = _start_writer(self.folder.operations)
            self.app.start()
            # The capture has begun once it has seen the table, which is empty: all that comes is a change.
            if next(self.log.follow("flights", timeout=_PATIENCE), None) is None:
                raise DemoFailed("the capture of the operations database did not begin", hint="Run it again")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.kill()
            writer.communicate()
        try:
            self.app.stop()
        finally:
            self.log.close()

    # --- the feed -------------------------------------------------------------------------------------

    def take(self, poll: Poll) -> None:
        """Append what a poll brings, in one commit, and let the other program know of it."""
        self.clock.set(from_micros(poll.at))
        appends: list[StagedAppend] = [
            self.log.stage(stream_of(flight.aircraft), event_of(kind, flight), effective=from_micros(at))
            for at, kind, flight in poll.facts
        ]
        departures = poll.departures
        if departures:
            appends.append(self.log.stage("departures", departures_frame(departures), type="Departure"))
        self.log.commit(appends)
        self._tell_writer(poll)
        self.at = poll.at
        self.polls += 1
        self.flights += sum(kind in (DEPARTED, CANCELLED) for _, kind, _ in poll.facts)
        if self.delay is None and self.clock() >= self._delay_from:
            self.delay = self._delay()

    def _tell_writer(self, poll: Poll) -> None:
        statements: list[list[Any]] = []
        for _, kind, flight in poll.facts:
            if kind == PLANNED:
                when = from_micros(flight.scheduled).isoformat()
                statements.append(["plan", flight.id, flight.origin, flight.dest, when])
            elif kind == DEPARTED:
                statements.append(["depart", flight.delay, flight.id])
            elif kind == CANCELLED:
                statements.append(["cancel", flight.id])
        if not statements:
            return
        assert self._writer is not None
        assert self._writer.stdin is not None
        try:
            self._writer.stdin.write(json.dumps(statements) + "\n")
            self._writer.stdin.flush()
        except OSError as error:
            raise DemoFailed(
                "the program that writes the operations database has ended", hint="Run it again"
            ) from error

    # --- the command ----------------------------------------------------------------------------------

    def _delay(self) -> Delay | None:
        """Announce a delay as an airline does: of a flight that will really leave late."""
        flight, minutes = self._to_delay()
        if flight is None:
            return None
        board = GetBoard(flight.origin, from_micros(flight.scheduled - 10 * MINUTE), 6)
        before = self.app.query(board, after=self.log.head, timeout=_PATIENCE)
        command = DelayFlight(stream_of(flight.aircraft), flight.id, minutes, "late aircraft")
        receipt = self.app.execute(command, id=f"delay {flight.id}")
        began = time.monotonic()
        after = self.app.query(board, after=receipt, timeout=_PATIENCE)
        waited = time.monotonic() - began
        return Delay(
            self.at, command, flight.origin, before, after, receipt.position, waited, self._rejected(command.reason)
        )

    def _to_delay(self) -> tuple[Flight | None, int]:
        for flight in self.timetable.flights:
            due = self.at + 20 * MINUTE <= flight.scheduled <= self.at + 2 * HOUR
            if due and flight.aircraft != "unassigned" and (flight.delay or 0) >= 30:
                return flight, flight.delay or 0
        return None, 0

    def _rejected(self, reason: str) -> str:
        """What the write side says to a delay of a flight that has left."""
        left = next((f for f in reversed(self.timetable.flights) if (f.departed or self.at) < self.at), None)
        if left is None:
            return ""
        try:
            self.app.execute(DelayFlight(stream_of(left.aircraft), left.id, 30, reason))
        except ms.Rejected as error:
            return error.message
        return ""

    # --- the end --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let everything come level with the log.

        Raises:
            MillstreamError: What made a part of the application fail.
        """
        writer, self._writer = self._writer, None
        assert writer is not None
        writer.communicate()
        if writer.returncode:
            raise DemoFailed("the program that writes the operations database has failed", hint="Run it again")
        self.app.query(GetBoard("", self.clock(), 0), after=self.log.head, timeout=_PATIENCE)
        failed = [f"{status.name}: {status.error}" for status in self.app.status() if status.state is ms.State.FAILED]
        self.app.stop()
        if failed:
            raise DemoFailed("; ".join(failed))
        self.capture.catch_up(self.log)
        ms.run(self.log, *self.flows, until="head")


def _start_writer(path: str) -> subprocess.Popen[str]:
    """The other program, in a session of its own: Ctrl-C is for the demo alone."""
    with as_file(files(__package__) / "operations.py") as script:
        writer = subprocess.Popen(
            [sys.executable, "-I", str(script), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert writer.stdout is not None
        if writer.stdout.readline() != "ready\n":
            with suppress(OSError):
                writer.kill()
            writer.wait()
            raise DemoFailed("the program that writes the operations database did not start", hint="Run it again")
    return writer
