"""What the log asks of a store, and the values that pass between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from ..errors import UsageError
from ..events import Event, type_name
from ..evolution import stored_names
from ..time import Clock, from_micros
from .database import Database

PLAIN = "position, stream, version, kind, recorded, body, metadata"
"""What there is to know of a single event whose body stands inline and that has no effective time."""
PLAIN_VALUES = PLAIN.count(",") + 1
"""Headers of so few values are of such events."""
COLUMNS = f"{PLAIN}, count, effective, format, body_ref, body_offset"
"""What there is to know of any run, but its hashes."""


class PackedEvents(msgspec.Struct, frozen=True):
    """Single events of one kind, plain as those of `PLAIN`: each part of all of them as one text.

    Numbers are parted by commas; bodies, and metadata where all have some, by line feeds.
    """

    count: int
    kind: int
    positions: str
    streams: str
    versions: str
    recorded: str
    bodies: str
    metadata: str | None


class Encoding(IntEnum):
    """How a body is written."""

    JSON = 1
    """One JSON object; inline with the header."""
    NDJSON = 2
    """One JSON object per line, in order, without a last newline."""
    ARROW = 3
    """An Arrow IPC stream, lz4-compressed."""
    ARCHIVED = 4
    """Not a body but where it is: rows of a file of an archive, as JSON (`millstream.log.retention.reader.Pointer`)."""
    TRIMMED = 5
    """Not a body but why there is none: when, by whom and by which rule, as JSON (`millstream.log.bodies.Trim`)."""


_BEYOND = 1 << 62
"""A position after all that there can be."""


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
        UsageError: ``types`` or ``tags`` is one string or holds what no event could have, or ``after`` is not a
            position.
    """

    types: Sequence[str | type[Event]] = ()
    tags: Sequence[str] = ()
    after: int = 0
    also: tuple[Matching, ...] = ()

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"types": self.types, "tags": self.tags, "also": self.also}
        for name, each in given.items():
            if isinstance(each, str) or not isinstance(each, Iterable):
                raise UsageError(f"{name}={each!r:.60} is no list", hint="Give a tuple or list")
            given[name] = tuple(each)
        types, tags, also = given.values()
        if not all(isinstance(tag, str) for tag in tags) or len(tags) > 32:
            raise UsageError(f"tags={tags!r:.60} are not up to 32 strings", hint="Give fewer tags, as strings")
        names = tuple(type_name(each) for each in types)
        for text in (*names, *tags):
            if not text.isprintable() and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
                raise UsageError(f"{text!r:.60} is no text that an event could have", hint="Use printable text")
        if not all(isinstance(each, Matching) for each in also):
            raise UsageError(f"also={also!r:.60} are no queries", hint="Join queries with |")
        if not isinstance(self.after, int) or isinstance(self.after, bool) or self.after < 0:
            raise UsageError(f"after={self.after!r:.60} is not a position", hint="Give a position, such as log.head")
        # The struct is frozen for its users; what they gave is put into its one form here.
        for name, value in (("types", names), ("tags", tags), ("also", also), ("after", min(self.after, _BEYOND))):
            msgspec.structs.force_setattr(self, name, value)

    @property
    def type_names(self) -> tuple[str, ...]:
        """The names under which events of its types may be stored: those that the types had before, too."""
        return tuple(sorted(stored_names(type_name(each) for each in self.types)))

    def __or__(self, other: Matching) -> Matching:
        if not isinstance(other, Matching):
            return NotImplemented
        # Side by side, never one inside of the other, however many are joined.
        return msgspec.structs.replace(self, also=(*self.also, msgspec.structs.replace(other, also=()), *other.also))

    @property
    def any_of(self) -> tuple[Matching, ...]:
        """The alternatives, each without further ones."""
        return (msgspec.structs.replace(self, also=()), *(a for o in self.also for a in o.any_of))

    def since(self, position: int) -> Matching:
        """The same query for events after a position, in all of its alternatives."""
        first, *rest = (msgspec.structs.replace(each, after=max(each.after, position)) for each in self.any_of)
        return msgspec.structs.replace(first, also=tuple(rest))


class StagedRun(msgspec.Struct):
    """A run that is ready to be written: all that does not depend on where it will stand.

    ``ref`` is the number of its body when that was put ahead, in a commit of its own (see `Store.put_body`).
    """

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
    ref: int | None = None


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


def last_of(row: Sequence[Any]) -> int:
    """The last position of a header, one of `PLAIN` or of `COLUMNS`."""
    return int(row[0] + (row[PLAIN_VALUES] if len(row) > PLAIN_VALUES else 1) - 1)


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
    """Which events a reader wants: of one stream, or of streams whose names begin so, or of these types.

    What it names, all of it must hold; ``matching`` too.

    Attributes:
        types: The names under which the wanted events may be stored; None for all.
        shown: The names that the wanted types have now.
    """

    stream: str | None = None
    prefix: str | None = None
    types: frozenset[str] | None = None
    shown: frozenset[str] | None = None
    matching: Matching | None = None

    def within(self, query: Matching) -> Scope:
        """The scope without its query, narrowed to an alternative's types."""
        types = self.types
        if query.types:
            names = frozenset(query.type_names)
            types = names if types is None else types & names
        return Scope(self.stream, self.prefix, types)

    @property
    def by_kind(self) -> bool:
        """Whether kinds say which events it takes in, or some of it."""
        return self.types is not None or self.prefix is not None

    def takes(self, category: str, type: str) -> bool:
        """Whether it takes in events of a kind, as far as category and type tell; see `further`."""
        if self.types is not None and type not in self.types:
            return False
        if self.stream is not None and category != category_of(self.stream):
            return False
        if self.prefix is None:
            return True
        whole = category_of(self.prefix)
        return category == whole if whole.endswith("-") else category.startswith(whole)

    @property
    def further(self) -> str | None:
        """The prefix, when it says more than a category does: it goes on past its first dash."""
        prefix = self.prefix
        return None if prefix is None or category_of(prefix) == prefix else prefix


def narrowed(low: int, high: int, version: int, is_low: bool, run: tuple[int, int, int] | None) -> tuple[int, int]:
    """Bounds (after, until) by position, narrowed to a stream's versions from one on, or to those before it.

    Args:
        is_low: From the version on; else before it.
        run: Position, version and count of the last run of the stream that begins at the version or before.
    """
    if run is None:
        position = None if is_low else low + 1
    elif version < run[1] + run[2]:
        position = run[0] + version - run[1]
    else:
        position = run[0] + run[2] if is_low else None  # beyond the stream's end
    if position is None:
        return low, high
    return (max(low, position - 1), high) if is_low else (low, min(high, position))


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


Placed = tuple[StagedAppend, int]
"""An append and its first position."""

InlineHandler = Callable[[Database, Sequence[Placed]], None]
"""Called with the database and appends of one commit, inside of it."""


__all__ = [
    "COLUMNS",
    "PLAIN",
    "PLAIN_VALUES",
    "AppendRow",
    "BodyInfo",
    "Clock",
    "Database",
    "Encoding",
    "Head",
    "InlineHandler",
    "Kind",
    "Matching",
    "Placed",
    "Receipt",
    "Request",
    "Scope",
    "StagedAppend",
    "StagedRun",
    "StreamInfo",
    "after_prefix",
    "category_of",
    "last_of",
    "narrowed",
]
