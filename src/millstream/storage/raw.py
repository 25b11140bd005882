"""The log as it is stored, page by page: what a copy moves from one home to another.

A page holds headers, bodies, append ids and consumers' state as they stand in the source, all of one snapshot, and
says which head it continues. A store that can give pages and place them can be moved to and from.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Container, Iterable
from typing import Any, Protocol

import msgspec

from ..errors import DamagedLog, LogMoved, MillstreamError, NotAPrefix, ReplicaLog
from .base import Encoding, Head
from .chain import GENESIS, JSON_FORMAT, header_hash

PAGE_RUNS = 16_384
"""The most headers of a page."""
PAGE_BYTES = 16_000_000
"""About the most bytes of a page; one that holds a larger body is larger."""
STATE_BYTES = 4_000_000
"""Consumers' state up to this size goes along with each level page; what is larger goes at the switch."""


class RawRun(msgspec.Struct, array_like=True, gc=False):
    """A header as it is stored, with names instead of numbers. Times are microseconds since 1970."""

    position: int
    count: int
    stream: str
    version: int
    type: str
    schema: str
    recorded: int
    effective: int | None
    format: int
    body_hash: bytes
    hash: bytes
    metadata: str | None
    body: str | None
    """The JSON object of the one event, when it stands with the header."""
    ref: int | None
    """Else the number of its body: the position of the run that alone has it, or one below 0 of a shared one."""
    offset: int
    """Where the run's events begin in that body."""
    tags: tuple[str, ...] = ()
    ranges: tuple[tuple[str, int, int], ...] = ()

    @property
    def last(self) -> int:
        """The position of its last event."""
        return self.position + self.count - 1


class RawBody(msgspec.Struct, array_like=True, gc=False):
    """A body as it is stored: ``encoding`` may be one that only the store's later readers know."""

    encoding: int
    rows: int
    data: bytes


class RawAppend(msgspec.Struct, array_like=True, gc=False):
    """An append id, and the receipt (JSON) of the first time."""

    id: str
    digest: bytes
    first: int
    last: int
    result: str


class Carried(msgspec.Struct, frozen=True):
    """A table of consumers in the log's own database whose rows move along with the log.

    Attributes:
        columns: Names and types: ``text``, ``integer`` (64 bits) or ``blob``.
        key: How many of the first columns make the primary key.
        prefixes: Only rows whose first column begins with one of these; empty for all.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    key: int = 1
    prefixes: tuple[str, ...] = ()

    @property
    def names(self) -> str:
        """The columns, as a statement names them."""
        return ", ".join(name for name, _ in self.columns)

    @property
    def key_names(self) -> str:
        """The columns of its key, as a statement names them."""
        return ", ".join(name for name, _ in self.key_columns)

    @property
    def key_columns(self) -> tuple[tuple[str, str], ...]:
        """The columns of its key."""
        return self.columns[: self.key]


CARRIED = (
    # An inline projection's checkpoint stays: its own tables do, and it makes both anew.
    Carried(
        "millstream_checkpoints",
        (("name", "text"), ("position", "integer"), ("epoch", "integer")),
        prefixes=("flow:", "capture:", "sync:", "process:", "outbox:"),
    ),
    Carried(
        "millstream_timers",
        (
            ("process", "text"),
            ("due", "integer"),
            ("id", "text"),
            ("stream", "text"),
            ("type", "text"),
            ("data", "text"),
            ("correlation", "text"),
        ),
        key=3,
    ),
    Carried(
        "millstream_outbox",
        (
            ("outbox", "text"),
            ("position", "integer"),
            ("key", "text"),
            ("state", "text"),
            ("attempts", "integer"),
            ("due", "integer"),
            ("error", "text"),
        ),
        key=2,
    ),
    Carried("millstream_captures", (("name", "text"), ("state", "text"))),
    Carried("millstream_captured", (("stream", "text"), ("capture", "text"))),
    Carried(
        "millstream_parked",
        (
            ("stream", "text"),
            ("sink", "text"),
            ("position", "integer"),
            ("keys", "text"),
            ("error", "text"),
            ("attempts", "integer"),
            ("since", "integer"),
            ("state", "text"),
        ),
        key=3,
    ),
    Carried(
        "flow_info",
        (("flow", "text"), ("shape", "text"), ("high", "integer"), ("late", "integer"), ("columns", "text")),
    ),
    Carried(
        "flow_state",
        (
            ("flow", "text"),
            ("operator", "integer"),
            ("part", "integer"),
            ("low", "integer"),
            ("high", "integer"),
            ("body", "blob"),
        ),
        key=3,
    ),
    Carried("flow_told", (("flow", "text"), ("declared", "text"), ("paused", "integer"))),
    Carried(
        "flow_savepoints",
        (
            ("flow", "text"),
            ("label", "text"),
            ("position", "integer"),
            ("made", "integer"),
            ("shape", "text"),
            ("high", "integer"),
            ("late", "integer"),
            ("columns", "text"),
        ),
        key=2,
    ),
    Carried(
        "flow_saved_state",
        (
            ("flow", "text"),
            ("label", "text"),
            ("operator", "integer"),
            ("part", "integer"),
            ("low", "integer"),
            ("high", "integer"),
            ("body", "blob"),
        ),
        key=4,
    ),
)
"""What consumers (but projections) keep in the log's database, in the transaction of their output."""

State = dict[str, list[tuple[Any, ...]]]
"""Rows of the carried tables that there are, by table."""


class RawPage(msgspec.Struct, kw_only=True):
    """A stretch of a log.

    Attributes:
        log_id: Whose stretch.
        after: The head that it continues.
        runs: Its headers, in order, without a gap.
        bodies: The bodies that they refer to, but for those that the target was said to have.
        appends: The append ids whose last position is one of the page's, or is that of ``after``: an append without
            events stands at the head that it met, and may come later than that head's page. They may be there already.
        closed: Streams whose last event is in the page and that take no more.
        whole: It ends where a commit ends. Else the commit is larger than a page and goes on in the next.
        level: It ends at the source's head.
        state: All rows of the carried tables as of that head; None when they are too many, or as an earlier page said.
        state_current: Whether the state that was given, in this page or before, is as of the page's end.
    """

    log_id: str
    after: Head
    runs: list[RawRun] = []
    bodies: dict[int, RawBody] = {}
    appends: list[RawAppend] = []
    closed: list[str] = []
    whole: bool = True
    level: bool = False
    state: State | None = None
    state_current: bool = False

    @property
    def shared(self) -> set[int]:
        """The numbers of the shared bodies (below 0) that its runs refer to."""
        return {run.ref for run in self.runs if run.ref is not None and run.ref < 0}

    @property
    def head(self) -> Head:
        """The head of a log that ends with this page."""
        if not self.runs:
            return self.after
        run = self.runs[-1]
        return Head(run.last, run.recorded, run.hash)

    @property
    def events(self) -> int:
        """How many events it holds."""
        return self.head.position - self.after.position

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        inline = sum([len(run.body) for run in self.runs if run.body is not None])
        return inline + 200 * len(self.runs) + sum(len(body.data) for body in self.bodies.values())

    def role_after(self, role: Role) -> Role:
        """What a replica is once the page was placed."""
        state_at = self.head.position if self.state_current else role.state_at
        return msgspec.structs.replace(role, whole=self.whole, state_at=state_at)

    def since(self, position: int) -> RawPage:
        """The page without the runs up to a position at which one of them ends."""
        if position <= self.after.position:
            return self
        gone = [run for run in self.runs if run.last <= position]
        after = Head(gone[-1].last, gone[-1].recorded, gone[-1].hash)
        rest = self.runs[len(gone) :]
        names = {run.stream for run in rest}
        return msgspec.structs.replace(
            self,
            after=after,
            runs=rest,
            appends=[each for each in self.appends if each.last >= position],
            closed=[name for name in self.closed if name in names],
        )

    def until(self, position: int) -> RawPage:
        """The page without the runs that reach to a position, or beyond."""
        if position > self.head.position:
            return self
        kept = [run for run in self.runs if run.last < position]
        refs = {run.ref for run in kept}
        names = {run.stream for run in kept} - {run.stream for run in self.runs[len(kept) :]}
        return msgspec.structs.replace(
            self,
            runs=kept,
            bodies={ref: body for ref, body in self.bodies.items() if ref in refs},
            appends=[each for each in self.appends if each.last < position],
            closed=[name for name in self.closed if name in names],
            whole=True,
            level=False,
            state=None,
            state_current=False,
        )


class Role(msgspec.Struct, frozen=True):
    """What a log is, when it is not simply the home of its events.

    Attributes:
        kind: ``replica``: a copy that takes what its source has, and nothing else. ``moved``: its home is elsewhere.
        place: Where the source of the copy is, or where the log has moved to.
        whole: The last page placed ended where a commit ends.
        state_at: The position that consumers' state in a copy is as of; -1 when it never had any.
    """

    kind: str
    place: str = ""
    whole: bool = True
    state_at: int = -1

    def refusal(self, path: str) -> MillstreamError:
        """The error of an append to such a log."""
        return LogMoved(path, self.place) if self.kind == "moved" else ReplicaLog(path, self.place)


class RawHead(msgspec.Struct, frozen=True):
    """The end of a log, whose it is, and what role it has."""

    log_id: str
    head: Head
    role: Role | None = None


class RawSource(Protocol):
    """What a log is copied from."""

    def raw_head(self) -> RawHead:
        """Where it ends now."""

    def raw_header(self, position: int) -> tuple[int, Head] | None:
        """Where the run that holds a position begins, and the head of a log that ends with it; None beyond the end."""

    def position_at(self, micros: int) -> int:
        """The last position recorded strictly before a time."""

    def raw_page(
        self,
        after: int,
        *,
        until: int | None = None,
        known: Container[int] = (),
        state: bool = False,
        limit_runs: int = PAGE_RUNS,
        limit_bytes: int = PAGE_BYTES,
    ) -> RawPage:
        """The page after a position at which a run ends, all of one snapshot.

        Args:
            until: Only runs that end before this position.
            known: Numbers of shared bodies (below 0) that need not be given again.
            state: Give consumers' state, whatever its size, if the page ends at the head.
            limit_runs: The most headers. A page that reaches a limit ends where a commit ends, if one does in it.
            limit_bytes: About the most bytes.
        """


class RawTarget(Protocol):
    """What a log is copied to."""

    def raw_head(self) -> RawHead:
        """Where it ends now."""

    def raw_bodies(self) -> set[int]:
        """The numbers of the shared bodies (below 0) that it holds."""

    def raw_state(self) -> State | None:
        """The rows of the carried tables, if it was ever given any and they are not too many."""

    def place_raw(self, page: RawPage, place: str = "") -> Head:
        """Add a page, all of it in one transaction, or nothing; a page that is there already changes nothing.

        An empty log becomes a replica: it takes the page's log id over, and refuses all other appends.

        Args:
            place: Where the page comes from, for the words of those refusals.

        Raises:
            NotAPrefix: The target is not a replica that ends where the page begins.
            DamagedLog: A header does not match its hash, or a body is missing.
        """


def check_target(found: RawHead, page: RawPage, place: str) -> bool:
    """Whether a page must be placed on a target; False when it is there already. Call with the writer locked.

    Raises:
        NotAPrefix: The target is another log, takes appends of its own, or ends elsewhere.
    """
    fresh = found.role is None and found.head.position == 0
    if not fresh:
        if found.role is None or found.role.kind != "replica":
            raise NotAPrefix(place, "it is the home of its events, not a copy")
        if found.log_id != page.log_id:
            raise NotAPrefix(place, "it is a copy of another log")
    if found.head.hash == page.after.hash and found.head.position == page.after.position:
        return True
    if any(run.hash == found.head.hash for run in page.runs) and page.head.position == found.head.position:
        return False
    raise NotAPrefix(place, f"it ends at position {found.head.position}, and this page continues {page.after.position}")


def check_chain(page: RawPage) -> None:
    """Compare each header with its hash, and the bodies of single events with theirs.

    Raises:
        DamagedLog: Names the first position that does not fit.
    """
    previous, position = page.after.hash, page.after.position
    sha256 = hashlib.sha256
    for run in page.runs:
        if run.position != position + 1:
            raise DamagedLog(position + 1, f"a header is missing: the next one stands at {run.position}")
        previous = header_hash(
            previous, run.body_hash, run.position, run.count, run.stream, run.version, run.type, run.schema,
            run.recorded, run.effective, run.tags, run.metadata, run.format,
        )  # fmt: skip
        if previous != run.hash:
            raise DamagedLog(run.position, "its header does not match its hash")
        if run.body is not None and sha256(run.body.encode()).digest() != run.body_hash:
            raise DamagedLog(run.position, "its body does not match its hash")
        position += run.count
    for ref, body in page.bodies.items():
        if ref > 0 and body.encoding in (Encoding.JSON, Encoding.NDJSON):
            whole = _run_at(page, ref)
            if whole is not None and whole.format == JSON_FORMAT and sha256(body.data).digest() != whole.body_hash:
                raise DamagedLog(ref, "its body does not match its hash")


def _run_at(page: RawPage, position: int) -> RawRun | None:
    at = bisect_left(page.runs, position, key=lambda run: run.position)
    return page.runs[at] if at < len(page.runs) and page.runs[at].position == position else None


def label(runs: list[RawRun], tags: Iterable[tuple[int, str]], ranges: Iterable[tuple[int, str, int, int]]) -> None:
    """Give runs their tags (position and tag, in order) and ranges (position, name, low, high)."""
    tags_at: dict[int, list[str]] = {}
    for position, tag in tags:
        tags_at.setdefault(position, []).append(tag)
    ranges_at: dict[int, list[tuple[str, int, int]]] = {}
    for position, name, low, high in ranges:
        ranges_at.setdefault(position, []).append((name, low, high))
    if tags_at or ranges_at:
        for run in runs:
            run.tags = tuple(tags_at.get(run.position, ()))
            run.ranges = tuple(ranges_at.get(run.position, ()))


def check_found(found: Container[int], wanted: Iterable[int], after: int) -> None:
    """See that all the bodies that a page refers to were found.

    Raises:
        DamagedLog: One is missing.
    """
    for ref in wanted:
        if ref not in found:
            raise DamagedLog(ref if ref > 0 else after + 1, f"body {ref} is missing")


def check_bodies(page: RawPage, there: Container[int]) -> None:
    """See that each header's body comes with the page, or is in the target.

    Args:
        there: The numbers of the shared bodies that the target has.

    Raises:
        DamagedLog: One is missing; names the header.
    """
    for run in page.runs:
        if run.ref is not None and run.ref not in page.bodies and (run.ref > 0 or run.ref not in there):
            raise DamagedLog(run.position, f"body {run.ref} is missing")


def cut_at_commit(runs: list[Any], recorded: int, limit: int) -> tuple[int, bool]:
    """How many of the first ``limit`` of more runs to keep so that no commit is split, and whether that was possible.

    All that a commit writes is recorded at one time, so a commit ends where that changes.

    Args:
        runs: Rows; more than ``limit`` of them.
        recorded: The index of the time in a row.
        limit: At least 1.
    """
    for at in range(limit, 0, -1):
        if runs[at][recorded] != runs[at - 1][recorded]:
            return at, True
    return limit, False


EMPTY = Head(0, 0, GENESIS)
"""The head of a log without events."""
