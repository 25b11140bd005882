"""How captures and their sources are: what stands in the log, what a source holds back, which settings are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..conversion import ready
from ..log.checkpoints import peek
from .findings import Backlog, Finding
from .source import State
from .worker import TABLES

if TYPE_CHECKING:
    from ..log import Log
    from .capture import Capture

CAPTURE = "capture:"
"""Begins the name of a capture's checkpoint."""


class Report(msgspec.Struct, frozen=True):
    """What `doctor` has found."""

    source: str
    findings: list[Finding]
    backlog: Backlog | None

    @property
    def healthy(self) -> bool:
        """Whether nothing stands in a capture's way."""
        return all(finding.level != "error" for finding in self.findings)


class TableStatus(msgspec.Struct, frozen=True):
    """A table of a capture.

    Attributes:
        done: All rows that were there when it began are in the log.
        rows: How many rows its snapshot has read.
    """

    capture: str
    table: str
    done: bool
    rows: int
    position: int
    """The source's position that its changes are in the log up to."""


def check(capture: Capture) -> list[Finding]:
    """What in the source's settings a capture cannot live with, or had better not, each with what mends it.

    Raises:
        CaptureError: The source cannot be reached.
    """
    return capture.source.check()


def doctor(capture: Capture, log: Log, *, seconds: float = 2.0, room: int | None = None) -> Report:
    """The state of a capture's source: its settings, and what it keeps for the capture.

    Args:
        seconds: How long to watch how fast the source's log grows.
        room: Bytes that the source's disk has left, if they cannot be found out from here.

    Raises:
        CaptureError: The source cannot be reached.
    """
    name = capture.checkpoint
    state = states(log).get(name)
    position = next((row.position for row in status(log) if CAPTURE + row.capture == name), 0)
    backlog = capture.source.backlog(state, position, seconds, room)
    findings = capture.source.check()
    if state is None:
        findings.append(Finding("note", "this capture has never run into this log", "Run it: millstream cdc run"))
    if backlog is not None and backlog.full_in is not None and backlog.full_in < 86_400:
        findings.append(
            Finding(
                "warning",
                f"at this rate there is no room left in {backlog.full_in / 3600:.1f} hours, should the capture stop",
                "Keep it running, or remove it: millstream cdc remove",
            )
        )
    return Report(capture.source.url, findings, backlog)


def states(log: Log) -> dict[str, State]:
    """What captures have kept in a log, by the names of their checkpoints."""
    table = next(iter(TABLES))
    with log.connect() as db:
        if not db.has_table(table):
            return {}
        rows = db.query(f"select name, state from {db.own(table)} order by name")
    return {row["name"]: msgspec.json.decode(row["state"], type=ready(State)) for row in rows}


def status(log: Log) -> list[TableStatus]:
    """Each table that was captured into a log, and how far it has come."""
    found = []
    for name, state in states(log).items():
        with log.connect() as db:
            checkpoint = peek(db, name)
        position = checkpoint.position if checkpoint is not None else 0
        for table, progress in state.tables.items():
            found.append(TableStatus(name.removeprefix(CAPTURE), table, progress.done, progress.rows, position))
    return found
