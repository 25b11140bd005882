"""What the log asks of a store, and the values that pass between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import msgspec

from ..errors import UsageError
from ..events import Event, type_name
from ..time import Clock, from_micros
from .database import Database
from .signal import Signal

PLAIN = "position, stream, version, kind, recorded, body, metadata"
"""What there is to know of a single event whose body stands inline and that has no effective time."""
COLUMNS = f"{PLAIN}, count, effective, format, body_ref, body_offset"
"""What there is to know of any run, but its hashes."""


class Encoding(IntEnum):
    """How a body is written."""

    JSON = 1
    """One JSON object; inline with the header."""
    NDJSON = 2
    """One JSON object per line, in order, without a last newline."""
    ARROW = 3
    """An Arrow IPC stream, lz4-compressed."""
    ARCHIVED = 4
    """Not a body but where it is: rows of a file of an archive, as JSON (`millstream.log.archived.Pointer`)."""
    TRIMMED = 5
    """Not a body but why there is none: when, by whom and by which rule, as JSON (`millstream.log.bodies.Trim`)."""


class BodyInfo(msgspec.Struct, frozen=True):
    """A body at a glance: how it is written, how many events it holds, how many bytes it has."""

    encoding: int
    rows: int
    size: int


class Matching(msgspec.Struct, frozen=True):
    """A query for events: of any of these types, with all of these tags, after a position.

    Empty ``types`` or ``tags`` do not restrict. ``a | b`` matches what either matches.

    Args:
        types: Event classes or type names.
        tags: Tags, all of which an event must have.
        after: Only events after this position.

    Raises:
        UsageError: ``types`` or ``tags`` is one string, or ``after`` is not a position.
    """

    types: tuple[str | type[Event], ...] = ()
    tags: tuple[str, ...] = ()
    after: int = 0
    also: tuple[Matching, ...] = ()

    def __post_init__(self) -> None:
        for name in ("types", "tags"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise UsageError(f"{name}={given!r:.60} is no list", hint="Give a tuple or list")
        if not all(isinstance(tag, str) for tag in self.tags) or len(tuple(self.tags)) > 32:
            raise UsageError(f"tags={self.tags!r:.60} are not up to 32 strings", hint="Give fewer tags, as strings")
        if not isinstance(self.after, int) or isinstance(self.after, bool) or self.after < 0:
            raise UsageError(f"after={self.after!r:.60} is not a position", hint="Give a position, such as log.head")
        # The struct is frozen for its users; what they gave is put into its one form here.
        msgspec.structs.force_setattr(self, "types", tuple(type_name(each) for each in self.types))
        msgspec.structs.force_setattr(self, "tags", tuple(self.tags))

    @property
    def type_names(self) -> tuple[str, ...]:
        """The names of its types."""
        return tuple(type_name(each) for each in self.types)

    def __or__(self, other: Matching) -> Matching:
        return msgspec.structs.replace(self, also=(*self.also, other))

    @property
    def any_of(self) -> tuple[Matching, ...]:
        """The alternatives, each without further ones."""
        return (msgspec.structs.replace(self, also=()), *(a for o in self.also for a in o.any_of))


class StagedRun(msgspec.Struct):
    """A run that is ready to be written: all that does not depend on where it will stand."""

    type: str
    schema: str
    count: int
    encoding: Encoding
    body: bytes
    body_hash: bytes
    tags: tuple[str, ...] = ()
    metadata: bytes | None = None
    effective: int | None = None
    ranges: Sequence[tuple[str, int, int]] = ()


class StagedAppend(msgspec.Struct):
    """Runs for one stream, with the conditions under which they may be written."""

    stream: str
    runs: list[StagedRun]
    expect: int | None = None
    unless: Matching | None = None
    close: bool = False
    count: int = 0
    """How many events its runs hold together."""


class Receipt(msgspec.Struct, frozen=True):
    """What the log answers to an append that is on disk.

    Attributes:
        first: Position of the first event that was written.
        position: Position of the last one; of the log's head when nothing was written.
        count: How many events were written.
        stream: The stream of the last one.
        version: The version of that stream afterwards.
    """

    first: int
    position: int
    count: int
    stream: str | None
    version: int
    recorded: int

    @property
    def time(self) -> datetime:
        """When it was recorded (UTC)."""
        return from_micros(self.recorded)


class Request(msgspec.Struct):
    """One unit of work for the committer: all of it happens, or none.

    ``work`` runs in the same database transaction after the appends, perhaps on another caller's thread and
    perhaps twice, so it must have no side effects but through the database that it is given.
    """

    appends: list[StagedAppend]
    id: str | None = None
    digest: bytes = b""
    work: Callable[[Database, Receipt], None] | None = None


class Kind(NamedTuple):
    """What the events of a run are."""

    category: str
    type: str
    schema: str


def category_of(stream: str) -> str:
    """The category of a stream: its name up to its first '-', the dash included; all of it when it has none."""
    head, dash, _ = stream.partition("-")
    return head + dash


def after_prefix(prefix: str) -> str:
    """The least text that is greater than all that begin with a prefix."""
    head = prefix.rstrip("\U0010ffff")
    if not head:
        return prefix + "\U0010ffff" * 512
    code = ord(head[-1]) + 1
    return head[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)


class Scope(msgspec.Struct, frozen=True):
    """Which events a reader wants: of one stream, or of streams whose names begin so, or of these types."""

    stream: str | None = None
    prefix: str | None = None
    types: frozenset[str] | None = None


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream at a glance. Times are microseconds since 1970."""

    name: str
    version: int
    first_position: int
    last_position: int
    first_recorded: int
    last_recorded: int
    closed: bool

    @property
    def first_time(self) -> datetime:
        """When its first event was recorded (UTC)."""
        return from_micros(self.first_recorded)

    @property
    def last_time(self) -> datetime:
        """When its last event was recorded (UTC)."""
        return from_micros(self.last_recorded)


class Head(msgspec.Struct, frozen=True):
    """The end of the log."""

    position: int
    recorded: int
    hash: bytes


class AppendRow(NamedTuple):
    """What is kept of an append that had an id."""

    digest: bytes
    result: str
    """Its receipt as JSON."""
    last: int


InlineHandler = Callable[[Database, StagedAppend, int], None]
"""Called with the database, an append and its first position, inside the commit."""


class OpenTransaction(Protocol):
    """A transaction of the writer's that its caller works in."""

    @property
    def database(self) -> Database: ...

    def finish(self, request: Request) -> Receipt:
        """Place the appends in it, inline handlers and all; with a used id, undo it and give the first receipt."""


class Store(Protocol):
    """What the log asks of a store. `millstream.testing.LogContract` says what must hold."""

    is_file: bool
    """Whether it is one file, whose path its location is."""
    readonly: bool
    closed: bool
    """Whether this process has closed it."""
    signal: Signal
    on_rollback: list[Callable[[], None]]
    """Called when what was read may be of a transaction that was undone."""

    @property
    def location(self) -> str:
        """Where the log is, as `millstream.open` takes it, without a password; empty in memory."""

    @property
    def log_id(self) -> str:
        """What tells this log from any other."""

    # --- writing

    def commit(self, request: Request) -> Receipt:
        """Commit a request; on disk when this returns."""

    def commit_soon(self, request: Request, loop: Any) -> Any:
        """Queue a request for a coroutine: an asyncio future of the receipt."""

    def transaction(self) -> AbstractContextManager[OpenTransaction]:
        """The writer inside a transaction of the caller's own, on the caller's thread."""

    def inline(self, name: str, types: frozenset[str] | None, handler: InlineHandler) -> None:
        """Run a handler inside every commit that appends one of these types (None: any)."""

    def remove_inline(self, name: str) -> None:
        """Run it no longer."""

    def move_bodies(
        self,
        encoding: int,
        rows: int,
        body: bytes,
        links: Sequence[tuple[int, int | None, int]],
        request: Request | None = None,
    ) -> bool:
        """Store a merged body, point headers into it and drop the bodies that they had, in one short transaction.

        Args:
            links: For each header: its position, its body's number until now, its offset in the new body.
            request: Appends that commit with it.

        Returns:
            False, with nothing changed, when a header's body has moved since it was read.
        """

    # --- the clock

    def now(self) -> int:
        """The log's clock, in microseconds since 1970."""

    def confirm_clock(self) -> None:
        """Accept the clock as it is."""

    # --- reading

    def connect(self) -> AbstractContextManager[Database]:
        """A connection to read with, for a moment."""

    def head(self) -> Head:
        """The end of the log as it is now, whoever wrote it."""

    def page(self, scope: Scope, after: int, until: int, limit: int, backwards: bool = False) -> list[tuple[Any, ...]]:
        """The next headers of a scope with events in (after, until), oldest first unless ``backwards``.

        Rows of `PLAIN` when all of them are plain, else of `COLUMNS`. The first or last run may reach beyond the
        bounds; who reads cuts it.
        """

    def headers(self, after: int, limit: int) -> tuple[list[tuple[Any, ...]], dict[int, list[str]]]:
        """The next headers after a position, body hash and hash the last two values; and the tags by position."""

    def placed(self, database: Database, first: int, until: int) -> list[tuple[Any, ...]]:
        """Headers (`COLUMNS`) from a position up to before another, as a transaction under way sees them."""

    def body(self, ref: int) -> tuple[int, bytes]:
        """The encoding and the bytes of a body.

        Raises:
            NotFound: It is gone: compacted into another since its header was read. Read the header again.
        """

    def find_body(self, position: int) -> tuple[int, int] | None:
        """Where the body of the run that begins at a position is now: its number and the offset inside."""

    def body_infos(self, refs: Sequence[int]) -> dict[int, BodyInfo]:
        """Bodies at a glance, by number, without their bytes; those that are gone are left out."""

    def placeholders(self, encoding: int) -> Iterator[tuple[int, int, bytes]]:
        """All bodies of `ARCHIVED` or `TRIMMED`: number, how many events, bytes. In no particular order."""

    def kind(self, id: int) -> Kind:
        """The category, type and schema that a number stands for."""

    def stream_name(self, id: int) -> str:
        """The name that a stream's number stands for."""

    def tags(self, position: int) -> tuple[str, ...]:
        """The tags of the run that begins at a position, sorted."""

    def position_at(self, micros: int) -> int:
        """The last position recorded strictly before a time; 0 when there is none."""

    def version_bounds(self, stream: str, first: int, last: int, low: int, high: int) -> tuple[int, int]:
        """Bounds (after, until) by position, narrowed to versions from ``first`` to before ``last``."""

    def kinds(self, scope: Scope) -> list[int]:
        """The kinds of the categories and types that a scope takes in."""

    def stream_kinds(self, name: str, kinds: list[int]) -> tuple[list[int], bool]:
        """The kinds of frames that a stream holds, out of these, and whether it holds JSON of any of them too."""

    def range_of(self, position: int, name: str) -> tuple[int, int] | None:
        """Minimum and maximum of a datetime column of the run at a position (microseconds), if known."""

    def append_row(self, id: str) -> AppendRow | None:
        """What is kept of the append with an id, if there was one."""

    def stream(self, name: str) -> StreamInfo | None:
        """A stream at a glance, or None."""

    def streams(self, prefix: str = "") -> Iterator[StreamInfo]:
        """All streams whose names begin with a prefix, by name."""

    def copy_to(self, path: str) -> None:
        """Copy the database as it is at one moment to a new file, durably."""

    def close(self) -> None:
        """Close all that is open. What is under way ends first. Idempotent."""


__all__ = [
    "COLUMNS",
    "PLAIN",
    "AppendRow",
    "BodyInfo",
    "Clock",
    "Database",
    "Encoding",
    "Head",
    "InlineHandler",
    "Kind",
    "Matching",
    "OpenTransaction",
    "Receipt",
    "Request",
    "Scope",
    "StagedAppend",
    "StagedRun",
    "Store",
    "StreamInfo",
    "after_prefix",
    "category_of",
]
