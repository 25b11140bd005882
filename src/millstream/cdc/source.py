"""What a capture asks of a source of changes. SQLite is one; PostgreSQL and MySQL take the same place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from ..errors import CaptureError
from ..log.staging import encode_metadata
from .findings import Backlog, Finding
from .shape import Shape

if TYPE_CHECKING:
    from ..log import Run

Row = dict[str, Any]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture was told besides where its source is; see `millstream.cdc.capture`.

    Attributes:
        tables: The tables to capture; None for all.
    """

    tables: tuple[str, ...] | None = None
    lock_timeout: float = 10.0
    slot: str | None = None
    publication: str | None = None
    heartbeat: float = 10.0
    slot_limit: int | None = None
    drop_slot: bool = False
    failover: bool = False
    outbox: str | None = None
    chunk_rows: int = 50_000
    server_id: int | None = None


class Progress(msgspec.Struct, kw_only=True):
    """How far the snapshot of one table has come.

    Attributes:
        done: All rows that were there are in the log.
        cursor: Where the next page begins: the last row's address; None before the first page.
        rows: Rows read so far.
        again: The log holds rows of this table that may be gone: say TRUNCATE before the first page.
        expected: How many rows the source thinks there are; 0 if it does not say.
    """

    done: bool = False
    cursor: list[Any] | None = None
    rows: int = 0
    again: bool = False
    expected: int = 0

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
        source: What the kind of source needs besides.
        prefix: What the streams' names begin with; None in what was kept before that was.
    """

    slot: str
    opened: bool = False
    tables: dict[str, Progress] = {}
    source: dict[str, Any] = {}
    prefix: str | None = None


class Piece(msgspec.Struct):
    """Events of one table that go into the log as one run, ready to be written.

    Attributes:
        table: The table's name as the capture gives it.
        body: Each event as a JSON object, in the source's order, a line each, without a last newline.
        count: How many there are, up to `MAX_EVENTS`.
        shape: The shape that the rows have.
        type: The events' type: ``Change`` mostly.
        metadata: What the source says of them, as a JSON object with its keys in order.
        effective: When they were committed at the source, in microseconds since 1970; None if it does not tell.
        stream: Where they go, if not to the table's stream.
    """

    table: str
    body: bytes
    count: int
    shape: Shape | None
    type: str = "Change"
    metadata: bytes | None = None
    effective: int | None = None
    stream: str | None = None
    digest: bytes = b""
    ref: int | None = None
    """The number of its body in the log, once that was put there ahead."""


MAX_EVENTS = 65_536
"""The most events of a run."""


def pieces_of(
    table: str,
    shape: Shape,
    events: Sequence[Any],
    metadata: Mapping[str, Any] | None = None,
    effective: int | None = None,
) -> list[Piece]:
    """Events of one table, or what is encoded like them and says its type, as pieces: neighbours of one type in one."""
    about = encode_metadata(metadata)
    found = []
    for type, group in groupby(events, key=lambda event: event.__event_type__):
        same = list(group)
        for first in range(0, len(same), MAX_EVENTS):
            some = same[first : first + MAX_EVENTS]
            found.append(Piece(table, encode_lines(some), len(some), shape, type, about, effective))
    return found


def encode_lines(events: Sequence[Any]) -> bytes:
    """Each as a JSON object in a line of its own, without a last newline."""
    return _encoder.encode_lines(events)[:-1]


_encoder = msgspec.json.Encoder()


class Batch(msgspec.Struct):
    """What one look at the source has found.

    Attributes:
        pieces: The events, in the order in which they go into the log.
        position: The source's position after them.
        state: The capture's state after them.
        ahead: Pieces whose bodies are to be put into the log ahead, unseen: those of a later batch of this visit.
    """

    pieces: list[Piece]
    position: int
    state: State
    ahead: list[Piece] = []


class Session(Protocol):
    """An open source, used by one thread.

    It is asked for the next batch while the one before is being committed: `poll` goes by the position and state
    that it is given, which are those of the last batch, and only `acknowledge` tells what is durable.
    """

    def poll(self, position: int, state: State, *, whole: bool = False) -> Batch | None:
        """What comes after a position, up to a page; None when there is nothing now.

        Args:
            whole: Say None only when all has come that was committed at the source before this was called.
        """

    def begun(self, state: State) -> bool:
        """Whether the snapshot of every captured table has begun."""

    def acknowledge(self, position: int, *, now: bool = False) -> None:
        """All up to a position is durable in the log; the source may forget it, at its leisure or now."""

    def changed(self) -> bool:
        """Whether there may be something new since it was last asked. Cheap enough for 100 times a second."""


class RowReader(Protocol):
    """The rows of a source as they were at one moment, to be compared with what the log has.

    What every kind of source has to provide: all of `rows`, of all tables, is of one state of the source (a
    transaction that stays open: REPEATABLE READ in PostgreSQL and MySQL), and `position` and `held` say exactly which.
    """

    position: int
    """A capture whose checkpoint is here or beyond has taken in all that the rows show."""

    def shape(self, table: str) -> Shape:
        """The shape of a table, as its changes carry it.

        Raises:
            CaptureError: There is no such table.
        """

    def rows(self, table: str, after: Row | None, limit: int) -> list[Row]:
        """The next rows of a table, in an order of the reader's own that does not change, in JSON as in `Change`.

        Args:
            after: The last row of the answer before; None for the first rows. The reader may keep its place itself.
            limit: The most rows; an answer without any is the end.
        """

    def held(self, run: Run) -> int:
        """How many of a run's events, from the first one on, tell what the rows show already.

        All of a run that was committed at the source before the moment of the rows, none of one committed after it.
        """


class Source(Protocol):
    """A database to capture."""

    url: str
    """Its address, without credentials."""

    options: Options
    """What it was told; asked anew by each visit."""

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

    def check(self) -> list[Finding]:
        """What in its settings a capture cannot live with, or had better not."""

    def backlog(self, state: State | None, position: int, seconds: float, room: int | None) -> Backlog | None:
        """What it keeps for a capture that has come to a position; None when it keeps nothing for it.

        Args:
            state: The capture's state; None for one that never ran.
            seconds: How long to watch how fast the source grows.
            room: Bytes that its disk has left, if that is known.
        """


@runtime_checkable
class ReadableSource(Protocol):
    """A source whose rows can be compared with the log: each kind that has this can be verified."""

    def reader(self) -> AbstractContextManager[RowReader]:
        """The rows as they are now. Nothing is installed, no change is taken, and no capture is disturbed.

        Raises:
            CaptureError: The source cannot be read.
        """


def reader_of(source: Source) -> AbstractContextManager[RowReader]:
    """The rows of a source.

    Raises:
        CaptureError: It cannot be read, or there is no reader for its kind.
    """
    if not isinstance(source, ReadableSource):
        raise CaptureError(
            f"{source.url} cannot be read beside its capture", hint="Sources in SQLite, PostgreSQL and MySQL can"
        )
    return source.reader()
