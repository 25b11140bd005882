"""What the log asks of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..errors import MillstreamError
from .base import (
    AppendRow,
    BodyInfo,
    Head,
    InlineHandler,
    Kind,
    PackedEvents,
    Receipt,
    Request,
    Scope,
    StagedRun,
    StreamInfo,
)
from .committer import Committer
from .database import Database
from .inline import Registered
from .raw import RawSource, RawTarget, Role
from .signal import Signal


class OpenTransaction(Protocol):
    """A transaction of the writer's that its caller works in."""

    @property
    def database(self) -> Database: ...

    def finish(self, request: Request) -> Receipt:
        """Place the appends in it, inline handlers and all; with a used id, undo it and give the first receipt."""


class Store(RawSource, RawTarget, Protocol):
    """What the log asks of a store. `millstream.testing.LogContract` says what must hold."""

    is_file: bool
    """Whether it is one file, whose path its location is."""
    page_runs: int
    """How many headers a page of a long read is best to hold."""
    readonly: bool
    address: str | None
    """What opens it from another process, with a password where there is one; None in memory."""
    closed: bool
    """Whether this process has closed it."""
    signal: Signal
    committer: Committer
    """Has the changes of all threads share commits."""
    on_stale: list[Callable[[], None]]
    """Called when nothing that was read is to be trusted: it may be of a transaction that was undone, or is trimmed."""

    @property
    def location(self) -> str:
        """Where the log is, as `millstream.open` takes it, without a password; empty in memory."""

    @property
    def log_id(self) -> str:
        """What tells this log from any other."""

    # --- writing

    def commit(self, request: Request) -> Receipt:
        """Commit a request; on disk when this returns."""

    def commit_all(self, requests: Sequence[Request]) -> list[Receipt | MillstreamError]:
        """Commit several requests in this order, together: each its receipt, or why it alone was refused."""

    def commit_soon(self, request: Request, loop: Any) -> Any:
        """Queue a request for a coroutine: an asyncio future of the receipt."""

    def transaction(self) -> AbstractContextManager[OpenTransaction]:
        """The writer inside a transaction of the caller's own, on the caller's thread."""

    def inline(
        self,
        name: str,
        types: frozenset[str] | None,
        handler: InlineHandler,
        fingerprint: str | None = None,
        across: bool = False,
    ) -> None:
        """Run a handler inside every commit that appends one of these types (None: any).

        Args:
            fingerprint: What it may be registered by.
            across: It is called once for several requests, when all of them were placed; else for each before the next.
        """

    def remove_inline(self, name: str) -> None:
        """Run it no longer."""

    def register_inline(self, name: str, registered: Registered | None) -> None:
        """Have the log refuse appends of a handler's types by processes that lack it; None: no longer."""

    def registered_inline(self) -> dict[str, Registered]:
        """The handlers that are registered, by name."""

    def put_body(self, run: StagedRun, work: Callable[[Database, int], None]) -> int:
        """Put a run's body ahead of its header, in a commit of its own: unseen until a run with its ``ref`` is
        appended. So an append of any size is written in short commits, and published by a last one.

        Args:
            work: Called with the database and the body's number, in the same commit: notes it, so that it can be
                dropped if the append never comes.

        Returns:
            The number, for `StagedRun.ref`.
        """

    def drop_bodies(self, refs: Sequence[int], work: Callable[[Database], None]) -> None:
        """Remove bodies that were put ahead and to which no header points, and do some work in the same commit."""

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

    def set_role(self, role: Role | None) -> Head:
        """Say what the log is from now on; None: the home of its events, and all that it needs for that is made."""

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

    def packed(self, scope: Scope, after: int, until: int, limit: int) -> PackedEvents | None:
        """The same events as the next page, up to so many, where all of them are plain and of one kind; None otherwise,
        or where the store has pages only.
        """

    def stream_rows(self, stream: str, version: int, limit: int) -> list[tuple[int, int, int, int, str | None]]:
        """The runs of a stream from the one that holds a version on, or else from the last one before it.

        Rows of position, version, count, kind and the body where it stands inline: what rebuilding a state takes.
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

    def size(self) -> int:
        """How many bytes it takes, as far as the database knows."""

    def check(self) -> None:
        """Look at what no walk of the log reads, such as indexes, as far as the store can tell.

        Raises:
            DamagedLog: Something is not as it should be.
        """

    def copy_to(self, path: str) -> bool:
        """Copy the database as it is at one moment to a new SQLite file, durably; False when it is not SQLite's."""

    def close(self) -> None:
        """Close all that is open. What is under way ends first. Idempotent."""
