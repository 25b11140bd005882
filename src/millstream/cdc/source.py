"""What a capture asks of a source of changes. SQLite is one; PostgreSQL and MySQL take the same place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from ..events import Event


class Progress(msgspec.Struct, kw_only=True):
    """How far the snapshot of one table has come.

    Attributes:
        done: All rows that were there are in the log.
        cursor: Where the next page begins: the last row's address; None before the first page.
        rows: Rows read so far.
        again: The log holds rows of this table that may be gone: say TRUNCATE before the first page.
    """

    done: bool = False
    cursor: list[Any] | None = None
    rows: int = 0
    again: bool = False

    @property
    def begun(self) -> bool:
        """Whether a page was read."""
        return self.done or self.cursor is not None

    def restart(self) -> None:
        """Read the table again from its beginning."""
        self.again = self.again or self.done or self.rows > 0
        self.done, self.cursor, self.rows = False, None, 0


class State(msgspec.Struct, kw_only=True):
    """What a capture must know to go on, kept in the log beside its checkpoint.

    Attributes:
        slot: Names this capture, out of this log, in the source; unique in the world.
        opened: The checkpoint is a position of the source, not only the zero that it began with.
        tables: The snapshot of each captured table.
    """

    slot: str
    opened: bool = False
    tables: dict[str, Progress] = {}


class Piece(msgspec.Struct):
    """Events of one table that go into the log together, in the source's order."""

    table: str
    events: list[Event]
    metadata: dict[str, Any]


class Batch(msgspec.Struct):
    """What one look at the source has found.

    Attributes:
        pieces: The events, by table.
        position: The source's position after them.
        state: The capture's state after them.
        partial: More is waiting that the source committed before this look.
    """

    pieces: list[Piece]
    position: int
    state: State
    partial: bool


class Session(Protocol):
    """An open source, used by one thread."""

    def poll(self, position: int, state: State) -> Batch | None:
        """What comes after a position, up to a page; None when there is nothing. Holds nothing open."""

    def begun(self, state: State) -> bool:
        """Whether the snapshot of every captured table has begun."""

    def acknowledge(self, position: int, *, now: bool = False) -> None:
        """All up to a position is durable in the log; the source may forget it, at its leisure or now."""

    def changed(self) -> bool:
        """Whether there may be something new since it was last asked. Cheap enough for 100 times a second."""


class Source(Protocol):
    """A database to capture."""

    url: str
    """Its address, without credentials."""

    def identity(self) -> str:
        """The same for each visit to this database, another for every other one. May set it up."""

    def session(
        self, position: int, state: State, *, resync: bool
    ) -> AbstractContextManager[tuple[Session, int, State]]:
        """Open it at a position: make what is missing, and say where to go on.

        Raises:
            CaptureError: It cannot be captured, or has lost what comes after the position.
        """

    def uninstall(self) -> None:
        """Remove everything that captures made in it."""


Opener = Callable[[str, list[str] | None, float], Source]
