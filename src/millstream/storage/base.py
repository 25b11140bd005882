"""What the log asks of a store, and the values that pass between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, Protocol

import msgspec

from ..time import Clock


class Encoding(IntEnum):
    """How a body is written."""

    JSON = 1
    """One JSON object; inline with the header."""
    NDJSON = 2
    """One JSON object per line, in order, without a last newline."""
    ARROW = 3
    """An Arrow IPC stream, lz4-compressed."""


class Matching(msgspec.Struct, frozen=True):
    """A query for events: of any of these types, with all of these tags, after a position.

    Empty ``types`` or ``tags`` do not restrict. ``a | b`` matches what either matches.
    """

    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    after: int = 0
    also: tuple[Matching, ...] = ()

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
    def time(self) -> Any:
        """When it was recorded (UTC)."""
        from ..time import from_micros

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


class Database(Protocol):
    """A connection to a SQL database inside one transaction."""

    def execute(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> Any: ...
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None: ...


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


class Head(msgspec.Struct, frozen=True):
    """The end of the log."""

    position: int
    recorded: int
    hash: bytes


__all__ = [
    "Clock",
    "Database",
    "Encoding",
    "Head",
    "Matching",
    "Receipt",
    "Request",
    "Scope",
    "StagedAppend",
    "StagedRun",
    "StreamInfo",
]
